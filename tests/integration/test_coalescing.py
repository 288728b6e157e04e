"""The async engine merges the calls of one event loop, and nobody notices but by its speed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    Lock,
    LockEngine,
    LockKeyInvalid,
    NewSlot,
    SlotLocked,
    SlotNotFound,
    StoreCorrupt,
)
from overbooked_lock.keys import Keys

MINUTE = timedelta(minutes=1)


def scripts_run(raw: redis.Redis) -> int:
    """How many scripts the server has run since the last reset."""
    stats = raw.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.fixture
def ids(lock_engine: LockEngine, new_slot: Callable[..., NewSlot]) -> list[str]:
    """Five hundred slots."""
    return [slot.id for slot in lock_engine.create_slots(new_slot() for _ in range(500))]


async def test_many_callers_share_few_calls(
    async_lock_engine: AsyncLockEngine, ids: list[str], raw: redis.Redis
) -> None:
    """Five hundred locks are a handful of scripts, each slot with its own answer."""
    await async_lock_engine.check("x", lock_key="x")
    raw.config_resetstat()
    locks = await asyncio.gather(*(async_lock_engine.lock(slot_id, lock_for=MINUTE) for slot_id in ids))
    assert scripts_run(raw) <= 8
    assert [lock.slot_id for lock in locks] == ids
    assert [lock.slot.id for lock in locks if lock.slot] == ids
    assert len({lock.lock_key for lock in locks}) == len({lock.fencing_token for lock in locks}) == 500
    raw.config_resetstat()
    unlocked = await asyncio.gather(*(async_lock_engine.unlock(lock) for lock in locks))
    assert scripts_run(raw) <= 8
    assert all(result.released for result in unlocked)


async def test_callers_of_many_slots_each_share_a_call(async_lock_engine: AsyncLockEngine, ids: list[str]) -> None:
    """However many each named, each gets the answers to its own."""
    locks = await async_lock_engine.lock_many(ids[:12], lock_for=MINUTE)
    shares = [locks[:1], locks[1:3], locks[3:7], locks[7:12]]
    ended = await asyncio.gather(*map(async_lock_engine.unlock_many, shares))
    assert [[one.slot_id for one in share] for share in ended] == [[lock.slot_id for lock in share] for share in shares]


@pytest.mark.parametrize(
    ("callers", "expected"),
    [(2, [1, 1]), (99, [49, 50]), (200, [100, 100]), (256, [128, 128])],
)
async def test_a_crowd_goes_in_even_batches(
    async_lock_engine: AsyncLockEngine, ids: list[str], callers: int, expected: list[int]
) -> None:
    """While the server works on one half we work on the other."""
    batches: list[int] = []
    async_lock_engine._coalescer.on_batch = batches.append
    locks = await asyncio.gather(*(async_lock_engine.lock(slot_id, lock_for=MINUTE) for slot_id in ids[:callers]))
    assert sorted(batches) == expected  # they connect at the same time
    await asyncio.gather(*(async_lock_engine.unlock(lock) for lock in locks[:2]))
    assert batches[len(expected) :] == [1, 1]


async def test_who_is_answered_together_asks_again_in_even_batches(
    async_lock_engine: AsyncLockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """Where both replies were there when the loop came to look, the second's callers count before the next is sent."""
    loop, batches, locked_before_the_next = asyncio.get_running_loop(), list[int](), list[int]()

    def count(runs: int) -> None:
        batches.append(runs)
        if batches == [100, 100]:
            loop.call_soon(let_both_replies_come)

    def let_both_replies_come() -> None:
        # The server sends what it has to answer at the end of each of its turns: by the second answer, both are sent.
        raw.ping()
        locked_before_the_next.append(raw.hlen(Keys(lock_namespace).locks))

    async def pair(slot_id: str) -> None:
        await async_lock_engine.unlock(await async_lock_engine.lock(slot_id, lock_for=MINUTE))

    await asyncio.gather(*map(pair, ids[:2]))  # both are connected from here on
    async_lock_engine._coalescer.on_batch = count
    await asyncio.gather(*map(pair, ids[:200]))
    assert locked_before_the_next == [201]  # and the last token has a field of its own
    assert batches == [100, 100, 100, 100]


async def test_a_refusal_is_not_left_to_the_garbage_collector(
    async_lock_engine: AsyncLockEngine, ids: list[str]
) -> None:
    """A rush for a slot ends in very many: each goes when nobody has it any more."""
    await async_lock_engine.lock(ids[0], lock_for=MINUTE)
    refusals: list[weakref.ref[SlotLocked]] = []
    gc.disable()
    try:
        for _ in range(3):
            try:
                await async_lock_engine.lock(ids[0], lock_for=MINUTE)
            except SlotLocked as refusal:
                refusals.append(weakref.ref(refusal))
        assert [refusal() for refusal in refusals[:2]] == [None, None]
    finally:
        gc.enable()


