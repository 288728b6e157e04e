"""get, list, update, cancel, enable, reschedule, delete: what becomes of a booking, and what its slot counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    Booking,
    BookingNotFound,
    InvalidArgument,
    LockEngine,
    NewSlot,
    Slot,
    SlotHasBookings,
    SlotLocked,
    SlotNotBookable,
    SlotNotFound,
    StoreCorrupt,
    StoreUnavailable,
)

MINUTE = timedelta(minutes=1)
Make = Callable[..., NewSlot]


def counters(engine: LockEngine, slot_id: str) -> tuple[int, int, int]:
    slot = engine.get_slot(slot_id)
    return slot.num_bookings, slot.num_active_bookings, slot.num_cancelled_bookings


@pytest.fixture
def booking(lock_engine: LockEngine, slot: Slot) -> Booking:
    """A booking of the slot's one place."""
    return lock_engine.book(slot.id, metadata={"name": "Ada"})


@pytest.mark.parametrize("verb", ["get_booking", "cancel_booking", "enable_booking"])
def test_an_unknown_booking(engine: LockEngine, verb: str) -> None:
    """E048, with its id."""
    with pytest.raises(BookingNotFound, match="'nowhere'") as refused:
        getattr(engine, verb)("nowhere")
    assert (refused.value.code, refused.value.status, refused.value.booking_id) == ("E048", 404, "nowhere")
    with pytest.raises(InvalidArgument, match="booking_id"):
        getattr(engine, verb)("")


def test_an_unknown_booking_is_not_changed_or_moved(engine: LockEngine, slot: Slot) -> None:
    """As above, for the verbs that take more; deleting it is no error."""
    with pytest.raises(BookingNotFound):
        engine.update_booking("nowhere", metadata={})
    with pytest.raises(BookingNotFound):
        engine.reschedule_booking("nowhere", slot.id)
    assert engine.delete_booking("nowhere") is False


def test_metadata_is_replaced(engine: LockEngine, booking: Booking) -> None:
    """Nothing else changes but ``updated_at``; and that only when something does."""
    updated = engine.update_booking(booking.id, metadata={"name": "Grace"})
    assert updated.updated_at >= booking.updated_at
    assert updated == booking.model_copy(update={"metadata": {"name": "Grace"}, "updated_at": updated.updated_at})
    assert engine.update_booking(booking.id, metadata={"name": "Grace"}) == updated == engine.get_booking(booking.id)
    with pytest.raises(InvalidArgument, match="metadata"):
        engine.update_booking(booking.id, metadata={"name": float("inf")})


def test_cancelling_gives_the_place_back_once(engine: LockEngine, slot: Slot, booking: Booking) -> None:
    """A second time it is cancelled already."""
    cancelled = engine.cancel_booking(booking.id)
    assert (cancelled.status, counters(engine, slot.id)) == ("cancelled", (1, 0, 1))
    assert engine.cancel_booking(booking.id) == cancelled == engine.get_booking(booking.id)
    assert counters(engine, slot.id) == (1, 0, 1)
    assert engine.get_slot(slot.id).available


def test_enabling_takes_a_place_again_once(engine: LockEngine, slot: Slot, booking: Booking) -> None:
    """An active booking stays as it is."""
    assert engine.enable_booking(booking.id) == booking
    engine.cancel_booking(booking.id)
    enabled = engine.enable_booking(booking.id)
    assert (enabled.status, counters(engine, slot.id)) == ("active", (1, 1, 0))
    assert engine.enable_booking(booking.id) == enabled


def test_enabling_obeys_what_booking_obeys(engine: LockEngine, slot: Slot, booking: Booking) -> None:
    """Locked by another, full, disabled; the holder's lock is consumed."""
    engine.cancel_booking(booking.id)
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    for lock_key in (None, "another"):
        with pytest.raises(SlotLocked) as refused:
            engine.enable_booking(booking.id, lock_key=lock_key)
        assert (refused.value.code, refused.value.slot_id) == ("E050", slot.id)
    assert engine.enable_booking(booking.id, lock_key="mine").status == "active"
    assert engine.check(lock) is None
    engine.cancel_booking(booking.id)
    engine.book(slot.id)
    with pytest.raises(SlotNotBookable, match="full"):
        engine.enable_booking(booking.id)
    engine.disable_slot(slot.id)
    with pytest.raises(SlotNotBookable, match="disabled"):
        engine.enable_booking(booking.id)
    assert engine.get_booking(booking.id).status == "cancelled"
    assert counters(engine, slot.id) == (2, 1, 1)


