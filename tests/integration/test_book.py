"""book and book_many: a place in a slot, taken once, by who may take it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    Booking,
    BookingExists,
    InvalidArgument,
    LockEngine,
    NewSlot,
    OverbookedError,
    Slot,
    SlotLocked,
    SlotNotBookable,
    SlotNotFound,
    StoreCorrupt,
)

MINUTE = timedelta(minutes=1)
BLINK = timedelta(milliseconds=30)
Make = Callable[..., NewSlot]


def counters(slot: Slot) -> tuple[int, int, int]:
    return slot.num_bookings, slot.num_active_bookings, slot.num_cancelled_bookings


def test_a_free_slot_is_booked(engine: LockEngine, slot: Slot, redis_now: Callable[[], datetime]) -> None:
    """The booking says what it is of; the slot counts it and is full."""
    before = redis_now() - timedelta(milliseconds=1)
    booking = engine.book(slot.id, metadata={"name": "Ada ✓"})
    assert (booking.slot_id, booking.resource_id, booking.status) == (slot.id, slot.resource_id, "active")
    assert booking.metadata == {"name": "Ada ✓"}
    assert before <= booking.created_at == booking.updated_at <= redis_now()
    assert not booking.lock_expired
    assert engine.get_booking(booking.id) == booking
    after = engine.get_slot(slot.id)
    assert (counters(after), after.available) == ((1, 1, 0), False)
    assert after.updated_at == slot.updated_at  # counters, like locks, are no change of the slot itself


def test_the_payload_is_the_documented_one(engine: LockEngine, slot: Slot) -> None:
    """Fields, order and formats of the API; and it is read back."""
    booking = engine.book(slot.id)
    payload = booking.model_dump(mode="json")
    fields = ["_object", "resource_id", "created_at", "id", "metadata", "slot_id", "status", "updated_at"]
    assert list(payload) == fields
    assert payload["_object"] == "booking"
    assert payload["created_at"].endswith("Z")
    assert Booking.model_validate_json(booking.model_dump_json()) == booking


def test_booking_with_the_lock_consumes_it(engine: LockEngine, slot: Slot, raw: redis.Redis) -> None:
    """In one step: there is no moment in which the slot is neither locked nor booked, and nothing of the lock stays."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    booking = engine.book(lock)
    assert not booking.lock_expired
    assert engine.check(lock) is None
    assert engine.list_locks() == []
    after = engine.get_slot(slot.id)
    assert (after.locked_until, after.available) == (None, False)


def test_the_lock_is_named_by_slot_id_and_key_too(engine: LockEngine, new_slot: Make) -> None:
    """As for unlock; places that are left stay open to others."""
    slot = engine.create_slot(new_slot(capacity=2))
    engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    engine.book(slot.id, lock_key="mine")
    after = engine.get_slot(slot.id)
    assert (counters(after), after.available, after.locked_until) == ((1, 1, 0), True, None)


@pytest.mark.parametrize("lock_key", [None, "another"])
def test_who_does_not_hold_a_locked_slot_cannot_book_it(engine: LockEngine, slot: Slot, lock_key: str | None) -> None:
    """E050, until when it is locked; the lock stays, nothing is counted."""
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        engine.book(slot.id, lock_key=lock_key)
    assert (refused.value.code, refused.value.status, refused.value.locked_until) == ("E050", 422, lock.locked_until)
    assert timedelta(seconds=50) < refused.value.retry_after <= MINUTE
    assert engine.check(lock) == lock
    assert counters(engine.get_slot(slot.id)) == (0, 0, 0)


def test_a_late_booking_does_not_consume_a_newer_lock_of_its_key(engine: LockEngine, slot: Slot) -> None:
    """The fencing token tells which lock was meant."""
    earlier = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    engine.unlock(earlier)
    newer = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.book(earlier)
    with pytest.raises(SlotLocked):
        engine.book(slot.id, lock_key="mine", fencing_token=earlier.fencing_token)
    assert engine.check(newer) == newer
    engine.book(slot.id, lock_key="mine", fencing_token=newer.fencing_token)


