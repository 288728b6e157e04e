"""fair: who waits in line for a slot gets it in the order of arrival, and nobody gets it before."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    InvalidArgument,
    Lock,
    LockEngine,
    NewSlot,
    Quota,
    Slot,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    StoreUnavailable,
    TooManyLocks,
    calls,
    locks,
    waiting,
)
from overbooked_lock.keys import Keys

MINUTE = timedelta(minutes=1)
LONG = timedelta(seconds=20)
BLINK = timedelta(milliseconds=40)
TICKET_LIVES = 3.0
"""Seconds, as promised."""

Make = Callable[..., NewSlot]


class Caller:
    """An engine, sync or async, whose calls go on in the background."""

    def __init__(self, kind: str, url: str, namespace: str) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        options: dict[str, Any] = {"namespace": namespace}
        if kind == "sync":
            self._engine: Any = LockEngine.from_url(url, **options)
            self._pool = ThreadPoolExecutor(40)
        else:
            self._engine = AsyncLockEngine.from_url(url, **options)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever)
            self._thread.start()

    def start(self, verb: str, *args: Any, **options: Any) -> Future[Any]:
        call = getattr(self._engine, verb)
        if self._loop is None:
            return self._pool.submit(call, *args, **options)
        return asyncio.run_coroutine_threadsafe(call(*args, **options), self._loop)

    def wait(self, slot: Slot, **options: Any) -> Future[Any]:
        """Waits in line."""
        return self.start("lock", slot.id, **{"lock_for": MINUTE, "wait": LONG, "fair": True} | options)

    def use(self, slot: Slot, number: int, used: list[tuple[int, Lock]]) -> Future[None]:
        """Waits in line, notes the lock, and unlocks it."""

        def use() -> None:
            lock = self._engine.lock(slot.id, lock_for=MINUTE, wait=LONG, fair=True)
            used.append((number, lock))
            self._engine.unlock(lock)

        async def use_async() -> None:
            lock = await self._engine.lock(slot.id, lock_for=MINUTE, wait=LONG, fair=True)
            used.append((number, lock))
            await self._engine.unlock(lock)

        if self._loop is None:
            return self._pool.submit(use)
        return asyncio.run_coroutine_threadsafe(use_async(), self._loop)

    def close(self) -> None:
        self.start("close").result(10)
        if self._loop is None:
            self._pool.shutdown()
        else:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


@pytest.fixture(params=["sync", "async"])
def callers(request: pytest.FixtureRequest, lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[list[Caller]]:
    """Two engines of one kind, as of two processes."""
    callers = [Caller(request.param, lock_server.url, lock_namespace) for _ in range(2)]
    yield callers
    for caller in callers:
        caller.close()


@pytest.fixture
def caller(callers: list[Caller]) -> Caller:
    return callers[0]


class Line:
    """What the server knows of who waits in line."""

    def __init__(self, raw: redis.Redis, namespace: str) -> None:
        self._raw, self._keys = raw, Keys(namespace)
        self._settings = calls.Settings(self._keys, 86_400_000, "registered")
        self._tickets = itertools.count(1)

    def run(self, build: Callable[..., calls.Call[Any]], *requests: Any) -> list[Any]:
        call = build(self._settings, requests)
        reply = cast("list[Any]", self._raw.eval(call.script.source, len(call.keys), *call.keys, *call.args))
        encoded = [part.encode() if isinstance(part, str) else part for part in reply]
        return cast("list[Any]", call.parse(encoded, time.monotonic()))

    def join(self, slot: Slot, lock_key: str) -> str:
        """Somebody joins who is never heard of again; returns the ticket."""
        ticket = f"{next(self._tickets):016x}"
        request = locks.LockRequest(slot.id, lock_key, "+60000", key_is_new=True, ticket=ticket)
        [refused] = self.run(locks.lock_fair, request)
        assert isinstance(refused, SlotLocked)
        return ticket

    def come(self, slot: Slot, lock_key: str, ticket: str) -> Any:
        """The same one asks again."""
        request = locks.LockRequest(slot.id, lock_key, "+60000", key_is_new=True, ticket=ticket)
        return self.run(locks.lock_fair, request)[0]

    def leave(self, slot: Slot, lock_key: str, ticket: str) -> bool:
        [left] = self.run(waiting.leave_queue, waiting.LeaveRequest(slot.id, lock_key, ticket))
        return bool(left)

    def count(self, slot: Slot) -> int:
        return int(self._raw.zcard(self._keys.queue(slot.id)))

    def await_count(self, slot: Slot, count: int) -> None:
        deadline = time.monotonic() + 10
        while self.count(slot) != count:  # the server has no event for it
            assert time.monotonic() < deadline, f"{self.count(slot)} in line, and not {count}"

    def is_gone(self, slot: Slot) -> bool:
        return not self._raw.exists(self._keys.queue(slot.id), self._keys.tickets(slot.id))

    def events(self, slot: Slot) -> list[list[str]]:
        entries = cast("list[tuple[str, dict[str, str]]]", self._raw.xrange(self._keys.events))
        told = [line.split("\t") for _, fields in entries for line in fields["events"].split("\n")]
        return [line for line in told if line[1] == slot.id]

    def kinds(self, slot: Slot) -> list[str]:
        return [line[0] for line in self.events(slot)[1:]]

    def token_text(self, slot: Slot) -> str | None:
        held = cast("str | None", self._raw.hget(self._keys.locks, slot.id))
        return held.split(" ")[0] if held else None


@pytest.fixture
def line(raw: redis.Redis, lock_namespace: str) -> Line:
    return Line(raw, lock_namespace)


@pytest.fixture
def places(lock_engine: LockEngine, new_slot: Make) -> Slot:
    """A slot with two places."""
    return lock_engine.create_slot(new_slot(capacity=2))


# The order


def test_the_first_to_come_is_the_first_to_get_it(
    callers: list[Caller], lock_engine: LockEngine, slot: Slot, line: Line
) -> None:
    """Twenty, of two engines; their fencing tokens rise, and nothing is left behind."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    used: list[tuple[int, Lock]] = []
    waiting = []
    for number in range(20):
        waiting.append(callers[number % 2].use(slot, number, used))
        line.await_count(slot, number + 1)
    lock_engine.unlock(held)
    for done in waiting:
        done.result(10)
    assert [number for number, _ in used] == list(range(20))
    tokens = [lock.fencing_token for _, lock in used]
    assert tokens == sorted(set(tokens))
    assert tokens[0] > held.fencing_token
    assert line.is_gone(slot)
    assert line.token_text(slot) is None


