"""check: is it still mine?"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from overbooked_lock import LockEngine, Slot

MINUTE = timedelta(minutes=1)


def test_a_live_lock(engine: LockEngine, slot: Slot) -> None:
    """The lock as it stands now, payload and remaining time included."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    extended = engine.extend(lock, lock_for=2 * MINUTE)
    seen = engine.check(lock)
    assert seen == extended
    assert seen is not None
    assert seen.slot == extended.slot
    assert timedelta(seconds=110) < seen.remaining() <= 2 * MINUTE


def test_by_slot_id_and_lock_key(engine: LockEngine, slot: Slot) -> None:
    """Who has only the key finds its lock, fencing token included."""
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    assert engine.check(slot.id, lock_key="mine") == lock
    assert engine.check(slot.id, lock_key="other") is None
    assert engine.check(slot.id, lock_key="mine", fencing_token=lock.fencing_token - 1) is None


def test_a_lock_that_is_gone(engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]) -> None:
    """Expired, unlocked, deleted with its slot: not mine any more."""
    lock = engine.lock(slot.id, lock_for=timedelta(milliseconds=20))
    await_expiry(slot.id)
    assert engine.check(lock) is None
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.unlock(lock)
    assert engine.check(lock) is None
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.delete_slot(slot.id)
    assert engine.check(lock) is None
