"""unlock: only the owner ends a lock, and ending it twice is no error."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from overbooked_lock import InvalidArgument, LockEngine, LockKeyInvalid, NewSlot, Slot

MINUTE = timedelta(minutes=1)


def test_a_lock_is_released(engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """The slot is free for the next, and nothing of the lock is left but the last fencing token."""
    unlocked = engine.unlock(engine.lock(slot.id, lock_for=MINUTE))
    assert (unlocked.slot_id, unlocked.released) == (slot.id, True)
    assert not raw.exists(f"{lock_namespace}:slot:{slot.id}:lock")
    assert raw.hkeys(f"{lock_namespace}:slots:locks") == [""]
    assert not engine.lock(slot.id, lock_for=MINUTE).already_held


def test_a_lock_of_what_is_no_slot_leaves_nothing_in_the_index_of_ends(
    make_engine: Callable[..., LockEngine], raw: redis.Redis, lock_namespace: str
) -> None:
    """Any id can be locked there, so what stayed would pile up; a slot's entry is for its next."""
    engine = make_engine(unregistered="allow")
    engine.unlock_many(engine.lock_many(["a", "b"], lock_for=MINUTE))
    assert not raw.exists(f"{lock_namespace}:slots:expiry")


def test_the_payload_after_it(engine: LockEngine, slot: Slot) -> None:
    """An unlock answers with the slot as it is then."""
    assert engine.unlock(engine.lock(slot.id, lock_for=MINUTE)).slot == slot


def test_by_slot_id_and_lock_key(engine: LockEngine, slot: Slot) -> None:
    """Who has the key and not the value can unlock too."""
    engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    assert engine.unlock(slot.id, lock_key="mine").released


def test_a_free_slot_stays_free(engine: LockEngine, slot: Slot) -> None:
    """Already free: no error, and told apart from released. So an unlock can be sent again."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert engine.unlock(lock).released
    again = engine.unlock(lock)
    assert not again.released
    assert again.slot == slot


def test_an_expired_lock_is_not_released(engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]) -> None:
    """The holder learns that its lock had ended before."""
    lock = engine.lock(slot.id, lock_for=timedelta(milliseconds=20))
    await_expiry(slot.id)
    assert not engine.unlock(lock).released


def test_anothers_lock_is_refused(engine: LockEngine, slot: Slot) -> None:
    """Compare, then delete: a wrong key changes nothing."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(LockKeyInvalid) as refused:
        engine.unlock(slot.id, lock_key="not-mine")
    assert refused.value.locked_until == lock.locked_until
    assert engine.check(lock) == lock


def test_a_late_unlock_leaves_a_newer_lock_of_the_same_key(engine: LockEngine, slot: Slot) -> None:
    """The fencing token names the lock that is meant."""
    old = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    engine.unlock(old)
    new = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    assert not engine.unlock(old).released
    assert not engine.unlock(slot.id, lock_key="mine", fencing_token=old.fencing_token).released
    assert engine.check(new) == new
    assert engine.unlock(slot.id, lock_key="mine", fencing_token=new.fencing_token).released


def test_an_unregistered_slot_is_free(engine: LockEngine) -> None:
    """There is no lock to end and no payload to show."""
    unlocked = engine.unlock("nope", lock_key="mine")
    assert (unlocked.released, unlocked.slot) == (False, None)


def test_an_operator_ends_any_lock(engine: LockEngine, slot: Slot) -> None:
    """force_unlock asks for no key."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert engine.force_unlock(slot.id).released
    assert engine.check(lock) is None
    assert not engine.force_unlock(slot.id).released


def test_a_lock_from_another_process(engine: LockEngine, slot: Slot) -> None:
    """A pickled lock is enough to extend and to unlock."""
    lock = pickle.loads(pickle.dumps(engine.lock(slot.id, lock_for=MINUTE)))  # noqa: S301 - our own
    assert engine.extend(lock, lock_for=2 * MINUTE).fencing_token == lock.fencing_token
    assert engine.unlock(lock).released


def test_a_lock_carries_its_own_key(engine: LockEngine, slot: Slot) -> None:
    """A second key beside a Lock is a mistake."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(InvalidArgument, match="lock carries its lock_key"):
        engine.unlock(lock, lock_key="other")


def test_unlock_many_releases_what_is_the_callers(engine: LockEngine, new_slot: Callable[..., NewSlot]) -> None:
    """In one step; another's lock is refused after the caller's own were released."""
    slots = engine.create_slots(new_slot() for _ in range(3))
    ids = [slot.id for slot in slots]
    mine = engine.lock_many(ids[:2], lock_for=MINUTE)
    theirs = engine.lock(ids[2], lock_key="theirs", lock_for=MINUTE)
    with pytest.raises(LockKeyInvalid) as refused:
        engine.unlock_many(ids, lock_key=mine[0].lock_key)
    assert refused.value.slot_id == ids[2]
    assert [engine.check(lock) for lock in mine] == [None, None]
    assert engine.check(theirs) == theirs
    assert [unlocked.released for unlocked in engine.unlock_many([*mine, theirs])] == [False, False, True]
