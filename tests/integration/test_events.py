"""events: what happens to slots, told once, in order, and without gaps."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    Event,
    EventsMissed,
    InvalidArgument,
    Lock,
    LockEngine,
    NewSlot,
    OverbookedError,
    Slot,
    SlotLocked,
    StoreUnavailable,
)
from overbooked_lock.arguments import to_milliseconds

MINUTE = timedelta(minutes=1)
BLINK = timedelta(milliseconds=40)
Make = Callable[..., NewSlot]
PATIENCE = 10  # seconds


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


def told(raw: redis.Redis, namespace: str) -> list[list[str]]:
    """What the stream holds, as the scripts wrote it."""
    entries = cast("list[tuple[str, dict[str, str]]]", raw.xrange(f"{namespace}:slots:events"))
    return [line.split("\t") for _, fields in entries for line in fields["events"].split("\n")]


def first_entry(raw: redis.Redis, namespace: str) -> str:
    entries = cast("list[tuple[str, Any]]", raw.xrange(f"{namespace}:slots:events", count=1))
    return entries[0][0]


def kinds(raw: redis.Redis, namespace: str, slot_id: str = "") -> list[str]:
    return [line[0] for line in told(raw, namespace) if slot_id in ("", line[1])]


async def test_each_change_is_told(
    async_lock_engine: AsyncLockEngine, new_slot: Make, redis_now: Callable[[], datetime]
) -> None:
    """In the order it happened, with the facts that whoever paints a calendar needs."""
    engine = async_lock_engine
    async with aclosing(engine.events()) as events:
        first = asyncio.create_task(take(events, 1))
        await asyncio.sleep(0)
        slot = await _created_while_listening(engine, new_slot, first)
        before = redis_now() - timedelta(milliseconds=1)
        lock = await engine.lock(slot.id, lock_for=MINUTE)
        longer = await engine.extend(lock, lock_for=2 * MINUTE)
        await engine.unlock(lock)
        again = await engine.lock(slot.id, lock_for=MINUTE)
        booking = await engine.book(again)
        await engine.cancel_booking(booking.id)
        await engine.enable_booking(booking.id)
        await engine.delete_booking(booking.id)
        await engine.update_slot(slot.id, capacity=2)
        await engine.delete_slot(slot.id)
        seen = await take(events, 10)
    assert [event.type for event in seen] == [
        "locked", "extended", "unlocked", "locked", "booked", "cancelled", "booked", "cancelled", "slot_changed",
        "slot_deleted",
    ]  # fmt: skip
    assert {event.slot_id for event in seen} == {slot.id}
    assert {event.resource_id for event in seen} == {"court-1"}
    assert [event.locked_until for event in seen[:3]] == [lock.locked_until, longer.locked_until, None]
    assert [event.fencing_token for event in seen[:3]] == [lock.fencing_token] * 3
    assert all(before <= event.at <= redis_now() for event in seen)
    assert Event.model_validate_json(seen[0].model_dump_json()) == seen[0]


async def _created_while_listening(engine: AsyncLockEngine, new_slot: Make, first: asyncio.Task[list[Event]]) -> Slot:
    """Creates slots until one is heard of: only then does the reader surely listen. Returns the last."""
    while True:
        slot = await engine.create_slot(new_slot())
        done, _ = await asyncio.wait([first], timeout=0.05)
        if done:
            return slot


def test_what_changes_nothing_tells_nothing(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Refusals, repetitions, and unlocks of what is free."""
    lock = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    before = kinds(raw, lock_namespace)
    engine.lock(slot.id, lock_key="mine", lock_until=lock.locked_until)
    engine.extend(lock, lock_until=lock.locked_until)
    engine.check(lock)
    engine.get_slot(slot.id)
    engine.update_slot(slot.id, capacity=slot.capacity)
    with pytest.raises(SlotLocked):
        engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock_many([slot.id], lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.book(slot.id)
    assert kinds(raw, lock_namespace) == before
    engine.unlock(lock)
    engine.unlock(lock)
    assert kinds(raw, lock_namespace) == [*before, "unlocked"]


def test_no_lock_key_is_ever_told(engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """Everybody may listen."""
    key = "what only the holder knows"
    lock = engine.lock(slot.id, lock_key=key, lock_for=MINUTE)
    engine.extend(lock, lock_for=2 * MINUTE)
    engine.book(lock)
    assert key not in str(told(raw, lock_namespace))


def test_many_slots_of_a_call_are_one_entry(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """The stream costs as much as a call, and not as much as a slot."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(20)])]
    locks = engine.lock_many(ids, lock_for=MINUTE)
    engine.unlock_many(locks)
    assert raw.xlen(f"{lock_namespace}:slots:events") == 3
    assert [line[1] for line in told(raw, lock_namespace)] == ids * 3


def test_each_slot_of_a_call_is_told_of_with_its_own_date_and_resource(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_server: EmbeddedServer, lock_namespace: str
) -> None:
    """Though neighbours mostly have them in common; here each has one of the two."""
    slots = engine.create_slots([new_slot(resource_id=f"court-{(i + 1) // 2 % 2}") for i in range(8)])

    async def lock_together() -> list[Lock]:
        async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as callers:
            asked = [callers.lock(slot.id, lock_for=MINUTE * (1 + i // 2 % 2)) for i, slot in enumerate(slots)]
            return await asyncio.gather(*asked)

    locks = asyncio.run(lock_together())
    lines = {line[1]: line[2:] for line in told(raw, lock_namespace) if line[0] == "locked"}
    assert lines == {
        slot.id: [slot.resource_id, str(to_milliseconds(lock.locked_until)), str(lock.fencing_token)]
        for slot, lock in zip(slots, locks, strict=True)
    }


def test_an_end_by_date_is_told_once_whoever_sweeps(
    make_engine: Callable[..., LockEngine], new_slot: Make, raw: redis.Redis, lock_namespace: str,
    await_expiry: Callable[[str], None],
) -> None:  # fmt: skip
    """In the order of the dates, with the lock's own token and date."""
    engines = [make_engine(), make_engine()]
    ids = [slot.id for slot in engines[0].create_slots([new_slot() for _ in range(3)])]
    locks = [engines[0].lock(slot_id, lock_for=BLINK * (3 - i)) for i, slot_id in enumerate(ids)]
    for slot_id in ids:
        await_expiry(slot_id)
    assert sum(engine.sweep() for engine in engines * 2) == 3
    ends = [line for line in told(raw, lock_namespace) if line[0] == "expired"]
    assert [line[1] for line in ends] == ids[::-1]
    assert [int(line[4]) for line in ends] == [lock.fencing_token for lock in locks[::-1]]
    assert engines[0].list_locks() == []


@pytest.mark.parametrize("verb", ["lock", "book", "delete_slot"])
def test_an_end_is_told_before_what_comes_next(
    engine: LockEngine,
    slot: Slot,
    raw: redis.Redis,
    lock_namespace: str,
    await_expiry: Callable[[str], None],
    verb: str,
) -> None:
    """Even if no sweeper came by in between, with its own date and token; and it is not told again."""
    lock = engine.lock(slot.id, lock_for=BLINK)
    await_expiry(slot.id)
    if verb == "lock":
        engine.lock(slot.id, lock_for=MINUTE)
    else:
        getattr(engine, verb)(slot.id)
    follows = {"lock": "locked", "book": "booked", "delete_slot": "slot_deleted"}[verb]
    assert kinds(raw, lock_namespace, slot.id) == ["slot_changed", "locked", "expired", follows]
    [end] = [line for line in told(raw, lock_namespace) if line[0] == "expired"]
    assert end[3:] == [str(to_milliseconds(lock.locked_until)), str(lock.fencing_token)]
    assert engine.sweep() == 0


def test_no_end_is_told_of_a_lock_that_ended_otherwise(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, redis_now: Callable[[], datetime]
) -> None:
    """Unlocked, booked, deleted, or still alive because it was extended."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(4)])]
    locks = engine.lock_many(ids, lock_for=BLINK)
    engine.unlock(locks[0])
    engine.book(locks[1])
    engine.delete_slot(ids[2])
    engine.extend(locks[3], lock_for=MINUTE)
    while redis_now() <= locks[0].locked_until + timedelta(milliseconds=2):
        pass
    assert engine.sweep() == 0
    assert "expired" not in kinds(raw, lock_namespace)


@pytest.mark.parametrize("how", ["locked again", "extended"])
def test_an_end_that_moved_is_told_where_it_moved_to(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, redis_now: Callable[[], datetime], how: str
) -> None:
    """The index of ends has the earlier one still, and who finds it corrects it; the lock is told of once."""

    def sweep_after(lock: Lock) -> int:
        while redis_now() <= lock.locked_until + timedelta(milliseconds=2):
            pass
        return engine.sweep()

    lock = engine.lock(slot.id, lock_key="mine", lock_for=3 * BLINK)
    if how == "locked again":
        assert engine.unlock(lock).released
        last = engine.lock(slot.id, lock_key="mine", lock_for=9 * BLINK)
    else:
        last = engine.extend(lock, lock_for=9 * BLINK)
    assert sweep_after(lock) == 0
    assert "expired" not in kinds(raw, lock_namespace)
    indexed_ms = raw.zscore(f"{lock_namespace}:slots:expiry", slot.id)
    assert indexed_ms == last.locked_until.timestamp() * 1000
    assert sweep_after(last) == 1
    [end] = [line for line in told(raw, lock_namespace) if line[0] == "expired"]
    assert [int(text) for text in end[3:5]] == [indexed_ms, last.fencing_token]
    assert engine.sweep() == 0


@pytest.mark.parametrize("sweeps", [True, False])
def test_ends_are_told_in_their_order_whatever_the_index_has(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, await_expiry: Callable[[str], None],
    sweeps: bool,
) -> None:  # fmt: skip
    """By the sweeper, or by later locks on their way."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(8)])]
    for i, slot_id in enumerate(ids[:4]):
        engine.lock(slot_id, lock_for=BLINK + timedelta(milliseconds=5 * i))
    # As if the third had had a lock that ended before all of them, and the second one that ended with the first.
    first_ms = cast("float", raw.zscore(f"{lock_namespace}:slots:expiry", ids[0]))
    raw.zadd(f"{lock_namespace}:slots:expiry", {ids[2]: first_ms - 10, ids[1]: first_ms})
    for slot_id in ids[:4]:
        await_expiry(slot_id)
    if sweeps:
        assert engine.sweep() == 4
    else:
        for slot_id in ids[4:]:
            engine.lock(slot_id, lock_for=MINUTE)
    assert [line[1] for line in told(raw, lock_namespace) if line[0] == "expired"] == ids[:4]


def test_what_was_unlocked_leaves_the_index_of_ends_at_its_date(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, redis_now: Callable[[], datetime]
) -> None:
    """And is no end to tell of."""
    lock = engine.lock(slot.id, lock_for=BLINK)
    engine.unlock(lock)
    while redis_now() <= lock.locked_until + timedelta(milliseconds=2):
        pass
    assert engine.sweep() == 0
    assert not raw.exists(f"{lock_namespace}:slots:expiry")


def test_locks_sweep_on_the_way(
    engine: LockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str, await_expiry: Callable[[str], None]
) -> None:
    """Where nobody sweeps, nothing piles up, and the ends are told all the same."""
    ids = [slot.id for slot in engine.create_slots([new_slot() for _ in range(3)])]
    engine.lock_many(ids[:2], lock_for=BLINK)
    for slot_id in ids[:2]:
        await_expiry(slot_id)
    engine.lock(ids[2], lock_for=MINUTE)
    assert kinds(raw, lock_namespace).count("expired") == 2
    assert set(raw.hkeys(f"{lock_namespace}:slots:locks")) == {"", ids[2]}


async def test_listeners_hear_of_ends_without_asking(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """Who listens sweeps."""
    lock = await async_lock_engine.lock(slot.id, lock_for=5 * BLINK)
    async with aclosing(async_lock_engine.events(slot_id=slot.id)) as events:
        [ended] = await take(events, 1)
    assert (ended.type, ended.at, ended.fencing_token) == ("expired", lock.locked_until, lock.fencing_token)


async def test_a_reader_goes_on_after_what_it_saw(
    async_lock_engine: AsyncLockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """From any event on, in the middle of a call's events too; only what it wants."""
    engine = async_lock_engine
    ids = [slot.id for slot in await engine.create_slots([new_slot(resource_id=f"r{i % 2}") for i in range(4)])]
    await engine.lock_many(ids, lock_for=MINUTE)
    start = f"{first_entry(raw, lock_namespace)}.1"
    async with aclosing(engine.events(since=start)) as events:
        seen = await take(events, 6)
    assert [event.slot_id for event in seen] == ids[2:] + ids
    async with aclosing(engine.events(since=start, resource_id="r1")) as events:
        assert [event.slot_id for event in await take(events, 3)] == [ids[3], ids[1], ids[3]]
    async with aclosing(engine.events(since=start, slot_id=ids[0])) as events:
        assert [event.type for event in await take(events, 1)] == ["locked"]
    async with aclosing(engine.events(since=seen[3].id)) as events:
        assert await take(events, 2) == seen[4:]


async def test_a_reader_that_fell_behind_is_told(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """What is no longer kept may hold what it wants; so says the error, and since when."""
    stream = f"{lock_namespace}:slots:events"
    start = f"{first_entry(raw, lock_namespace)}.0"
    for _ in range(3):
        await async_lock_engine.unlock(await async_lock_engine.lock(slot.id, lock_for=MINUTE))
    raw.xtrim(stream, maxlen=2, approximate=False)
    with pytest.raises(EventsMissed) as missed:
        async with aclosing(async_lock_engine.events(since=start)) as events:
            await take(events, 1)
    assert missed.value.since in start


@pytest.mark.parametrize("since", ["", "yesterday", "1-2", "1-2.x", "1-2.3.4", "-1-2.3", "9" * 30 + "-0.0"])
async def test_a_wrong_since_is_named(async_lock_engine: AsyncLockEngine, since: str) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgument, match="since"):
        await anext(async_lock_engine.events(since=since))


async def test_a_broken_subscription_misses_nothing(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis
) -> None:
    """The gap is filled from the stream."""
    engine = async_lock_engine
    async with aclosing(engine.events(slot_id=slot.id)) as events:
        first = asyncio.create_task(take(events, 1))
        while not first.done():
            await engine.unlock(await engine.lock(slot.id, lock_for=MINUTE))
            await asyncio.wait([first], timeout=0.02)
        position = first.result()[0]
        tokens = []
        for _ in range(5):
            raw.client_kill_filter(_type="pubsub")
            lock = await engine.lock(slot.id, lock_for=MINUTE)
            await engine.unlock(lock)
            tokens.append(lock.fencing_token)
        seen = [position]
        while seen[-1].fencing_token != tokens[-1] or seen[-1].type != "unlocked":
            seen += await take(events, 1)
    # It began to listen before a lock, or between one and its unlock.
    assert {(before.type, after.type) for before, after in pairwise(seen)} == {
        ("locked", "unlocked"),
        ("unlocked", "locked"),
    }
    assert [event.fencing_token for event in seen if event.type == "locked"][-5:] == tokens


def test_a_sync_reader_hears_the_same(
    lock_engine: LockEngine, slot: Slot, lock_server: EmbeddedServer, lock_namespace: str
) -> None:
    """An iterator in a thread."""
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:

        def listen() -> None:
            for event in engine.events(slot_id=slot.id):
                heard.put(event)

        threading.Thread(target=listen, daemon=True).start()
        lock = lock_engine.lock(slot.id, lock_for=BLINK)
        while heard.empty():  # until it surely listens
            lock_engine.unlock(lock)
            lock = lock_engine.lock(slot.id, lock_for=BLINK)
        while (event := heard.get(timeout=PATIENCE)).type != "expired":
            assert event.slot_id == slot.id
        assert (event.at, event.fencing_token) == (lock.locked_until, lock.fencing_token)


@pytest.mark.parametrize("verb", ["lock", "unlock", "book", "update_slot", "delete_slot"])
def test_nothing_is_half_done_where_the_stream_is_wrong(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, verb: str
) -> None:
    """The change is not made if it can't be told."""
    stream = f"{lock_namespace}:slots:events"
    lock = None if verb == "lock" else engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    raw.delete(stream)
    raw.set(stream, "not ours")
    arguments: dict[str, dict[str, Any]] = {
        "lock": {"lock_for": MINUTE},
        "unlock": {"lock_key": "mine"},
        "book": {"lock_key": "mine"},
        "update_slot": {"capacity": 5},
    }
    with pytest.raises(OverbookedError):
        getattr(engine, verb)(slot.id, **arguments.get(verb, {}))
    raw.delete(stream)
    assert (None if lock is None else engine.check(lock)) == lock
    now = engine.get_slot(slot.id, lock_key="mine")
    assert (now.capacity, now.num_bookings, now.available) == (1, 0, True)


@pytest.fixture
def crowd(lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[list[LockEngine]]:
    """Engines that sweep at one time."""
    engines = [LockEngine.from_url(lock_server.url, namespace=lock_namespace) for _ in range(3)]
    yield engines
    for engine in engines:
        engine.close()


def test_sweepers_share_the_work(
    crowd: list[LockEngine], new_slot: Make, raw: redis.Redis, lock_namespace: str, soak: bool
) -> None:
    """A wave of locks that end at once is told of whole, and each lock once."""
    count = 20_000 if soak else 2_000
    made = []
    for _ in range(0, count, 500):
        ids = [slot.id for slot in crowd[0].create_slots([new_slot() for _ in range(500)])]
        made += crowd[0].lock_many(ids, lock_for=timedelta(milliseconds=300))
    ended: list[str] = []
    threads = [threading.Thread(target=lambda e=e: [e.sweep() for _ in range(400)]) for e in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while len(ended) < count:
        crowd[0].sweep()
        ended = [line[1] for line in told(raw, lock_namespace) if line[0] == "expired"]
    assert sorted(ended) == sorted(lock.slot_id for lock in made)


# What a reader lives through


def test_a_closed_engine_ends_its_readers(
    lock_engine: LockEngine, slot: Slot, lock_server: EmbeddedServer, lock_namespace: str
) -> None:
    """An iterator in another thread ends too; a new one says why it can't begin. No thread stays behind."""
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    before = set(threading.enumerate())
    engine = LockEngine.from_url(lock_server.url, namespace=lock_namespace)

    def listen() -> None:
        for event in engine.events():
            heard.put(event)

    thread = threading.Thread(target=listen)
    thread.start()
    while heard.empty():  # until it surely listens
        lock_engine.unlock(lock_engine.lock(slot.id, lock_for=MINUTE))
    engine.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    for left in set(threading.enumerate()) - before:
        left.join(PATIENCE)
        assert not left.is_alive()
    with pytest.raises(StoreUnavailable, match="closed"):
        next(engine.events())


def test_a_reader_that_begins_while_its_engine_closes_ends(
    lock_server: EmbeddedServer, lock_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the engine open, and listens when all the others have been told of the end."""
    engine = LockEngine.from_url(lock_server.url, namespace=lock_namespace)
    reading = engine._listener.reading
    heard = list[queue.SimpleQueue[Any]]()

    @contextmanager
    def closed_before() -> Iterator[queue.SimpleQueue[Any]]:
        engine.close()
        with reading() as batches:
            monkeypatch.setattr(engine._listener._audience, "turn", lambda _: None)  # the server is gone as well
            heard.append(batches)
            yield batches

    monkeypatch.setattr(engine._listener, "reading", closed_before)
    thread = threading.Thread(target=lambda: list(engine.events()))
    thread.start()
    thread.join(2)
    ended = not thread.is_alive()
    heard[0].put(None)  # else it would stay for good
    thread.join(PATIENCE)
    assert ended


async def test_a_closed_async_engine_ends_its_readers(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """Whether or not they have heard of anything yet."""
    engine = AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace)
    reading = [asyncio.create_task(_all(engine)) for _ in range(2)]
    await asyncio.sleep(0)
    await engine.close()
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*reading) == [[], []]
    with pytest.raises(StoreUnavailable, match="closed"):
        await anext(engine.events())


async def _all(engine: AsyncLockEngine) -> list[Event]:
    return [event async for event in engine.events()]


async def test_a_stranger_on_the_channel_is_no_harm(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """What is no text of ours is passed over, in the stream as well; what a later version adds is not seen."""
    problems = list[Any]()
    channel = f"{lock_namespace}:slots:events"
    start = f"{first_entry(raw, lock_namespace)}.0"
    added = raw.xadd(channel, {"events": "locked\ts\tr\t0\t7\tmore\nnew_kind\ts\tr\t0\t0"})
    entry = str(added)
    async with aclosing(async_lock_engine.events(since=start)) as events:
        assert [(event.type, event.fencing_token) for event in await take(events, 2)] == [
            ("locked", 7), ("new_kind", None),
        ]  # fmt: skip
        for text in ("hello", "1-2", b"\xff", f"{entry}\n", f"{entry}\nfree\tcourt", "x\nunlocked"):
            raw.publish(channel, text)
        raw.xadd(channel, {"who": b"\xff"})
        lock = await async_lock_engine.lock(slot.id, lock_for=MINUTE)
        assert [event.fencing_token for event in await take(events, 1)] == [lock.fencing_token]
        waiting = asyncio.create_task(async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=MINUTE))
        while not async_lock_engine._listener._audience.has_waiters():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        for text in ("hello", f"{entry}\nunlocked"):
            raw.publish(channel, text)
        await async_lock_engine.unlock(lock)
        await asyncio.wait_for(waiting, PATIENCE)
    assert not problems


async def test_the_beginning_is_kept_until_something_is_dropped(
    async_lock_engine: AsyncLockEngine, new_slot: Make, raw: redis.Redis, lock_namespace: str
) -> None:
    """Also for who has begun with nothing."""
    async with aclosing(async_lock_engine.events(since="0-0.0")) as events:
        first = asyncio.create_task(take(events, 1))
        slot = await async_lock_engine.create_slot(new_slot())
        assert [event.slot_id for event in await first] == [slot.id]
    with raw.pipeline(transaction=False) as pipe:
        for _ in range(10_200):
            pipe.xadd(f"{lock_namespace}:slots:events", {"events": "locked\ts\tr\t0\t7"}, maxlen=10_000)
        pipe.execute()
    with pytest.raises(EventsMissed):
        await anext(async_lock_engine.events(since="0-0.0"))


async def test_a_slow_reader_loses_nothing(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """What it has not taken is not kept for it for ever: it goes on from the stream."""
    channel = f"{lock_namespace}:slots:events"
    start = f"{first_entry(raw, lock_namespace)}.0"
    async with aclosing(async_lock_engine.events(since=start)) as events:
        await async_lock_engine.lock(slot.id, lock_for=MINUTE)
        await take(events, 1)
        [mine] = async_lock_engine._listener._audience._queues
        for number in range(3_000):
            entry = f"9999999999999-{number}"
            text = f"locked\ts\tr\t0\t{number + 1}"
            async_lock_engine._listener._audience.hear(f"{entry}\n{text}".encode())
            if number % 100 == 99:
                with raw.pipeline(transaction=False) as pipe:
                    for at in range(number - 99, number + 1):
                        pipe.xadd(channel, {"events": f"locked\ts\tr\t0\t{at + 1}"}, id=f"9999999999999-{at}")
                    pipe.execute()
        assert mine.qsize() <= 1_001
        assert [event.fencing_token for event in await take(events, 3_000)] == list(range(1, 3_001))


FORKED = """
import os, sys
from datetime import timedelta
from overbooked_lock import LockEngine

engine = LockEngine.from_url(sys.argv[1], namespace=sys.argv[2], unregistered="allow")
lock = engine.lock("fork", lock_for=timedelta(minutes=1))
events = engine.events(since="0-0.0")
assert next(events).type == "locked"
child = os.fork()
if child == 0:
    lock = engine.lock("other", lock_for=timedelta(milliseconds=50))
    heard = [event.type for _, event in zip(range(3), engine.events(since="0-0.0"))]
    os._exit(heard != ["locked", "locked", "expired"])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_listens_for_itself(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """It has the engine, and none of its threads."""
    command = [sys.executable, "-c", FORKED, lock_server.url, lock_namespace]
    assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == 0


ODD_IDS = ["a b", " ", "%s%d", "q\"'\\", "\u2028", "é\u0301🎾", "x" * 255, "unlocked", "-1", "\u00a0:{}"]


@pytest.mark.parametrize("slot_id", ODD_IDS)
def test_odd_ids_are_told_as_they_are(
    lock_server: EmbeddedServer, lock_namespace: str, new_slot: Make, slot_id: str
) -> None:
    """Of slots and of resources; a slot that is not registered has none."""
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        engine.create_slot(new_slot(id=slot_id, resource_id=slot_id))
        engine.lock(slot_id, lock_for=MINUTE)
        engine.lock(f"{slot_id}"[:254] + "?", lock_for=MINUTE)
        with closing(engine.events(since="0-0.0")) as events:
            seen = [next(events) for _ in range(3)]
    assert [(event.slot_id, event.resource_id) for event in seen] == [
        (slot_id, slot_id), (slot_id, slot_id), (slot_id[:254] + "?", None),
    ]  # fmt: skip
