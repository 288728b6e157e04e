"""overbooked-lock, async: a key that the engine makes, on a registered slot, with all that a caller gets looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from benchmarks.measuring import LOCK_FOR
from overbooked_lock import AsyncLockEngine

PACKAGES = ("overbooked-lock",)


@asynccontextmanager
async def connect(url: str, _callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with AsyncLockEngine.from_url(url) as engine:

        async def pair(slot_id: str) -> None:
            lock = await engine.lock(slot_id, lock_for=LOCK_FOR)
            slot = lock.slot
            assert slot is not None
            assert slot.available
            assert lock.fencing_token > 0
            await engine.unlock(lock)

        yield pair
