"""overbooked-lock, sync: as the async one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.measuring import LOCK_FOR
from overbooked_lock import LockEngine

PACKAGES = ("overbooked-lock",)


@contextmanager
def connect(url: str, _callers: int) -> Iterator[Callable[[str], None]]:
    with LockEngine.from_url(url) as engine:

        def pair(slot_id: str) -> None:
            lock = engine.lock(slot_id, lock_for=LOCK_FOR)
            slot = lock.slot
            assert slot is not None
            assert slot.available
            assert lock.fencing_token > 0
            engine.unlock(lock)

        yield pair