def test_who_comes_in_one_call_comes_in_its_order(line: Line, lock_engine: LockEngine, slot: Slot) -> None:
    """An engine merges what its callers ask for at one time."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    requests = [
        locks.LockRequest(slot.id, f"key {number}", "+60000", key_is_new=True, ticket=f"{number:016x}")
        for number in reversed(range(10))
    ]
    line.run(locks.lock_fair, *requests)
    got = []
    lock_engine.unlock(held)
    for _ in requests:
        got.append(line.events(slot)[-1][5])
        lock_engine.force_unlock(slot.id)
    assert got == [request.ticket for request in requests]


def test_a_slot_that_is_given_and_free_ones_in_one_call(
    lock_engine: LockEngine, slot: Slot, new_slot: Make, line: Line, raw: redis.Redis, lock_namespace: str
) -> None:
    """What stands already and what is new are locked side by side, each until the date."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    ticket = line.join(slot, "mine")
    lock_engine.unlock(held)
    ids = [slot.id, *(free.id for free in lock_engine.create_slots(new_slot() for _ in range(4)))]
    requests = [locks.LockRequest(slot_id, "mine", "+60000", ticket=ticket) for slot_id in ids]
    mine = line.run(locks.lock_fair, *requests)
    assert [type(lock) for lock in mine] == [Lock] * 5
    assert [lock_engine.check(lock) for lock in mine] == mine
    names = [Keys(lock_namespace).lock(slot_id) for slot_id in ids]
    assert raw.mget(names) == ["mine"] * 5
    assert all(55_000 < raw.pttl(name) <= 60_000 for name in names)


def test_a_lock_that_was_waited_for_looks_newly_made(
    caller: Caller, lock_engine: LockEngine, slot: Slot, line: Line, redis_now: Callable[[], datetime]
) -> None:
    """It lasts as long as was asked for, also if that is less than a turn; its key held nothing before."""
    for lock_for in (MINUTE, timedelta(milliseconds=800)):
        held = lock_engine.lock(slot.id, lock_for=MINUTE)
        waiting = caller.wait(slot, lock_key="mine", lock_for=lock_for)
        line.await_count(slot, 1)
        lock_engine.unlock(held)
        lock = waiting.result(10)
        assert lock.lock_key == "mine"
        assert not lock.already_held
        assert lock.slot.id == slot.id
        assert timedelta(0) < lock.locked_until - redis_now() <= lock_for
        assert lock_engine.check(lock) == lock
        assert line.is_gone(slot)
        lock_engine.unlock(lock)


