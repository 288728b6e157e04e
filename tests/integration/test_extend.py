"""extend: a live lock gets a later date, and a lock that ended is not made anew."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import redis

from overbooked_lock import InvalidArgument, LockEngine, LockLost, NewSlot, Slot, SlotNotFound, SlotNotLockable

MINUTE = timedelta(minutes=1)


def test_a_duration_counts_from_now(engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """The date moves, in the answer and in Redis; key and fencing token stay."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    extended = engine.extend(lock, lock_for=3 * MINUTE)
    assert timedelta(seconds=170) < extended.remaining() <= 3 * MINUTE
    assert (extended.lock_key, extended.fencing_token) == (lock.lock_key, lock.fencing_token)
    assert raw.pttl(f"{lock_namespace}:slot:{slot.id}:lock") > 170_000


def test_until_a_date(engine: LockEngine, slot: Slot) -> None:
    """By slot_id and lock_key as by value."""
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    until = lock.locked_until + MINUTE
    assert engine.extend(slot.id, lock_key="mine", lock_until=until).locked_until == until


def test_a_lock_is_never_shortened(engine: LockEngine, slot: Slot) -> None:
    """An earlier date is a success that changes nothing."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert engine.extend(lock, lock_for=timedelta(seconds=1)) == lock
    assert engine.check(lock) == lock


def test_a_lock_that_ended_is_lost(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, await_expiry: Callable[[str], None]
) -> None:
    """It is not made anew: somebody else may have had the slot since."""
    lock = engine.lock(slot.id, lock_for=timedelta(milliseconds=20))
    await_expiry(slot.id)
    with pytest.raises(LockLost) as lost:
        engine.extend(lock, lock_for=MINUTE)
    assert (lost.value.slot_id, lost.value.locked_until) == (slot.id, None)
    assert not raw.exists(f"{lock_namespace}:slot:{slot.id}:lock")


def test_a_lock_that_another_has_now_is_lost(engine: LockEngine, slot: Slot) -> None:
    """The error tells until when the slot is another's."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.unlock(lock)
    theirs = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(LockLost) as lost:
        engine.extend(lock, lock_for=2 * MINUTE)
    assert lost.value.locked_until == theirs.locked_until
    assert engine.check(theirs) == theirs


def test_an_older_lock_of_the_same_key_is_lost(engine: LockEngine, slot: Slot) -> None:
    """The fencing token guards against late calls."""
    old = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    engine.unlock(old)
    new = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    with pytest.raises(LockLost):
        engine.extend(old, lock_for=2 * MINUTE)
    assert engine.check(new) == new


def test_dates_are_judged_as_for_a_lock(engine: LockEngine, slot: Slot, redis_now: Callable[[], datetime]) -> None:
    """Neither in the past nor beyond the longest lock, by Redis' clock."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(InvalidArgument, match="lock_until must be in the future"):
        engine.extend(lock, lock_until=redis_now() - timedelta(seconds=1))
    with pytest.raises(InvalidArgument, match="lock_until must be at most 24 h from now"):
        engine.extend(lock, lock_until=redis_now() + timedelta(hours=25))
    assert engine.check(lock) == lock


def test_a_slot_that_went_or_was_disabled(engine: LockEngine, slot: Slot) -> None:
    """What could not be locked anew is not extended."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.disable_slot(slot.id)
    with pytest.raises(SlotNotLockable):
        engine.extend(lock, lock_for=2 * MINUTE)
    engine.delete_slot(slot.id)
    with pytest.raises(SlotNotFound):
        engine.extend(lock, lock_for=2 * MINUTE)


def test_extend_many_is_all_or_nothing(engine: LockEngine, new_slot: Callable[..., NewSlot]) -> None:
    """A row of seats keeps one date, or learns which seat it lost and keeps the old one."""
    ids = [slot.id for slot in engine.create_slots(new_slot() for _ in range(3))]
    locks = engine.lock_many(ids, lock_for=MINUTE)
    extended = engine.extend_many(locks, lock_for=2 * MINUTE)
    assert {lock.locked_until for lock in extended} == {extended[0].locked_until}
    engine.unlock(locks[1])
    with pytest.raises(LockLost) as lost:
        engine.extend_many(locks, lock_for=3 * MINUTE)
    assert lost.value.slot_id == ids[1]
    assert [engine.check(lock) for lock in extended] == [extended[0], None, extended[2]]
