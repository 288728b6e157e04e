"""What overbooked-lock alone does: rows of seats, a hotspot, lists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis
import uvloop

from benchmarks import server_stats
from benchmarks.crowd import PER_CALL, register
from benchmarks.measuring import LOCK_FOR, Spread, registered_slot, settle
from overbooked_lock import AsyncLockEngine, LockEngine, NewSlot, SlotLocked

SEATS = 100
HOTSPOT_CALLERS = 10_000

SLOTS_A_DAY = 5_000
FIRST_DAY = datetime(2030, 1, 1, tzinfo=UTC)
RESOURCE = "the-one-resource"
PAGE = 50
REPEATS = 21


class Row(NamedTuple):
    """A row of seats: milliseconds of ``lock_many``, alone and with the payload of every seat read."""

    alone: Spread
    with_payload: Spread


def lock_a_row(url: str, seconds: float) -> Row:
    """One caller locks all seats of a row or none, and unlocks them, over and over."""

    async def work() -> Row:
        async with AsyncLockEngine.from_url(url) as engine:
            ids = [
                slot.id for slot in await engine.create_slots(registered_slot(f"seat-{seat}") for seat in range(SEATS))
            ]
            for _ in range(3):
                await engine.unlock_many(await engine.lock_many(ids, lock_for=LOCK_FOR))
            settle()
            alone: list[float] = []
            read: list[float] = []
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or not read:
                start = time.perf_counter()
                locks = await engine.lock_many(ids, lock_for=LOCK_FOR)
                locked = time.perf_counter()
                slots = [lock.slot for lock in locks]
                assert all(slot is not None and slot.available for slot in slots)
                read.append((time.perf_counter() - start) * 1000)
                alone.append((locked - start) * 1000)
                await engine.unlock_many(locks)
            return Row(Spread.of(alone), Spread.of(read))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def rush(url: str, rounds: int) -> Spread:
    """All callers want one slot at the same time: one gets it, the others are told so. Answers a second."""

    async def work() -> Spread:
        rates = []
        async with AsyncLockEngine.from_url(url) as engine:
            for number in range(rounds + 1):
                slot = await engine.create_slot(registered_slot(f"hotspot-{number}"))
                settle()
                start = time.perf_counter()
                wishes = (engine.lock(slot.id, lock_for=LOCK_FOR) for _ in range(HOTSPOT_CALLERS))
                answers = await asyncio.gather(*wishes, return_exceptions=True)
                rates.append(HOTSPOT_CALLERS / (time.perf_counter() - start))
                refused = [answer for answer in answers if isinstance(answer, SlotLocked)]
                assert len(refused) == HOTSPOT_CALLERS - 1
                assert all(answer.locked_until for answer in refused)
        return Spread.of(rates[1:])  # the first was for warming up

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


class Lists(NamedTuple):
    """Milliseconds of the page that takes longest, and of the longest call that the server carried out."""

    slots: int
    unfiltered: Spread
    available: Spread
    longest_call: float | None
    """None if no call took a millisecond."""


def listed_slot(number: int) -> NewSlot:
    day, place = divmod(number, SLOTS_A_DAY)
    start = FIRST_DAY + timedelta(days=day, seconds=10 * place)
    metadata = {"seat": place, "price": {"amount": 3200, "currency": "EUR"}}
    return NewSlot(
        id=f"listed-{number}",
        resource_id=RESOURCE,
        start_date=start,
        end_date=start + timedelta(seconds=10),
        metadata=metadata,
    )


def read_lists(url: str, slots: int) -> Lists:
    """Pages of a resource with that many slots: of all of them, and of those of a day that are to be had."""
    register(url, slots, listed_slot, locked=False)
    a_day = min(slots, SLOTS_A_DAY)
    day = (slots - 1) // SLOTS_A_DAY // 2
    begin = FIRST_DAY + timedelta(days=day)
    with LockEngine.from_url(url) as engine, redis.Redis.from_url(url) as admin:
        taken = [f"listed-{day * SLOTS_A_DAY + place}" for place in range(0, a_day, 2)]
        for first in range(0, len(taken), PER_CALL):
            engine.lock_many(taken[first : first + PER_CALL], lock_for=timedelta(hours=1))
        server_stats.watch_slow_calls(admin)

        def page_of_all(page: int) -> None:
            found = engine.list_slots(resource_id=RESOURCE, limit=PAGE, page=page)
            assert (len(found.slots), found.total) == (PAGE, slots)

        def page_of_a_day(page: int) -> None:
            found = engine.list_slots(
                resource_id=RESOURCE,
                start_date=begin,
                end_date=begin + timedelta(days=1),
                available=True,
                limit=PAGE,
                page=page,
            )
            assert (len(found.slots), found.total) == (PAGE, a_day - len(taken))

        unfiltered = _slowest(page_of_all, slots // PAGE)
        available = _slowest(page_of_a_day, (a_day - len(taken)) // PAGE)
        longest = server_stats.longest_call(admin)
    return Lists(slots, unfiltered, available, None if longest is None else longest / 1000)


def _slowest(read: Callable[[int], None], pages: int) -> Spread:
    """Of the first page, the middle one and the last, the one that takes longest."""
    spreads = []
    for page in (1, (pages + 1) // 2, pages):
        took = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            read(page)
            took.append((time.perf_counter() - start) * 1000)
        spreads.append(Spread.of(took))
    return max(spreads, key=lambda spread: spread.median)
