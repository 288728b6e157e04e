"""Bookings made, cancelled, enabled, moved and deleted by many at one time: counters, capacity and lists agree."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from overbooked_lock import (
    AsyncLockEngine,
    Booking,
    BookingNotFound,
    EmbeddedServer,
    LockEngine,
    NewSlot,
    SlotHasBookings,
    SlotLocked,
    SlotNotBookable,
    SlotNotFound,
    SlotNotLockable,
)

REFUSALS = (BookingNotFound, SlotHasBookings, SlotLocked, SlotNotBookable, SlotNotFound, SlotNotLockable)
SLOTS, CAPACITY = [f"s{i}" for i in range(5)], 3
MINUTE = timedelta(minutes=1)


async def _one_move(engine: AsyncLockEngine, dice: random.Random, known: list[str]) -> None:
    slot_id, booking_id = dice.choice(SLOTS), dice.choice(known) if known else "none"
    match dice.randrange(8):
        case 0 | 1:
            known.append((await engine.book(slot_id)).id)
        case 2:
            lock = await engine.lock(slot_id, lock_for=MINUTE)
            try:
                booking = await engine.book(lock)
            except SlotNotBookable:
                await engine.unlock(lock)
                raise
            assert not booking.lock_expired
            known.append(booking.id)
        case 3 | 4:
            await engine.cancel_booking(booking_id)
        case 5:
            await engine.enable_booking(booking_id)
        case 6:
            await engine.reschedule_booking(booking_id, slot_id)
        case 7:
            await engine.delete_booking(booking_id)


def test_counters_equal_a_recount_whatever_interleaves(
    lock_server: EmbeddedServer,
    lock_namespace: str,
    lock_engine: LockEngine,
    new_slot: Callable[..., NewSlot],
    soak: bool,
) -> None:
    """Several engines, merged calls and single ones; the counters are right at any moment, and so are the lists."""
    lock_engine.create_slots([new_slot(id=slot_id, capacity=CAPACITY) for slot_id in SLOTS])
    end = time.monotonic() + (60 if soak else 3)
    known: list[str] = []
    moves: Counter[str] = Counter()

    async def crowd(seed: int) -> None:
        async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:

            async def caller(dice: random.Random) -> None:
                while time.monotonic() < end:
                    try:
                        await _one_move(engine, dice, known)
                        moves["done"] += 1
                    except REFUSALS as refusal:
                        moves[type(refusal).__name__] += 1

            await asyncio.gather(*(caller(random.Random(f"{seed} {i}")) for i in range(15)))

    def watch() -> None:
        while time.monotonic() < end:
            for slot_id in SLOTS:
                slot = lock_engine.get_slot(slot_id)
                assert 0 <= slot.num_active_bookings <= CAPACITY
                assert slot.num_cancelled_bookings >= 0
                assert slot.num_bookings == slot.num_active_bookings + slot.num_cancelled_bookings

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(asyncio.run, crowd(seed)) for seed in range(3)] + [pool.submit(watch)]
        for future in futures:
            future.result()

    assert moves["done"] > 100
    assert moves["SlotNotBookable"] > 10
    bookings = _all_bookings(lock_engine)
    for slot_id in SLOTS:
        slot = lock_engine.get_slot(slot_id)
        statuses = Counter(booking.status for booking in bookings if booking.slot_id == slot_id)
        assert (slot.num_active_bookings, slot.num_cancelled_bookings) == (statuses["active"], statuses["cancelled"])
        assert lock_engine.list_bookings(slot_id=slot_id).total == statuses.total()
        assert slot.locked_until is None
    assert lock_engine.list_bookings(resource_id="court-1").total == len(bookings)


def test_nobody_books_what_another_holds(
    lock_server: EmbeddedServer, lock_namespace: str, lock_engine: LockEngine, new_slot: Callable[..., NewSlot]
) -> None:
    """Between a lock and its unlock only its holder books, whoever else tries."""
    slot = lock_engine.create_slot(new_slot(capacity=10_000))
    end = time.monotonic() + 2
    holder_now = [""]

    def holder(name: str) -> int:
        booked = 0
        with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
            while time.monotonic() < end:
                try:
                    lock = engine.lock(slot.id, lock_for=MINUTE)
                except SlotLocked:
                    continue
                holder_now[0] = name
                before = engine.get_slot(slot.id).num_bookings
                after = engine.get_slot(slot.id).num_bookings
                assert before == after, "somebody booked what we hold"
                assert holder_now == [name]
                engine.book(lock)
                booked += 1
        return booked

    def stranger() -> int:
        booked = 0
        with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
            while time.monotonic() < end:
                try:
                    engine.book(slot.id)
                    booked += 1
                except SlotLocked:
                    pass
        return booked

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(holder, f"holder {i}") for i in range(2)] + [pool.submit(stranger) for _ in range(2)]
        booked = [future.result() for future in futures]
    assert all(booked)
    assert lock_engine.get_slot(slot.id).num_active_bookings == sum(booked)


def _all_bookings(engine: LockEngine) -> list[Booking]:
    bookings: list[Booking] = []
    page = 1
    while found := engine.list_bookings(limit=512, page=page).bookings:
        bookings += found
        page += 1
    return bookings