def test_a_free_slot_is_locked_at_once(caller: Caller, slot: Slot, line: Line) -> None:
    """Nobody waits where nobody is in the way, and no line is made."""
    assert caller.wait(slot).result(10).slot_id == slot.id
    assert line.is_gone(slot)


def test_the_line_moves_without_asking(callers: list[Caller], lock_engine: LockEngine, slot: Slot, line: Line) -> None:
    """One waiter wakes for a turn, and not all who wait."""
    raw = line._raw
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    waiting = []
    for number in range(30):
        waiting.append(callers[number % 2].wait(slot))
        line.await_count(slot, number + 1)
    lives = _calls(raw, "pexpireat")
    lock_engine.unlock(held)
    assert waiting[0].result(10)
    # Each call of one who waits prolongs the keys of the line: two commands. Renewals go on, one a second and waiter.
    assert _calls(raw, "pexpireat") - lives < 30
    lock_engine.force_unlock(slot.id)
    assert waiting[1].result(10)


def _calls(raw: redis.Redis, command: str) -> int:
    statistics: dict[str, Any] = raw.info("commandstats")
    return int(statistics.get(f"cmdstat_{command}", {}).get("calls", 0))


# Others


@pytest.mark.parametrize("end", ["unlock", "force_unlock", "book", "expiry", "expiry, told of"])
def test_nobody_gets_in_before(
    engine: LockEngine, places: Slot, line: Line, await_expiry: Callable[[str], None], end: str
) -> None:
    """Whatever ended the lock: it is the turn of the first in line, and the slot is available to nobody else."""
    by_date = end.startswith("expiry")
    held = engine.lock(places.id, lock_for=BLINK * 2 if by_date else MINUTE)
    ticket = line.join(places, "first")
    line.join(places, "second")
    if by_date:
        await_expiry(places.id)
        if end == "expiry, told of":
            engine.sweep()
    elif end == "book":
        engine.book(held)
    elif end == "unlock":
        after = engine.unlock(held)
        assert after.released
        assert after.slot is not None
        assert not after.slot.available
    else:
        engine.force_unlock(places.id)
    with pytest.raises(SlotLocked) as refused:
        engine.lock(places.id, lock_for=MINUTE)
    assert timedelta(0) < refused.value.retry_after <= timedelta(seconds=TICKET_LIVES)
    with pytest.raises(SlotLocked):
        engine.lock_many([places.id], lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock(places.id, lock_for=MINUTE, wait=timedelta(0), fair=True)
    for call in (lambda: engine.book(places.id), lambda: engine.book(held), lambda: engine.book_many([places.id])):
        with pytest.raises(SlotLocked) as not_booked:
            call()
        assert not_booked.value.code == "E050"
    seen = engine.get_slot(places.id)
    assert not seen.available
    assert seen.locked_until == refused.value.locked_until
    assert engine.get_slot(places.id, lock_key="first").available
    assert not engine.get_slot(places.id, lock_key="second").available
    assert [slot.available for slot in engine.list_slots().slots] == [False]
    assert engine.list_slots(available=True).total == 0
    lock = line.come(places, "first", ticket)
    assert isinstance(lock, Lock)
    assert lock.fencing_token > held.fencing_token
    assert not lock.already_held


@pytest.mark.parametrize("sweeps", [True, False])
def test_an_end_by_date_is_told_before_the_turn(
    engine: LockEngine, slot: Slot, line: Line, new_slot: Make, await_expiry: Callable[[str], None], sweeps: bool
) -> None:
    """By the sweeper, or by a lock of another slot on its way."""
    engine.lock(slot.id, lock_for=BLINK * 2)
    ticket = line.join(slot, "first")
    await_expiry(slot.id)
    if sweeps:
        assert engine.sweep() == 1
    else:
        engine.lock(engine.create_slot(new_slot()).id, lock_for=MINUTE)
    assert line.kinds(slot) == ["locked", "expired", "locked"]
    assert line.events(slot)[-1][5] == ticket
    assert engine.sweep() == 0
    assert [lock.fencing_token for lock in engine.list_locks() if lock.slot_id == slot.id] == [
        int(line.events(slot)[-1][4])
    ]


def test_who_waits_unfairly_gets_it_when_the_line_is_over(
    callers: list[Caller], lock_engine: LockEngine, slot: Slot, line: Line
) -> None:
    """They wake when nobody in line wants it."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    unfair = callers[0].wait(slot, fair=False)
    fair = callers[1].wait(slot)
    line.await_count(slot, 1)
    lock_engine.unlock(held)
    lock = fair.result(10)
    assert not unfair.done()
    lock_engine.unlock(lock)
    assert unfair.result(10).fencing_token > lock.fencing_token


def test_extending_the_lock_keeps_the_line(engine: LockEngine, slot: Slot, line: Line) -> None:
    """And so does locking it again with the same key."""
    held = engine.lock(slot.id, lock_for=MINUTE)
    ticket = line.join(slot, "first")
    held = engine.extend(held, lock_for=MINUTE * 2)
    held = engine.lock(slot.id, lock_key=held.lock_key, lock_for=MINUTE * 3)
    assert held.already_held
    engine.unlock(held)
    assert line.events(slot)[-1][5] == ticket


# Who does not come


def test_the_dead_delay_the_next_by_no_more_than_a_tickets_life(
    caller: Caller, lock_engine: LockEngine, slot: Slot, line: Line
) -> None:
    """Whatever their number."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    for number in range(100):
        line.join(slot, f"dead {number}")
    died = time.monotonic()
    waiting = caller.wait(slot)
    line.await_count(slot, 101)
    lock_engine.unlock(held)
    waiting.result(10)
    assert TICKET_LIVES - 1 < time.monotonic() - died < TICKET_LIVES + 0.5
    assert line.kinds(slot)[:3] == ["locked", "unlocked", "locked"]
    assert line.is_gone(slot)


def test_the_dead_get_no_turn(
    engine: LockEngine, slot: Slot, line: Line, raw: redis.Redis, lock_namespace: str
) -> None:
    """Whose ticket has died is passed over in the same step."""
    held = engine.lock(slot.id, lock_for=MINUTE)
    dead, second = line.join(slot, "dead"), line.join(slot, "second")
    raw.hset(Keys(lock_namespace).tickets(slot.id), dead, "1000 0 dead")
    engine.unlock(held)
    assert line.kinds(slot) == ["locked", "unlocked", "locked"]
    assert line.events(slot)[-1][5] == second
    assert line.count(slot) == 1


def test_nobody_gets_a_turn_on_a_closed_slot(engine: LockEngine, slot: Slot, line: Line) -> None:
    """Those in line learn that it is closed when they ask."""
    held = engine.lock(slot.id, lock_for=MINUTE)
    line.join(slot, "first")
    engine.disable_slot(slot.id)
    engine.unlock(held)
    assert line.kinds(slot)[-1] == "unlocked"


@pytest.mark.parametrize("has_its_turn", [True, False])
def test_who_leaves_delays_nobody(engine: LockEngine, slot: Slot, line: Line, has_its_turn: bool) -> None:
    """In line, or with the slot given to it already: then it goes on to the next in the same step."""
    held = engine.lock(slot.id, lock_for=MINUTE)
    first, second = line.join(slot, "first"), line.join(slot, "second")
    if has_its_turn:
        engine.unlock(held)
        assert line.events(slot)[-1][5] == first
    assert not line.leave(slot, "not its key", first)
    assert line.leave(slot, "first", first)
    if not has_its_turn:
        engine.unlock(held)
    assert line.events(slot)[-1][5] == second
    assert line.kinds(slot)[-2:] == ["unlocked", "locked"]
    assert not line.leave(slot, "first", first)
    lock = line.come(slot, "second", second)
    assert not line.leave(slot, "second", second)
    assert engine.check(lock) == lock
    engine.unlock(lock)
    assert line.is_gone(slot)


@pytest.mark.parametrize("how", ["gives up", "closes"])
def test_a_waiter_that_gives_up_leaves_the_line(
    callers: list[Caller], lock_engine: LockEngine, slot: Slot, line: Line, how: str
) -> None:
    """At its deadline, or when its engine is closed: the next gets the slot at once."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    first = callers[0].wait(slot, wait=timedelta(seconds=1) if how == "gives up" else LONG)
    line.await_count(slot, 1)
    second = callers[1].wait(slot)
    line.await_count(slot, 2)
    if how == "gives up":
        with pytest.raises(SlotLocked) as refused:
            first.result(10)
        assert refused.value.locked_until == held.locked_until
    else:
        callers[0].start("close").result(10)
        with pytest.raises(StoreUnavailable, match="closed"):
            first.result(10)
    line.await_count(slot, 1)
    lock_engine.unlock(held)
    second.result(1)


def test_a_cancelled_waiter_leaves_the_line(
    lock_server: EmbeddedServer, lock_namespace: str, lock_engine: LockEngine, slot: Slot, line: Line
) -> None:
    """The next gets the slot at once."""
    caller = Caller("async", lock_server.url, lock_namespace)
    try:
        held = lock_engine.lock(slot.id, lock_for=MINUTE)
        first = caller.wait(slot)
        line.await_count(slot, 1)
        second = caller.wait(slot)
        line.await_count(slot, 2)
        first.cancel()
        line.await_count(slot, 1)
        lock_engine.unlock(held)
        second.result(1)
    finally:
        caller.close()


@pytest.mark.parametrize("what", ["delete_slot", "disable_slot", "book"])
def test_a_slot_that_goes_is_not_waited_for(
    callers: list[Caller], lock_engine: LockEngine, slot: Slot, line: Line, what: str
) -> None:
    """Deleted, disabled or full: each in line learns it at once, and the line is over."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    waiting = [caller.wait(slot) for caller in callers]
    line.await_count(slot, 2)
    getattr(lock_engine, what)(held if what == "book" else slot.id)
    for refused in waiting:
        with pytest.raises(SlotNotFound if what == "delete_slot" else SlotNotLockable):
            refused.result(10)
    line.await_count(slot, 0)
    assert line.is_gone(slot)


def test_deleting_a_slot_removes_its_line(engine: LockEngine, slot: Slot, line: Line) -> None:
    """With the keys of those who waited."""
    engine.lock(slot.id, lock_for=MINUTE)
    line.join(slot, "first")
    engine.delete_slot(slot.id)
    assert line.is_gone(slot)
    assert line.token_text(slot) is None


def test_a_slot_that_is_about_to_go_to_the_first_in_line_is_not_pruned(
    engine: LockEngine, slot: Slot, line: Line, raw: redis.Redis, lock_namespace: str,
    await_expiry: Callable[[str], None],
) -> None:  # fmt: skip
    """Whether or not it was noticed that the lock before has ended. With nobody alive in line it goes, and the line."""
    engine.lock(slot.id, lock_for=BLINK)
    first = line.join(slot, "first")
    await_expiry(slot.id)
    assert engine.prune_slots(slot.end_date) == 0
    lock = line.come(slot, "first", first)
    assert lock.locked_until > slot.created_at
    engine.unlock(lock)
    engine.lock(slot.id, lock_for=BLINK)
    dead = line.join(slot, "dead")
    await_expiry(slot.id)
    raw.hset(Keys(lock_namespace).tickets(slot.id), dead, "1000 0 dead")
    assert engine.prune_slots(slot.end_date) == 1
    assert line.is_gone(slot)
    assert line.kinds(slot)[-2:] == ["expired", "slot_deleted"]


def test_a_disabled_slot_is_pruned_with_its_line(
    engine: LockEngine, slot: Slot, line: Line, await_expiry: Callable[[str], None]
) -> None:
    """Nobody in line can get it."""
    engine.lock(slot.id, lock_for=BLINK)
    line.join(slot, "first")
    engine.disable_slot(slot.id)
    await_expiry(slot.id)
    assert engine.prune_slots(slot.end_date) == 1
    assert line.is_gone(slot)


def test_a_line_that_nobody_renews_goes_by_itself(
    engine: LockEngine, slot: Slot, line: Line, raw: redis.Redis, lock_namespace: str
) -> None:
    """Redis ends its keys when the last ticket dies."""
    engine.lock(slot.id, lock_for=MINUTE)
    line.join(slot, "first")
    keys = Keys(lock_namespace)
    for name in (keys.queue(slot.id), keys.tickets(slot.id)):
        assert 0 < raw.pttl(name) <= TICKET_LIVES * 1000


# With the rest


def test_a_booking_gives_the_slot_to_the_next(engine: LockEngine, places: Slot, line: Line) -> None:
    """If a place is left; and the first in line may book with its key."""
    held = engine.lock(places.id, lock_for=MINUTE)
    line.join(places, "first")
    second = line.join(places, "second")
    engine.book(held)
    assert line.kinds(places)[-2:] == ["booked", "locked"]
    engine.update_slot(places.id, capacity=3)
    engine.book(places.id, lock_key="first")
    assert line.events(places)[-1][5] == second


def test_the_first_in_line_books_a_slot_whose_lock_has_lapsed(
    engine: LockEngine, places: Slot, line: Line, await_expiry: Callable[[str], None]
) -> None:
    """Before it was given the slot; then it is the next one's turn."""
    engine.lock(places.id, lock_for=BLINK * 2)
    line.join(places, "first")
    second = line.join(places, "second")
    await_expiry(places.id)
    engine.book(places.id, lock_key="first")
    assert line.kinds(places)[-3:] == ["expired", "booked", "locked"]
    assert line.events(places)[-1][5] == second


@pytest.mark.parametrize("verb", ["enable_booking", "reschedule_booking"])
def test_bookings_that_take_a_place_again_respect_the_line(
    engine: LockEngine, new_slot: Make, line: Line, verb: str
) -> None:
    """They are refused during a turn, and consume their caller's lock in favour of the next."""
    here, there = engine.create_slots([new_slot(capacity=2), new_slot(capacity=2)])
    booking = engine.book(here.id)
    if verb == "enable_booking":
        engine.cancel_booking(booking.id)
    target = here if verb == "enable_booking" else there
    arguments = [booking.id] if verb == "enable_booking" else [booking.id, there.id]
    held = engine.lock(target.id, lock_for=MINUTE)
    first = line.join(target, "first")
    second = line.join(target, "second")
    engine.unlock(held)
    with pytest.raises(SlotLocked) as refused:
        getattr(engine, verb)(*arguments)
    assert refused.value.code == "E050"
    line.come(target, "first", first)
    getattr(engine, verb)(*arguments, lock_key="first")
    assert line.kinds(target)[-2:] == ["booked", "locked"]
    assert line.events(target)[-1][5] == second


def test_a_quota_is_judged_when_the_turn_is_taken(
    callers: list[Caller], lock_engine: LockEngine, new_slot: Make, line: Line
) -> None:
    """A turn counts like any lock; whoever has too many is told so, and the next gets the slot at once."""
    slot, other = lock_engine.create_slots([new_slot(), new_slot()])
    quota = Quota("till 7", most=1)
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    first = callers[0].wait(slot, quota=quota)
    line.await_count(slot, 1)
    second = callers[1].wait(slot)
    line.await_count(slot, 2)
    charged = lock_engine.lock(other.id, lock_for=MINUTE, quota=quota)
    lock_engine.unlock(held)
    with pytest.raises(TooManyLocks):
        first.result(10)
    held = second.result(1)
    lock_engine.unlock(charged)
    third = callers[0].wait(slot, quota=quota)
    line.await_count(slot, 1)
    lock_engine.unlock(held)
    third.result(10)
    with pytest.raises(TooManyLocks):
        lock_engine.lock(other.id, lock_for=MINUTE, quota=quota)
    line.join(slot, "next")
    with pytest.raises(TooManyLocks):  # the lock's token is the same, though somebody waits for it now
        lock_engine.lock(other.id, lock_for=MINUTE, quota=quota)


def test_a_hold_waits_in_line(lock_engine: LockEngine, slot: Slot, line: Line) -> None:
    """As a lock does."""
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    entered = threading.Event()

    def work() -> None:
        with lock_engine.hold(slot.id, lock_for=MINUTE, wait=LONG, fair=True) as hold:
            entered.set()
            assert hold.remaining() > MINUTE / 2

    with ThreadPoolExecutor() as pool:
        working = pool.submit(work)
        line.await_count(slot, 1)
        lock_engine.unlock(held)
        assert entered.wait(10)
        working.result(10)
    assert line.is_gone(slot)


async def test_an_async_hold_waits_in_line(async_lock_engine: AsyncLockEngine, slot: Slot, line: Line) -> None:
    """As a lock does."""
    held = await async_lock_engine.lock(slot.id, lock_for=MINUTE)

    async def work() -> None:
        async with async_lock_engine.hold(slot.id, lock_for=MINUTE, wait=LONG, fair=True) as hold:
            assert hold.fencing_token > held.fencing_token

    working = asyncio.create_task(work())
    async with asyncio.timeout(10):
        while not line.count(slot):  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)
        await async_lock_engine.unlock(held)
        await working
    assert line.is_gone(slot)