def test_rescheduling_moves_a_booking_in_one_step(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make
) -> None:
    """Both slots count it right; its resource is the other's, and the lists find it there."""
    target = engine.create_slot(new_slot(resource_id="court-2"))
    moved = engine.reschedule_booking(booking.id, target.id)
    assert (moved.slot_id, moved.resource_id, moved.created_at) == (target.id, "court-2", booking.created_at)
    assert engine.get_booking(booking.id) == moved
    assert (counters(engine, slot.id), counters(engine, target.id)) == ((0, 0, 0), (1, 1, 0))
    assert engine.list_bookings(slot_id=target.id).bookings == (moved,)
    assert engine.list_bookings(resource_id="court-2").bookings == (moved,)
    assert engine.list_bookings(slot_id=slot.id).total == engine.list_bookings(resource_id="court-1").total == 0
    assert engine.reschedule_booking(booking.id, target.id) == moved


def test_rescheduling_obeys_what_booking_obeys(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make
) -> None:
    """A booking that can't go stays where it was; the holder's lock on the new slot is consumed."""
    full, locked, disabled = engine.create_slots([new_slot(), new_slot(), new_slot(status="disabled")])
    engine.book(full.id)
    lock = engine.lock(locked.id, lock_key="mine", lock_for=MINUTE)
    with pytest.raises(SlotNotBookable, match="full"):
        engine.reschedule_booking(booking.id, full.id)
    with pytest.raises(SlotNotBookable, match="disabled"):
        engine.reschedule_booking(booking.id, disabled.id)
    with pytest.raises(SlotLocked) as refused:
        engine.reschedule_booking(booking.id, locked.id)
    assert (refused.value.code, refused.value.slot_id) == ("E050", locked.id)
    with pytest.raises(SlotNotFound, match="nowhere"):
        engine.reschedule_booking(booking.id, "nowhere")
    with pytest.raises(InvalidArgument, match="target_slot_id"):
        engine.reschedule_booking(booking.id, "")
    assert engine.get_booking(booking.id) == booking
    assert counters(engine, slot.id) == (1, 1, 0)
    assert engine.reschedule_booking(booking.id, locked.id, lock_key="mine").slot_id == locked.id
    assert engine.check(lock) is None


def test_a_cancelled_booking_moves_without_a_place(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make
) -> None:
    """It takes nothing where it goes, and stays cancelled; a lock there stays too."""
    target = engine.create_slot(new_slot())
    lock = engine.lock(target.id, lock_key="mine", lock_for=MINUTE)
    engine.cancel_booking(booking.id)
    assert engine.reschedule_booking(booking.id, target.id, lock_key="mine").status == "cancelled"
    assert (counters(engine, slot.id), counters(engine, target.id)) == ((0, 0, 0), (1, 0, 1))
    assert engine.check(lock) == lock


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_deleted_booking_is_gone_from_everywhere(
    engine: LockEngine, slot: Slot, booking: Booking, raw: redis.Redis, lock_namespace: str, cancelled: bool
) -> None:
    """And its slot counts it no longer."""
    if cancelled:
        engine.cancel_booking(booking.id)
    assert engine.delete_booking(booking.id) is True
    assert counters(engine, slot.id) == (0, 0, 0)
    with pytest.raises(BookingNotFound):
        engine.get_booking(booking.id)
    assert raw.keys(f"{lock_namespace}:booking*") == []


def test_a_slot_with_active_bookings_stays(engine: LockEngine, slot: Slot, booking: Booking) -> None:
    """Cancelled ones go with it."""
    with pytest.raises(SlotHasBookings):
        engine.delete_slot(slot.id)
    engine.cancel_booking(booking.id)
    assert engine.delete_slot(slot.id) is True
    with pytest.raises(BookingNotFound):
        engine.get_booking(booking.id)