def test_a_booking_after_the_lock_ended_says_so(
    engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]
) -> None:
    """Nobody else took the place, so it is given; the caller learns that nothing had kept it."""
    lock = engine.lock(slot.id, lock_for=BLINK)
    await_expiry(slot.id)
    booking = engine.book(lock)
    assert booking.lock_expired
    assert engine.get_booking(booking.id).lock_expired
    assert "lock_expired" not in booking.model_dump()


def test_a_slot_has_no_more_active_bookings_than_places(engine: LockEngine, new_slot: Make) -> None:
    """The last one is refused with E049, its lock stays."""
    slot = engine.create_slot(new_slot(capacity=2))
    engine.book(slot.id)
    engine.book(slot.id)
    with pytest.raises(SlotNotBookable, match="full") as refused:
        engine.book(slot.id)
    assert (refused.value.code, refused.value.reason, refused.value.status) == ("E049", "full", 422)
    assert counters(engine.get_slot(slot.id)) == (2, 2, 0)


def test_a_disabled_slot_is_not_booked_even_by_its_holder(engine: LockEngine, slot: Slot) -> None:
    """E051; the holder's lock stays until its date."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.disable_slot(slot.id)
    with pytest.raises(SlotNotBookable, match="disabled") as refused:
        engine.book(lock)
    assert (refused.value.code, refused.value.reason) == ("E051", "disabled")
    assert engine.check(lock) == lock


def test_what_cannot_be_locked_can_be_booked(engine: LockEngine, new_slot: Make) -> None:
    """``lockable`` is about locks alone."""
    slot = engine.create_slot(new_slot(lockable=False))
    assert engine.book(slot.id).status == "active"


def test_the_order_of_reasons(engine: LockEngine, slot: Slot) -> None:
    """Not found, disabled, full, locked: the first that holds is told."""
    with pytest.raises(SlotNotFound):
        engine.book("nowhere")
    engine.lock(slot.id, lock_for=MINUTE)
    engine.disable_slot(slot.id)
    with pytest.raises(SlotNotBookable, match="disabled"):
        engine.book(slot.id)


def test_an_unregistered_slot_is_not_booked(make_engine: Callable[..., LockEngine]) -> None:
    """Where any id can be locked there is still nothing to count."""
    engine = make_engine(unregistered="allow")
    lock = engine.lock("anything", lock_for=MINUTE)
    with pytest.raises(SlotNotFound):
        engine.book(lock)
    assert engine.check(lock) == lock


def test_booking_again_with_the_same_id_is_one_booking(engine: LockEngine, new_slot: Make) -> None:
    """A call whose answer was lost is made again, whatever became of the slot; another booking's id is refused."""
    slot, other = engine.create_slots([new_slot(capacity=2), new_slot()])
    first = engine.book(slot.id, booking_id="b-1", metadata={"a": 1})
    engine.disable_slot(slot.id)
    assert engine.book(slot.id, booking_id="b-1", metadata={"a": 1}) == first
    for slot_id, metadata in ((other.id, {"a": 1}), (slot.id, {"a": 2})):
        with pytest.raises(BookingExists, match="b-1"):
            engine.book(slot_id, booking_id="b-1", metadata=metadata)
    assert counters(engine.get_slot(slot.id)) == (1, 1, 0)
    assert engine.list_bookings().total == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"slot": ""}, "slot_id"),
        ({"lock_key": ""}, "lock_key"),
        ({"fencing_token": 5}, "lock_key"),
        ({"booking_id": "a\nb"}, "booking_id"),
        ({"metadata": {"a": float("nan")}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
    ],
)
def test_bad_arguments_are_named(engine: LockEngine, slot: Slot, arguments: dict[str, Any], named: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgument) as refused:
        engine.book(**{"slot": slot.id} | arguments)
    assert refused.value.argument == named
    assert counters(engine.get_slot(slot.id)) == (0, 0, 0)


