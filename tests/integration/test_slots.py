"""create, get, update, enable, disable, delete: the slots themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    CapacityTooSmall,
    InvalidArgument,
    LockEngine,
    NewSlot,
    Slot,
    SlotExists,
    SlotHasBookings,
    SlotNotFound,
    StoreCorrupt,
)

MINUTE = timedelta(minutes=1)
Make = Callable[..., NewSlot]


def test_a_slot_is_created_and_read_back(engine: LockEngine, new_slot: Make, redis_now: Callable[[], datetime]) -> None:
    """Every field as it was given; its dates of change by Redis' clock."""
    new = new_slot(capacity=3, metadata={"colour": "blau ✓", "n": [1, 2.5, None, {"a\nb": "\x00"}]}, lockable=False)
    before = redis_now() - timedelta(milliseconds=1)
    slot = engine.create_slot(new)
    assert before <= slot.created_at == slot.updated_at <= redis_now()
    assert slot == engine.get_slot(new.id)
    assert (slot.resource_id, slot.start_date, slot.end_date) == (new.resource_id, new.start_date, new.end_date)
    assert (slot.capacity, slot.lockable, slot.status, slot.metadata) == (3, False, "active", new.metadata)
    assert (slot.num_bookings, slot.num_active_bookings, slot.num_cancelled_bookings) == (0, 0, 0)
    assert (slot.available, slot.locked_until) == (True, None)


def test_many_are_created_in_one_call(engine: LockEngine, new_slot: Make) -> None:
    """With ids that were made, or the caller's own."""
    slots = engine.create_slots([new_slot(id="seat-1"), new_slot(), new_slot()])
    assert slots[0].id == "seat-1"
    assert len({slot.id for slot in slots}) == 3
    assert all(engine.get_slot(slot.id) == slot for slot in slots)


def test_creating_again_is_a_success_if_it_says_the_same(engine: LockEngine, new_slot: Make) -> None:
    """A call whose answer was lost is made again; another slot under the same id is refused."""
    new = new_slot()
    first = engine.create_slot(new)
    assert engine.create_slot(new) == first
    with pytest.raises(SlotExists, match=new.id):
        engine.create_slot(new_slot(id=new.id, capacity=2))
    assert engine.get_slot(new.id) == first


def test_an_unknown_slot(engine: LockEngine) -> None:
    """Reading and changing what is not there is an error, deleting it is not."""
    for change in (engine.get_slot, engine.enable_slot, engine.disable_slot, engine.update_slot):
        with pytest.raises(SlotNotFound):
            change("nope")
    assert engine.delete_slot("nope") is False


def test_what_is_absent_stays(engine: LockEngine, slot: Slot) -> None:
    """An update changes the fields it is given, and ``updated_at``."""
    changes: list[dict[str, Any]] = [
        {"capacity": 7},
        {"metadata": {"a": 1}},
        {"lockable": False},
        {"end_date": slot.end_date + MINUTE},
        {"start_date": slot.start_date - MINUTE},
    ]
    expected = slot
    for change in changes:
        updated = engine.update_slot(slot.id, **change)
        assert updated.updated_at >= expected.updated_at
        expected = expected.model_copy(update=change | {"updated_at": updated.updated_at})
        assert updated == expected == engine.get_slot(slot.id)


def test_an_update_that_changes_nothing_touches_nothing(engine: LockEngine, slot: Slot) -> None:
    """A change to a state that is there already is a success."""
    assert engine.update_slot(slot.id, capacity=1, metadata={}, lockable=True) == slot
    assert engine.enable_slot(slot.id) == slot


def test_the_start_stays_before_the_end(engine: LockEngine, slot: Slot) -> None:
    """Judged with the date that is not changed, in the same step."""
    changes: list[dict[str, Any]] = [{"start_date": slot.end_date}, {"end_date": slot.start_date}]
    for change in changes:
        with pytest.raises(InvalidArgument, match="start_date must be before end_date") as refused:
            engine.update_slot(slot.id, **change)
        assert (refused.value.code, refused.value.status) == ("E023", 422)
    assert engine.get_slot(slot.id) == slot


def test_enable_and_disable(engine: LockEngine, slot: Slot) -> None:
    """A disabled slot is available to nobody."""
    disabled = engine.disable_slot(slot.id)
    assert (disabled.status, disabled.available) == ("disabled", False)
    enabled = engine.enable_slot(slot.id)
    assert (enabled.status, enabled.available) == ("active", True)


