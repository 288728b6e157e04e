"""pottery's AIORedlock, with one master, and a connection for each caller.

https://github.com/brainix/pottery#aioredlock
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pottery
import redis.asyncio

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("pottery", "redis", "hiredis")


@asynccontextmanager
async def connect(url: str, callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with redis.asyncio.Redis.from_url(url, max_connections=callers) as client:

        async def pair(name: str) -> None:
            lock = pottery.AIORedlock(key=name, masters={client}, auto_release_time=LOCK_FOR.total_seconds())
            assert await lock.acquire(blocking=False)
            await lock.release()

        yield pair
