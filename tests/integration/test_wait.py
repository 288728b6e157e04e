"""wait: whoever waits for a slot wakes when it comes free, and does not ask in between."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    LockEngine,
    NewSlot,
    Slot,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
)

MINUTE = timedelta(minutes=1)
LONG = timedelta(seconds=20)
Make = Callable[..., NewSlot]


Listeners = Callable[[], int]


@pytest.fixture
def listeners(raw: redis.Redis, lock_namespace: str) -> Listeners:
    """Counts the subscriptions to the events of this test's engines."""
    return lambda: int(raw.pubsub_numsub(f"{lock_namespace}:slots:events")[0][1])


def calls_of_scripts(raw: redis.Redis) -> int:
    statistics: dict[str, Any] = raw.info("commandstats")
    return sum(statistics.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def other(lock_server: EmbeddedServer, lock_namespace: str) -> AsyncIterator[AsyncLockEngine]:
    """Another process' engine, as it were."""
    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        yield engine


@pytest.mark.parametrize("end", ["unlock", "force_unlock", "book", "expiry"])
async def test_the_waiter_gets_what_comes_free(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, new_slot: Make, listeners: Listeners, end: str
) -> None:
    """Whatever ended the lock."""
    slot = await async_lock_engine.create_slot(new_slot(capacity=2))
    held = await other.lock(slot.id, lock_for=timedelta(milliseconds=300) if end == "expiry" else MINUTE)
    waiting = asyncio.create_task(async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG))
    await until(lambda: listeners() == 1)
    if end == "unlock":
        await other.unlock(held)
    elif end == "force_unlock":
        await other.force_unlock(slot.id)
    elif end == "book":
        await other.book(held)
    lock = await waiting
    assert lock.fencing_token > held.fencing_token


async def test_a_slot_that_goes_is_not_waited_for(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, new_slot: Make, listeners: Listeners
) -> None:
    """Nor one that was disabled: each waiter learns it at once."""
    gone, disabled = [slot.id for slot in await other.create_slots([new_slot(), new_slot()])]
    await other.lock_many([gone, disabled], lock_for=MINUTE)
    waiting = [
        asyncio.create_task(async_lock_engine.lock(slot_id, lock_for=MINUTE, wait=LONG)) for slot_id in (gone, disabled)
    ]
    await until(lambda: listeners() == 1)
    await other.delete_slot(gone)
    await other.disable_slot(disabled)
    with pytest.raises(SlotNotFound):
        await waiting[0]
    with pytest.raises(SlotNotLockable):
        await waiting[1]


def test_waiting_ends_at_the_deadline(engine: LockEngine, slot: Slot, raw: redis.Redis) -> None:
    """With the same error as without waiting; and nobody listens any more."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        engine.lock(slot.id, lock_for=MINUTE, wait=timedelta(milliseconds=80))
    assert refused.value.locked_until == lock.locked_until
    with pytest.raises(SlotLocked):
        engine.lock_many([slot.id], lock_for=MINUTE, wait=timedelta(0))


async def test_nobody_polls_while_waiting(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, new_slot: Make, raw: redis.Redis, listeners: Listeners
) -> None:
    """Many waiters share one subscription and ask nothing; what is asked is the sweeper's, a few times a second."""
    ids = [slot.id for slot in await other.create_slots([new_slot() for _ in range(100)])]
    held = await other.lock_many(ids, lock_for=MINUTE)
    waiting = [asyncio.create_task(async_lock_engine.lock(id_, lock_for=MINUTE, wait=LONG)) for id_ in ids]
    await until(lambda: listeners() == 1)
    done, _ = await asyncio.wait(waiting, timeout=0.3)  # until the second round of tries is over
    asked = calls_of_scripts(raw)
    done, _ = await asyncio.wait(waiting, timeout=0.5)
    assert not done
    assert calls_of_scripts(raw) - asked <= 10
    assert listeners() == 1
    await other.unlock_many(held)
    locks = await asyncio.gather(*waiting)
    assert sorted(lock.slot_id for lock in locks) == sorted(ids)
    await async_lock_engine.close()
    await until(lambda: listeners() == 0)


async def test_waiters_of_one_slot_all_get_it(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """One after the other."""
    active = 0

    async def use() -> int:
        nonlocal active
        lock = await async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG)
        active += 1
        assert active == 1
        await asyncio.sleep(0)
        active -= 1
        await async_lock_engine.unlock(lock)
        return lock.fencing_token

    tokens = await asyncio.gather(*(use() for _ in range(40)))
    assert len(set(tokens)) == 40