def test_locking_does_not_touch_updated_at(engine: LockEngine, slot: Slot) -> None:
    """A lock is no change of the slot."""
    engine.unlock(engine.lock(slot.id, lock_for=MINUTE))
    assert engine.get_slot(slot.id).updated_at == slot.updated_at


def test_the_holders_view(engine: LockEngine, slot: Slot) -> None:
    """A slot that is locked is available to its holder alone, and shows until when."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    views = [engine.get_slot(slot.id, lock_key=key).available for key in (None, "other", lock.lock_key)]
    assert views == [False, False, True]
    assert engine.get_slot(slot.id).locked_until == lock.locked_until


def test_an_expired_lock_shows_as_none(engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]) -> None:
    """Expiry is judged when the slot is read, whether or not anybody swept."""
    engine.lock(slot.id, lock_for=timedelta(milliseconds=20))
    await_expiry(slot.id)
    assert engine.get_slot(slot.id) == slot


def test_deleting_removes_all_of_it(engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """Record, lock and index entries go in one step; what stays is what was told of it, and the last token."""
    engine.lock(slot.id, lock_for=MINUTE)
    assert engine.delete_slot(slot.id) is True
    assert sorted(raw.keys(f"{lock_namespace}:*")) == [
        f"{lock_namespace}:slots:events",
        f"{lock_namespace}:slots:locks",
    ]
    assert raw.hkeys(f"{lock_namespace}:slots:locks") == [""]
    with pytest.raises(SlotNotFound):
        engine.get_slot(slot.id)


def test_active_bookings_protect_a_slot(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """Neither deleted nor made smaller than what is booked."""
    slot = engine.create_slot(new_slot(capacity=3))
    key = f"{lock_namespace}:slot:{slot.id}:record"
    raw.set(key, str(raw.get(key)).replace("3LA 0 0 3", "3LA 2 1 3"))  # as bookings leave it
    seen = engine.get_slot(slot.id)
    assert (seen.num_active_bookings, seen.num_cancelled_bookings, seen.num_bookings) == (2, 1, 3)
    with pytest.raises(SlotHasBookings):
        engine.delete_slot(slot.id)
    with pytest.raises(CapacityTooSmall):
        engine.update_slot(slot.id, capacity=1)
    full = engine.update_slot(slot.id, capacity=2)
    assert (full.capacity, full.available) == (2, False)


def test_a_record_that_is_not_ours_is_corrupt(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Another type, or a format of the future: said so, and left alone."""
    key = f"{lock_namespace}:slot:{slot.id}:record"
    calls: list[Callable[[], object]] = [
        lambda: engine.get_slot(slot.id),
        lambda: engine.lock(slot.id, lock_for=MINUTE),
        lambda: engine.update_slot(slot.id, capacity=2),
        lambda: engine.delete_slot(slot.id),
    ]
    raw.set(key, "9LA something of the future")
    for call in calls:
        with pytest.raises(StoreCorrupt, match=slot.id):
            call()
    raw.delete(key)
    raw.rpush(key, "a list")
    for call in [*calls[:2], calls[3]]:
        with pytest.raises(StoreCorrupt, match=slot.id):
            call()
    assert raw.lrange(key, 0, -1) == ["a list"]


def test_concurrent_updates_lose_nothing(lock_engine: LockEngine, slot: Slot) -> None:
    """Two who change different fields at once both succeed: the change is one step in Redis."""
    start = threading.Barrier(2)

    def change(field: str, values: list[Any]) -> None:
        start.wait()
        for value in values:
            assert getattr(lock_engine.update_slot(slot.id, **{field: value}), field) == value

    fields: dict[str, list[Any]] = {"capacity": list(range(1, 100)), "metadata": [{"n": n} for n in range(1, 100)]}
    threads = [threading.Thread(target=change, args=item) for item in fields.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = lock_engine.get_slot(slot.id)
    assert (final.capacity, final.metadata) == (99, {"n": 99})


def test_a_slot_in_the_distant_past(engine: LockEngine, new_slot: Make) -> None:
    """Dates before 1970 are dates."""
    start = datetime(1888, 5, 1, 9, tzinfo=UTC)
    slot = engine.create_slot(new_slot(start_date=start, end_date=start + MINUTE))
    assert engine.list_slots(resource_id=slot.resource_id, end_date=datetime(1900, 1, 1, tzinfo=UTC)).slots == (slot,)