async def test_an_error_in_one_item_fails_that_item_alone(
    async_lock_engine: AsyncLockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """Taken, unknown, a key of another kind: the neighbours in the two calls are locked."""
    taken = await async_lock_engine.lock(ids[1], lock_for=MINUTE)
    raw.rpush(f"{lock_namespace}:slot:{ids[2]}:lock", "not ours")
    raw.config_resetstat()
    results: list[Any] = await asyncio.gather(
        *(async_lock_engine.lock(slot_id, lock_for=MINUTE) for slot_id in [*ids[:5], "nope"]), return_exceptions=True
    )
    assert scripts_run(raw) == 2
    kinds = [type(result) for result in results]
    assert kinds == [Lock, SlotLocked, StoreCorrupt, Lock, Lock, SlotNotFound]
    assert results[1].locked_until == taken.locked_until
    assert raw.lrange(f"{lock_namespace}:slot:{ids[2]}:lock", 0, -1) == ["not ours"]


async def test_different_verbs_at_once(async_lock_engine: AsyncLockEngine, ids: list[str]) -> None:
    """Each gets the answer to its own question."""
    engine = async_lock_engine
    held = await engine.lock(ids[0], lock_for=MINUTE)
    results: list[Any] = await asyncio.gather(
        engine.lock(ids[1], lock_for=MINUTE),
        engine.check(held),
        engine.extend(held, lock_for=2 * MINUTE),
        engine.unlock(ids[0], lock_key="wrong"),
        engine.get_slot(ids[3]),
        engine.lock_many(ids[4:7], lock_for=MINUTE),
        engine.lock_many([ids[7], ids[0]], lock_for=MINUTE),
        engine.list_slots(limit=3),
        engine.update_slot(ids[8], capacity=5),
        return_exceptions=True,
    )
    lock, checked, extended, refused, slot, row, no_row, page, updated = results
    assert lock.slot_id == ids[1]
    assert checked.slot_id == ids[0]
    assert extended.fencing_token == held.fencing_token
    assert isinstance(refused, LockKeyInvalid)
    assert slot.id == ids[3]
    assert [lock.slot_id for lock in row] == ids[4:7]
    assert isinstance(no_row, SlotLocked)
    assert await engine.get_slot(ids[7]) == (await engine.get_slot(ids[7])).model_copy(update={"available": True})
    assert len(page.slots) == 3
    assert updated.capacity == 5


async def test_one_key_asking_many_times_at_once(async_lock_engine: AsyncLockEngine, ids: list[str]) -> None:
    """Retries that meet get one lock and one fencing token, and its latest date."""
    engine = async_lock_engine
    locks = await asyncio.gather(*(engine.lock(ids[0], lock_key="mine", lock_for=n * MINUTE) for n in (1, 5, 3, 2, 4)))
    assert len({lock.fencing_token for lock in locks}) == 1
    assert sorted(lock.already_held for lock in locks) == [False, True, True, True, True]
    final = await engine.check(locks[0])
    assert final is not None
    assert final.locked_until == max(lock.locked_until for lock in locks)


async def test_lock_and_unlock_of_one_slot_at_once(async_lock_engine: AsyncLockEngine, ids: list[str]) -> None:
    """Three unlocks of one lock at one time: one released it, the others found it free."""
    lock = await async_lock_engine.lock(ids[0], lock_for=MINUTE)
    results = await asyncio.gather(*(async_lock_engine.unlock(lock) for _ in range(3)))
    assert sorted(result.released for result in results) == [False, False, True]


async def test_a_lone_caller_does_not_wait(
    async_lock_engine: AsyncLockEngine, ids: list[str], raw: redis.Redis
) -> None:
    """Without company a call is a call: one script each, one after the other."""
    await async_lock_engine.check("x", lock_key="x")
    raw.config_resetstat()
    for slot_id in ids[:10]:
        await async_lock_engine.lock(slot_id, lock_for=MINUTE)
    assert scripts_run(raw) == 10


async def test_an_engine_belongs_to_one_event_loop(async_lock_engine: AsyncLockEngine, ids: list[str]) -> None:
    """Used from another loop it says so, rather than hang, and undoes nothing."""
    await async_lock_engine.get_slot(ids[0])

    async def elsewhere() -> set[asyncio.Task[Any]]:
        with pytest.raises(RuntimeError, match="belongs to the event loop of its first call"):
            await async_lock_engine.lock(ids[0], lock_for=MINUTE)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert await asyncio.to_thread(asyncio.run, elsewhere()) == set()


async def test_cancelled_callers_leave_the_others_alone(
    lock_server: EmbeddedServer, lock_namespace: str, ids: list[str]
) -> None:
    """Half of the callers of a batch are cancelled; the other half get their locks."""
    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        tasks = [asyncio.create_task(engine.lock(slot_id, lock_for=MINUTE)) for slot_id in ids]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert all(isinstance(result, Lock) for result in results[1::2])


async def test_a_sooner_deadline_is_kept_on_a_connection_that_had_a_later_one(
    async_lock_engine: AsyncLockEngine,
) -> None:
    """A call that was refused and is sent again has less time left than those before it on the same connection."""
    loop = asyncio.get_running_loop()
    wire = await async_lock_engine._coalescer._connect()
    first, second = loop.create_future(), loop.create_future()
    wire.exchange([b"PING\r\n"], 60, first.set_result)
    assert await first == [b"PONG"]
    wire.exchange([b"BLPOP nothing 30\r\n"], 0.05, second.set_result)
    async with asyncio.timeout(3):  # what it was asked on connecting has its own limit at five seconds
        assert isinstance(await second, TimeoutError)