async def test_a_cancelled_waiter_leaves_nothing_behind(
    async_lock_engine: AsyncLockEngine, slot: Slot, listeners: Listeners
) -> None:
    """No subscription, no lock."""
    lock = await async_lock_engine.lock(slot.id, lock_for=MINUTE)
    waiting = asyncio.create_task(async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG))
    await until(lambda: listeners() == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: listeners() == 0)
    await async_lock_engine.unlock(lock)
    assert (await async_lock_engine.lock(slot.id, lock_for=MINUTE)).slot_id == slot.id


async def test_a_broken_subscription_costs_no_wake_up(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, slot: Slot, raw: redis.Redis, listeners: Listeners
) -> None:
    """What came free while nobody listened is found when the connection is there again."""
    held = await other.lock(slot.id, lock_for=MINUTE)
    waiting = asyncio.create_task(async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG))
    await until(lambda: listeners() == 1)
    raw.client_kill_filter(_type="pubsub")
    await other.unlock(held)
    assert (await waiting).fencing_token > held.fencing_token


async def test_a_row_waits_for_the_slot_in_the_way(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, new_slot: Make, listeners: Listeners
) -> None:
    """One after the other, if several are."""
    ids = [slot.id for slot in await other.create_slots([new_slot() for _ in range(4)])]
    held = await other.lock_many(ids[1:3], lock_for=MINUTE)
    waiting = asyncio.create_task(async_lock_engine.lock_many(ids, lock_for=MINUTE, wait=LONG))
    await until(lambda: listeners() == 1)
    for lock in held:
        await other.unlock(lock)
    assert [lock.slot_id for lock in await waiting] == ids


def test_no_wake_up_is_lost(
    lock_engine: LockEngine, slot: Slot, lock_server: EmbeddedServer, lock_namespace: str
) -> None:
    """Two engines hand a slot to each other, a thousand times, each at another moment of the other's waiting.

    A lost wake-up would last as long as the lock.
    """
    draw = random.Random("no wake-up")
    lock_for = timedelta(minutes=10)
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as rival, ThreadPoolExecutor() as pool:
        holder, waiter = lock_engine, rival
        lock = holder.lock(slot.id, lock_for=lock_for)
        for _ in range(1000):
            waiting = pool.submit(waiter.lock, slot.id, lock_for=lock_for, wait=LONG)
            time.sleep(draw.uniform(0, 0.002))
            holder.unlock(lock)
            lock, before = waiting.result(10), lock
            assert lock.fencing_token > before.fencing_token
            holder, waiter = waiter, holder


async def test_no_wake_up_is_lost_in_a_loop(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, new_slot: Make
) -> None:
    """The same between two async engines, for some slots at a time that share the subscriptions."""
    draw = random.Random("in a loop")
    lock_for = timedelta(minutes=10)
    slots = await other.create_slots([new_slot() for _ in range(5)])

    async def hand_over(slot: Slot) -> None:
        holder, waiter = async_lock_engine, other
        lock = await holder.lock(slot.id, lock_for=lock_for)
        for _ in range(200):
            waiting = asyncio.create_task(waiter.lock(slot.id, lock_for=lock_for, wait=LONG))
            await asyncio.sleep(draw.uniform(0, 0.002))
            await holder.unlock(lock)
            lock, before = await asyncio.wait_for(waiting, 10), lock
            assert lock.fencing_token > before.fencing_token
            holder, waiter = waiter, holder

    await asyncio.gather(*map(hand_over, slots))


def test_closing_an_engine_ends_its_waiters(lock_engine: LockEngine, slot: Slot, listeners: Listeners) -> None:
    """They learn that they did not get it."""
    lock_engine.lock(slot.id, lock_for=MINUTE)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG)
        except Exception as error:  # noqa: BLE001 - whatever it is
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not listeners():
        pass
    lock_engine.close()
    waiting.join(10)
    assert "closed" in str(outcome)


async def test_a_quiet_subscription_stays(
    async_lock_engine: AsyncLockEngine, other: AsyncLockEngine, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long nothing happens."""
    monkeypatch.setattr("overbooked_lock.subscription._QUIET_SECONDS", 0.02)
    held = await other.lock(slot.id, lock_for=MINUTE)
    waiting = asyncio.create_task(async_lock_engine.lock(slot.id, lock_for=MINUTE, wait=LONG))
    await asyncio.wait([waiting], timeout=0.3)
    await other.unlock(held)
    async with asyncio.timeout(5):
        await waiting


async def test_a_subscription_ends_whenever_the_last_waiter_goes(
    async_lock_engine: AsyncLockEngine, slot: Slot, listeners: Listeners
) -> None:
    """Also while it connects."""
    for turns in range(40):
        waiter = async_lock_engine._listener.waiter(slot.id, "")
        for _ in range(turns):
            await asyncio.sleep(0)
        waiter.close()
    await until(lambda: listeners() == 0)