def test_a_row_of_slots_is_booked_whole(engine: LockEngine, new_slot: Make) -> None:
    """What was locked together is booked together, and all the locks are consumed."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(5)])]
    locks = engine.lock_many(ids, lock_for=MINUTE)
    bookings = engine.book_many(locks, metadata={"party": "Lovelace"})
    assert [booking.slot_id for booking in bookings] == ids
    assert engine.list_locks() == []
    assert engine.list_bookings().total == 5


def test_a_row_with_ids_of_its_own_can_be_booked_again(engine: LockEngine, new_slot: Make) -> None:
    """It is one row of bookings, however often it is asked for."""
    slots = [slot.id for slot in engine.create_slots([new_slot(capacity=5) for _ in range(2)])]
    first, again = [engine.book_many(slots, booking_ids=["b-1", "b-2"]) for _ in range(2)]
    assert [booking.id for booking in first] == ["b-1", "b-2"]
    assert again == first
    assert engine.list_bookings().total == 2
    for wrong in (["b-1"], ["b-1", "b-1"], ["b-1", ""], "b-1"):
        with pytest.raises(InvalidArgument, match="booking_ids"):
            engine.book_many(slots, booking_ids=wrong)


def test_a_row_with_one_slot_in_the_way_is_not_booked_at_all(engine: LockEngine, new_slot: Make) -> None:
    """The error names that slot; every lock stays."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(4)])]
    engine.lock_many(ids[:3], lock_key="mine", lock_for=MINUTE)
    engine.lock(ids[3], lock_key="another's", lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        engine.book_many(ids, lock_key="mine")
    assert refused.value.slot_id == ids[3]
    assert len(engine.list_locks()) == 4
    assert engine.list_bookings().total == 0
    assert all(counters(engine.get_slot(slot_id)) == (0, 0, 0) for slot_id in ids)


async def test_concurrent_bookings_share_the_places(async_lock_engine: AsyncLockEngine, new_slot: Make) -> None:
    """Merged into few calls, they still see each other: as many as there are places, the rest is told so."""
    slot = await async_lock_engine.create_slot(new_slot(capacity=7))
    outcomes = await asyncio.gather(*(async_lock_engine.book(slot.id) for _ in range(60)), return_exceptions=True)
    booked = [outcome for outcome in outcomes if isinstance(outcome, Booking)]
    assert len(booked) == 7
    assert all(isinstance(o, SlotNotBookable) and o.reason == "full" for o in outcomes if o not in booked)
    assert counters(await async_lock_engine.get_slot(slot.id)) == (7, 7, 0)


async def test_concurrent_calls_with_one_id_make_one_booking(
    async_lock_engine: AsyncLockEngine, new_slot: Make
) -> None:
    """The same request many times at once."""
    slot = await async_lock_engine.create_slot(new_slot(capacity=5))
    lock = await async_lock_engine.lock(slot.id, lock_for=MINUTE)
    bookings = await asyncio.gather(*(async_lock_engine.book(lock, booking_id="once") for _ in range(9)))
    assert all(booking == bookings[0] and not booking.lock_expired for booking in bookings)
    assert counters(await async_lock_engine.get_slot(slot.id)) == (1, 1, 0)


async def test_one_that_cannot_be_booked_costs_its_neighbours_nothing(
    async_lock_engine: AsyncLockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """Keys that hold something else fail alone, in a merged call too."""
    slots = await async_lock_engine.create_slots([new_slot(id=f"s{i}") for i in range(4)])
    raw.delete(f"{lock_namespace}:slot:s1:record")
    raw.lpush(f"{lock_namespace}:slot:s1:record", "not ours")
    raw.set(f"{lock_namespace}:slot:s2:record", "not ours")
    raw.lpush(f"{lock_namespace}:booking:b3:record", "not ours")
    outcomes = await asyncio.gather(
        *(async_lock_engine.book(slot.id, booking_id=f"b{i}") for i, slot in enumerate(slots)), return_exceptions=True
    )
    assert isinstance(outcomes[0], Booking)
    assert all(isinstance(outcome, StoreCorrupt) for outcome in outcomes[1:])
    assert counters(await async_lock_engine.get_slot("s3")) == (0, 0, 0)


@pytest.mark.parametrize(
    "kind", ["slots:locks", "slots:expiry", "bookings:created", "bookings:slots", "bookings:resources"]
)
def test_nothing_is_half_done_where_a_shared_key_is_wrong(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, kind: str
) -> None:
    """The script ends before its first write."""
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    raw.rename(f"{lock_namespace}:{kind}", "aside") if raw.exists(f"{lock_namespace}:{kind}") else None
    raw.set(f"{lock_namespace}:{kind}", "not ours")
    with pytest.raises(OverbookedError):
        engine.book(lock)
    raw.delete(f"{lock_namespace}:{kind}")
    raw.rename("aside", f"{lock_namespace}:{kind}") if raw.exists("aside") else None
    assert engine.check(lock) == lock
    assert counters(engine.get_slot(slot.id)) == (0, 0, 0)
    assert engine.list_bookings().total == 0


@pytest.mark.parametrize("text", ["3LA 0 0 1 junk", "3LA 0 x 1 1 1\nr\na\nb\n1 1\n{}", "3LA 0 0 1 1 1\n\n\n\n{}"])
def test_a_slots_record_that_is_cut_off_books_nothing(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, text: str
) -> None:
    """It is found out before the first write: the lock stays, and nothing is counted."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    raw.set(f"{lock_namespace}:slot:{slot.id}:record", text)
    with pytest.raises(StoreCorrupt, match=slot.id):
        engine.book(lock)
    assert engine.check(lock) == lock
    assert raw.get(f"{lock_namespace}:slot:{slot.id}:record") == text


@pytest.mark.parametrize("verb", ["book", "reschedule"])
def test_a_slot_whose_lock_is_not_ours_to_read_is_not_booked(
    engine: LockEngine, slot: Slot, new_slot: Make, raw: redis.Redis, lock_namespace: str, verb: str
) -> None:
    """A key of another type in the lock's place may mean that somebody has the slot."""
    elsewhere = engine.book(engine.create_slot(new_slot()).id)
    raw.rpush(f"{lock_namespace}:slot:{slot.id}:lock", "not ours")
    with pytest.raises(StoreCorrupt, match=slot.id):
        engine.book(slot.id) if verb == "book" else engine.reschedule_booking(elsewhere.id, slot.id)
    assert counters(engine.get_slot(slot.id)) == (0, 0, 0)
    assert engine.list_bookings().bookings == (elsewhere,)


def test_a_string_is_not_taken_for_a_list_of_its_letters(engine: LockEngine, new_slot: Make) -> None:
    """Nor is what is no list at all."""
    engine.create_slots([new_slot(id="a"), new_slot(id="b")])
    for slots in ("ab", None):
        with pytest.raises(InvalidArgument, match="slots must be a list"):
            engine.book_many(slots)  # type: ignore[arg-type]  # on purpose
    assert engine.list_bookings().total == 0


def test_nothing_of_a_consumed_lock_is_left(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Neither its token nor its date; and if the tokens are no hash, that is found out before the first write."""
    engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    tokens, aside = f"{lock_namespace}:slots:locks", f"{lock_namespace}:aside"
    raw.rename(tokens, aside)
    raw.set(tokens, "not ours")
    with pytest.raises(OverbookedError):
        engine.book(slot.id, lock_key="mine")
    raw.rename(aside, tokens)
    assert counters(engine.get_slot(slot.id)) == (0, 0, 0)
    engine.book(slot.id, lock_key="mine")
    assert raw.hkeys(tokens) == [""]
    assert not raw.exists(f"{lock_namespace}:slots:expiry")
