"""Very many slots, all held, on a server of their own: does it grow slower, and how much memory does a slot take?

As a side of ``benchmarks.worker``, each caller ends a lock, any of its share, and makes it again. Where the callers
share all slots nearly every one comes from memory that is in no cache, where they share a few the rest only is there.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from multiprocessing import get_context

import redis

from benchmarks.measuring import CALLERS, registered_slot
from overbooked_lock import AsyncLockEngine, LockEngine, NewSlot

PACKAGES = ("overbooked-lock",)
LOCK_KEY = "who-holds-them-all"
HELD_FOR = timedelta(hours=1)
PER_CALL = 512
PER_PART = 20 * PER_CALL


def hold(url: str, slots: int) -> float:
    """Registers and locks that many slots; returns the bytes that the server took for each."""
    with redis.Redis.from_url(url) as admin:
        before = admin.info("memory")["used_memory"]
        register(url, slots, crowd_slot, locked=True)
        used: int = admin.info("memory")["used_memory"] - before
        return used / slots


def crowd_slot(number: int) -> NewSlot:
    return registered_slot(f"crowd-{number}")


def register(url: str, slots: int, slot: Callable[[int], NewSlot], *, locked: bool) -> None:
    """Registers that many slots; ``slot`` makes the one of a number."""
    part = partial(_register_part, url, slots, slot, locked)
    if slots <= PER_PART:
        part(0)
        return
    # Python takes longer to ask for a slot than the server to make it. Spawned: a fork would copy our threads.
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for _ in pool.map(part, range(0, slots, PER_PART)):  # raises what one of them raised
            pass


def _register_part(url: str, slots: int, slot: Callable[[int], NewSlot], locked: bool, start: int) -> None:
    end = min(slots, start + PER_PART)
    with LockEngine.from_url(url, timeout=timedelta(seconds=30)) as engine:
        for first in range(start, end, PER_CALL):
            batch = [slot(number) for number in range(first, min(end, first + PER_CALL))]
            engine.create_slots(batch)
            if locked:
                engine.lock_many([one.id for one in batch], lock_key=LOCK_KEY, lock_for=HELD_FOR)


def callers_of(used: int, slots: int) -> list[str]:
    """The names of callers who share so many of all slots, which lie scattered among them."""
    return [f"{number} {used} {slots // used}" for number in range(CALLERS)]


@asynccontextmanager
async def connect(url: str, callers: int) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    async with AsyncLockEngine.from_url(url) as engine:

        async def pair(caller: str) -> None:
            number, used, step = map(int, caller.split())
            slot_id = f"crowd-{(number + callers * random.randrange(used // callers)) * step}"
            await engine.unlock(slot_id, lock_key=LOCK_KEY)
            lock = await engine.lock(slot_id, lock_key=LOCK_KEY, lock_for=HELD_FOR)
            assert lock.slot is not None
            assert lock.fencing_token > 0

        yield pair
