"""valkey-glide: SET with NX and PX, and a script that compares and deletes; it brings no lock of its own.

One client for all callers: it multiplexes. The pattern is that of https://valkey.io/commands/set/#patterns, its script
is run as in https://valkey.io/valkey-glide-docs/languages/python/how-to/lua-scripts-guide.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import glide

from benchmarks.measuring import CALLERS, LOCK_FOR

PACKAGES = ("valkey-glide",)

RELEASE = 'if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) else return 0 end'


@asynccontextmanager
async def connect(url: str, callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    place = urlsplit(url)
    address = glide.NodeAddress(place.hostname, place.port)
    client = await glide.GlideClient.create(
        # Its own bound on what is under way lies above our callers.
        glide.GlideClientConfiguration([address], inflight_requests_limit=max(callers, CALLERS) * 5)
    )
    release = glide.Script(RELEASE)
    expiry = glide.ExpirySet(glide.ExpiryType.MILLSEC, LOCK_FOR)
    absent = glide.ConditionalChange.ONLY_IF_DOES_NOT_EXIST

    async def pair(name: str) -> None:
        key, token = f"glide:{name}", uuid.uuid4().hex
        assert await client.set(key, token, conditional_set=absent, expiry=expiry) == "OK"
        assert await client.invoke_script(release, keys=[key], args=[token]) == 1

    try:
        yield pair
    finally:
        await client.close()