@pytest.mark.parametrize("way", ["delete", "prune"])
def test_very_many_cancelled_bookings_go_with_their_slot(
    lock_engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, way: str
) -> None:
    """In several calls, so that none holds the server for long; another slot's bookings stay."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    slots = [new_slot(id=f"s{i}", capacity=2000, start_date=start, end_date=start + MINUTE) for i in range(3)]
    lock_engine.create_slots(slots)

    async def book_and_cancel() -> None:
        async with AsyncLockEngine.from_url(
            f"unix://{raw.connection_pool.connection_kwargs['path']}", namespace=lock_namespace
        ) as engine:
            bookings = await asyncio.gather(*(engine.book("s1") for _ in range(1300)))
            await asyncio.gather(*(engine.cancel_booking(booking.id) for booking in bookings))

    asyncio.run(book_and_cancel())
    other = lock_engine.book("s2")
    assert counters(lock_engine, "s1") == (1300, 0, 1300)
    if way == "delete":
        assert lock_engine.delete_slot("s1") is True
        assert lock_engine.delete_slot("s0") is True
    else:
        assert lock_engine.prune_slots(start + 2 * MINUTE) == 2
    assert lock_engine.list_bookings().bookings == (other,)
    assert raw.keys(f"{lock_namespace}:booking:*") == [f"{lock_namespace}:booking:{other.id}:record"]
    assert [slot.id for slot in lock_engine.list_slots().slots] == ["s2"]


def test_the_list_is_in_the_order_of_making(engine: LockEngine, new_slot: Make) -> None:
    """All, or by slot, resource and status; in pages with a total."""
    a, b = engine.create_slots([new_slot(capacity=9, resource_id="r1"), new_slot(capacity=9, resource_id="r2")])
    made = [engine.book(slot.id, booking_id=f"b{i}").id for i, slot in enumerate((a, b, a, b, a))]
    for booking_id in (made[0], made[3]):
        engine.cancel_booking(booking_id)

    def listed(**filters: object) -> list[str]:
        return [booking.id for booking in engine.list_bookings(**filters).bookings]  # type: ignore[arg-type]  # made up

    assert listed() == made
    assert listed(slot_id=a.id) == listed(resource_id="r1") == [made[0], made[2], made[4]]
    assert listed(status="cancelled") == [made[0], made[3]]
    assert listed(status="active", resource_id="r1") == [made[2], made[4]]
    assert listed(slot_id=a.id, resource_id="r2") == []
    assert engine.list_bookings(slot_id=a.id, resource_id="r2").total == 0
    assert listed(slot_id="nowhere") == []
    page = engine.list_bookings(limit=2, page=2)
    assert ([booking.id for booking in page.bookings], page.total, page.limit, page.page) == (made[2:4], 5, 2, 2)
    page = engine.list_bookings(status="active", limit=2, page=2)
    assert ([booking.id for booking in page.bookings], page.total) == ([made[4]], 3)
    with pytest.raises(InvalidArgument, match="status"):
        engine.list_bookings(status="gone")  # type: ignore[arg-type]  # on purpose


def test_a_filter_that_no_index_serves_is_answered_whole(
    lock_engine: LockEngine, new_slot: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several calls, each of which looks at a chunk."""
    monkeypatch.setattr("overbooked_lock.operations.CHUNK", 4)
    slot = lock_engine.create_slot(new_slot(capacity=50))
    ids = [lock_engine.book(slot.id, booking_id=f"b{i:02}").id for i in range(22)]
    for booking_id in ids[::2]:
        lock_engine.cancel_booking(booking_id)
    page = lock_engine.list_bookings(status="active", limit=4, page=2)
    assert ([booking.id for booking in page.bookings], page.total) == (ids[9:17:2], 11)