def test_fair_needs_wait(engine: LockEngine, slot: Slot, line: Line) -> None:
    """Who does not wait has no place in a line; and nothing is sent."""
    with pytest.raises(InvalidArgument, match="fair"):
        engine.lock(slot.id, lock_for=MINUTE, fair=True)
    with pytest.raises(InvalidArgument, match="fair"):
        engine.lock(slot.id, lock_for=MINUTE, wait=LONG, fair=cast("bool", "yes"))
    assert line.kinds(slot) == []


def test_no_lock_key_of_who_waits_is_told(
    caller: Caller, lock_engine: LockEngine, slot: Slot, line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in events, logs or errors: it is in the line's own keys alone, and gone with it."""
    caplog.set_level(logging.DEBUG)
    known_to_one = "what only the waiter knows"
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    waiting = caller.wait(slot, lock_key=known_to_one)
    line.await_count(slot, 1)
    with pytest.raises(SlotLocked) as refused:
        lock_engine.lock(slot.id, lock_for=MINUTE)
    lock_engine.unlock(held)
    lock = waiting.result(10)
    assert known_to_one not in str(line.events(slot)) + caplog.text + repr(refused.value) + repr(lock)
    assert len(line.events(slot)[-2]) == 6
    assert line.is_gone(slot)


def test_readers_of_events_see_a_turn_as_a_lock(
    lock_engine: LockEngine, slot: Slot, line: Line, raw: redis.Redis, lock_namespace: str
) -> None:
    """Then it is extended, when its owner comes; the ticket is nobody's business."""
    stream = Keys(lock_namespace).events
    start = cast("list[tuple[str, Any]]", raw.xrange(stream, count=1))[0][0]
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    ticket = line.join(slot, "first")
    lock_engine.unlock(held)
    lock = line.come(slot, "first", ticket)
    seen = list(itertools.islice(lock_engine.events(since=f"{start}.0"), 4))
    assert [event.type for event in seen] == ["locked", "unlocked", "locked", "extended"]
    assert seen[2].fencing_token == seen[3].fencing_token == lock.fencing_token
    assert seen[3].locked_until == lock.locked_until
    assert ticket not in str(seen)


def test_a_slot_that_nobody_waits_for_costs_nothing(
    lock_engine: LockEngine, slot: Slot, line: Line, raw: redis.Redis
) -> None:
    """No command looks for a line where there is none; and when one is over, its sign goes with the lock."""
    names = ("zrange", "hmget", "hget")

    def cost() -> list[int]:
        before = [_calls(raw, name) for name in names]
        lock_engine.unlock(lock_engine.lock(slot.id, lock_for=MINUTE))
        return [_calls(raw, name) - was for name, was in zip(names, before, strict=True)]

    assert cost() == [0, 2, 0]
    held = lock_engine.lock(slot.id, lock_for=MINUTE)
    ticket = line.join(slot, "first")
    assert str(line.token_text(slot)) == f"+{held.fencing_token}"
    lock_engine.unlock(held)
    lock_engine.unlock(line.come(slot, "first", ticket))
    assert cost() == [0, 2, 0]


@pytest.mark.parametrize("kind", ["queue", "tickets"])
def test_a_foreign_key_in_the_lines_place_fails_who_joins(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, kind: str
) -> None:
    """And nobody else; it stays as it is."""
    name = getattr(Keys(lock_namespace), kind)(slot.id)
    raw.set(name, "not ours")
    held = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(StoreCorrupt):
        engine.lock(slot.id, lock_for=MINUTE, wait=LONG, fair=True)
    assert engine.unlock(held).released
    engine.lock(slot.id, lock_for=MINUTE)
    assert raw.get(name) == "not ours"


def test_a_lock_that_another_client_made_is_waited_for(
    caller: Caller, slot: Slot, line: Line, lock_engine: LockEngine, raw: redis.Redis, lock_namespace: str
) -> None:
    """Whoever sets the key by hand is waited for like any holder."""
    raw.set(Keys(lock_namespace).lock(slot.id), "by hand", px=60_000)
    waiting = caller.wait(slot)
    line.await_count(slot, 1)
    lock_engine.unlock(slot.id, lock_key="by hand")
    assert waiting.result(10).slot_id == slot.id
