"""redis-py's asyncio Lock: a lock for each use, and a connection for each caller, so that none waits for another's.

https://redis.readthedocs.io/en/stable/lock.html, https://redis.readthedocs.io/en/stable/examples/asyncio_examples.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import redis.asyncio

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("redis", "hiredis")


@asynccontextmanager
async def connect(url: str, callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with redis.asyncio.Redis.from_url(url, max_connections=callers) as client:

        async def pair(name: str) -> None:
            # Threads have no part in this, and a lock without their storage is the faster one.
            lock = client.lock(f"redis-py:{name}", timeout=LOCK_FOR.total_seconds(), thread_local=False)
            assert await lock.acquire(blocking=False)
            await lock.release()

        yield pair