def test_a_booking_that_is_none_of_ours_fails_alone(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """A key of another type, or another text."""
    raw.lpush(f"{lock_namespace}:booking:list:record", "not ours")
    raw.set(f"{lock_namespace}:booking:text:record", "not ours")
    for booking_id in ("list", "text"):
        for call in (engine.get_booking, engine.cancel_booking, engine.enable_booking, engine.delete_booking):
            with pytest.raises(StoreCorrupt, match=booking_id):
                call(booking_id)
        with pytest.raises(StoreCorrupt):
            engine.reschedule_booking(booking_id, slot.id)


async def test_a_booking_that_cannot_be_read_costs_its_neighbours_nothing(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Its metadata is no JSON, say: the scripts never look at that."""
    raw.set(f"{lock_namespace}:booking:bad:record", f"1AN 1 1\n{slot.id}\nr\nnot json")
    await async_lock_engine.book(slot.id, booking_id="good")
    good, bad = await asyncio.gather(
        *(async_lock_engine.get_booking(booking_id) for booking_id in ("good", "bad")), return_exceptions=True
    )
    assert isinstance(good, Booking)
    assert isinstance(bad, StoreCorrupt)
    with pytest.raises(StoreCorrupt, match="bad"):
        Booking.from_record("bad", b"1")


@pytest.mark.parametrize("cancelled", [False, True])
def test_no_booking_moves_to_a_slot_whose_record_is_cut_off(
    engine: LockEngine,
    slot: Slot,
    booking: Booking,
    new_slot: Make,
    raw: redis.Redis,
    lock_namespace: str,
    cancelled: bool,
) -> None:
    """It is found out before the first write."""
    target = engine.create_slot(new_slot())
    raw.set(f"{lock_namespace}:slot:{target.id}:record", "3LA 0 0 1 junk")
    if cancelled:
        booking = engine.cancel_booking(booking.id)
    before = counters(engine, slot.id)
    with pytest.raises(StoreCorrupt):
        engine.reschedule_booking(booking.id, target.id)
    assert engine.get_booking(booking.id) == booking
    assert counters(engine, slot.id) == before


@pytest.mark.parametrize("way", ["delete", "prune"])
@pytest.mark.parametrize("now", ["gone", "a list", "a text"])
def test_a_slot_goes_although_a_bookings_record_was_lost(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, way: str, now: str
) -> None:
    """With all that the indexes know of the booking."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    engine.create_slot(new_slot(id="s", capacity=2, start_date=start, end_date=start + MINUTE))
    for booking_id in ("b1", "b2"):
        engine.book("s", booking_id=booking_id)
        engine.cancel_booking(booking_id)
    raw.delete(f"{lock_namespace}:booking:b2:record")
    if now == "a list":
        raw.rpush(f"{lock_namespace}:booking:b2:record", "not ours")
    elif now == "a text":
        raw.set(f"{lock_namespace}:booking:b2:record", "not ours")
    assert engine.delete_slot("s") is True if way == "delete" else engine.prune_slots(start + 2 * MINUTE) == 1
    assert raw.keys(f"{lock_namespace}:*") == [f"{lock_namespace}:slots:events"]


def test_a_slot_that_was_lost_and_registered_again_never_counts_below_0(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """It does not know the bookings it had; what becomes of them must not spoil it."""
    key, again = f"{lock_namespace}:slot:{slot.id}:record", new_slot(id=slot.id)
    raw.delete(key)
    assert engine.cancel_booking(booking.id).status == "cancelled"
    with pytest.raises(SlotNotFound, match=slot.id):
        engine.enable_booking(booking.id)
    engine.create_slot(again)
    assert engine.enable_booking(booking.id).status == "active"
    assert counters(engine, slot.id) == (1, 1, 0)
    raw.delete(key)
    engine.create_slot(again)
    engine.cancel_booking(booking.id)
    assert counters(engine, slot.id) == (1, 0, 1)
    engine.delete_booking(booking.id)
    assert counters(engine, slot.id) == (0, 0, 0)


def test_ids_with_odd_characters(engine: LockEngine, new_slot: Make) -> None:
    """Long ones, patterns, and those that begin alike: each finds its own bookings."""
    ids = [
        "a",
        "a b",
        "a\u00a0",
        "a%d",
        "%1",
        "a:lock",
        "*",
        "[",
        "(",
        "{x}",
        "\u2028",
        "+",
        "a\\",
        "x" * 254,
        "😀" * 254,
    ]
    engine.create_slots([new_slot(id=name, resource_id=name, capacity=2) for name in ids])
    for number in "12":
        for name in ids:
            engine.book(name, booking_id=number + name)
    for name in ids:
        engine.cancel_booking("2" + name)
        owners: list[dict[str, Any]] = [
            {"slot_id": name},
            {"resource_id": name},
            {"slot_id": name, "resource_id": name},
        ]
        for owner in owners:
            page = engine.list_bookings(**owner)
            assert ([booking.id for booking in page.bookings], page.total) == (["1" + name, "2" + name], 2)
            page = engine.list_bookings(**owner, status="active", limit=512, page=10**9)
            assert (page.bookings, page.total) == ((), 1)
            page = engine.list_bookings(**owner, limit=512, page=10**9)
            assert (page.bookings, page.total) == ((), 2)
        engine.cancel_booking("1" + name)
        assert engine.delete_slot(name)
    assert engine.list_bookings().total == 0


async def test_merged_calls_on_one_booking_see_each_other(
    async_lock_engine: AsyncLockEngine, slot: Slot, new_slot: Make
) -> None:
    """Cancelled, enabled and moved at one time, it is counted once in one place."""
    target = await async_lock_engine.create_slot(new_slot())
    booking = await async_lock_engine.book(slot.id)
    for _ in range(5):
        await asyncio.gather(
            *(async_lock_engine.cancel_booking(booking.id) for _ in range(3)),
            *(async_lock_engine.enable_booking(booking.id) for _ in range(3)),
            *(async_lock_engine.reschedule_booking(booking.id, s) for s in (slot.id, target.id, slot.id)),
        )
        now = await async_lock_engine.get_booking(booking.id)
        for one in (slot.id, target.id):
            counted = await async_lock_engine.get_slot(one)
            here = now.slot_id == one
            assert counted.num_active_bookings == (here and now.status == "active")
            assert counted.num_cancelled_bookings == (here and now.status == "cancelled")
    await asyncio.gather(*(async_lock_engine.delete_booking(booking.id) for _ in range(3)))
    assert (await async_lock_engine.get_slot(target.id)).num_bookings == 0


async def test_merged_updates_of_one_slot_see_each_other(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """Changes to different fields at one time all stand."""
    await asyncio.gather(
        async_lock_engine.update_slot(slot.id, capacity=5),
        async_lock_engine.update_slot(slot.id, lockable=False),
        async_lock_engine.update_slot(slot.id, metadata={"a": 1}),
        async_lock_engine.disable_slot(slot.id),
    )
    now = await async_lock_engine.get_slot(slot.id)
    assert (now.capacity, now.lockable, now.metadata, now.status) == (5, False, {"a": 1}, "disabled")


@pytest.mark.parametrize("way", ["delete", "prune"])
@pytest.mark.parametrize("kind", ["slots:locks", "slots:expiry", "slots:starts", "slots:resources"])
def test_no_slot_is_half_removed_where_a_shared_key_is_wrong(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, kind: str, way: str
) -> None:
    """The script ends before its first write: the cancelled booking is still there."""
    start = datetime(2020, 1, 1, tzinfo=UTC)
    engine.create_slot(new_slot(id="s", start_date=start, end_date=start + MINUTE))
    booking = engine.cancel_booking(engine.book("s").id)
    raw.delete(f"{lock_namespace}:{kind}")
    raw.set(f"{lock_namespace}:{kind}", "not ours")
    with pytest.raises(StoreUnavailable) as failed:
        engine.delete_slot("s") if way == "delete" else engine.prune_slots(start + 2 * MINUTE)
    assert failed.value.outcome == "not_applied"
    raw.delete(f"{lock_namespace}:{kind}")
    assert engine.get_booking(booking.id) == booking
    assert counters(engine, "s") == (1, 0, 1)


def test_a_change_is_dated_and_another_format_is_not_read(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """``updated_at`` by Redis' clock; a record of a future version is none of ours."""
    raw.set(f"{lock_namespace}:booking:old:record", f"1AN 1 1\n{slot.id}\nr\n{{}}")
    assert engine.cancel_booking("old").updated_at > slot.updated_at - MINUTE
    raw.set(f"{lock_namespace}:booking:new:record", f"2AN 1 1\n{slot.id}\nr\n{{}}")
    with pytest.raises(StoreCorrupt, match="new"):
        engine.get_booking("new")


@pytest.mark.parametrize("verb", ["enable_booking", "reschedule_booking"])
def test_a_place_taken_again_tells_of_the_lock_as_a_new_booking_does(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make, verb: str
) -> None:
    """Until when another holds the slot; and whether the key that was given had kept anything."""
    target, arguments = slot, [booking.id]
    if verb == "reschedule_booking":
        target = engine.create_slot(new_slot())
        arguments += [target.id]
    else:
        engine.cancel_booking(booking.id)
    lock = engine.lock(target.id, lock_key="mine", lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        getattr(engine, verb)(*arguments)
    assert refused.value.locked_until == lock.locked_until
    engine.unlock(lock)
    assert getattr(engine, verb)(*arguments, lock_key="mine").lock_expired


def test_a_cancelled_booking_moves_to_a_slot_that_nobody_can_book(
    engine: LockEngine, slot: Slot, booking: Booking, new_slot: Make
) -> None:
    """It takes no place; but the slot must be there."""
    closed = engine.create_slot(new_slot(status="disabled"))
    engine.cancel_booking(booking.id)
    with pytest.raises(SlotNotFound, match="nowhere"):
        engine.reschedule_booking(booking.id, "nowhere")
    assert engine.reschedule_booking(booking.id, closed.id).slot_id == closed.id
    assert (counters(engine, slot.id), counters(engine, closed.id)) == ((0, 0, 0), (1, 0, 1))
