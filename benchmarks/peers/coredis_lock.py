"""coredis' Lock: made for each use by ``client.lock``; its client shares connections by itself.

https://coredis.readthedocs.io/en/stable/handbook/locks.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import coredis

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("coredis",)


@asynccontextmanager
async def connect(url: str, _callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with coredis.Redis.from_url(url) as client:

        async def pair(name: str) -> None:
            lock = client.lock(f"coredis:{name}", timeout=LOCK_FOR.total_seconds(), blocking=False)
            assert await lock.acquire()
            await lock.release()

        yield pair
