"""Mistakes that were found in the code of others, each by its name: we don't make them.

Where a mistake has many sides, the rest of the suite looks at them; here each has the one test that carries its name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    InvalidArgument,
    LockEngine,
    LockKeyInvalid,
    LockLost,
    NewSlot,
    SlotLocked,
    SlotNotLockable,
    StoreUnavailable,
    arguments,
    calls,
    locks,
    scripts,
    slots,
)

from .proxy import ALWAYS, Proxy, runs
from .tools import MINUTE, Connect, milliseconds, until

SHORT = milliseconds(40)


@pytest.fixture
def engine(connect: Connect, lock_server: EmbeddedServer) -> LockEngine:
    """An engine on the shared server; any slot id can be locked."""
    return connect(lock_server.url)


def await_end(engine: LockEngine, slot_id: str) -> None:
    """Returns when nobody holds the slot."""
    until(lambda: slot_id not in [lock.slot_id for lock in engine.list_locks()])


def test_redis_py_lock_takes_its_own_lock_for_anothers_after_a_lost_reply(connect: Connect, proxy: Proxy) -> None:
    """redis-py ``Lock``, rueidislock: acquire says False while the key holds its own token. A match is success."""
    proxy.lose_reply(runs(scripts.LOCK))
    engine = connect(proxy.url)
    lock = engine.lock("s", lock_key="mine", lock_for=MINUTE)
    assert proxy.done["lose_reply"] == 1
    assert engine.check(lock) == lock


def test_redis_py_3847_a_failed_release_forgets_the_token(connect: Connect, proxy: Proxy) -> None:
    """redis-py #3847, #3900, #4258: an unlock that failed can be tried again with the same value."""
    engine = connect(proxy.url, timeout=milliseconds(200))
    lock = engine.lock("s", lock_for=MINUTE)
    proxy.cut_request(runs(scripts.UNLOCK), times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        engine.unlock(lock)
    proxy.heal()
    assert engine.unlock(lock).released


async def test_redis_py_asyncio_task_a_releases_task_bs_lock(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """redis-py's asyncio ``Lock`` keeps its token where tasks share it. Ours is in its owner's value."""
    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        ended, taken = asyncio.Event(), asyncio.Event()

        async def task_a() -> bool:
            lock = await engine.lock("s", lock_for=SHORT)
            while await engine.check(lock):  # noqa: ASYNC110 - Redis ends it, and tells nobody
                await asyncio.sleep(0)
            ended.set()
            await taken.wait()
            with pytest.raises(LockKeyInvalid):
                await engine.unlock(lock)
            return True

        async def task_b() -> bool:
            await ended.wait()
            lock = await engine.lock("s", lock_for=MINUTE)
            taken.set()
            await other
            return await engine.check(lock) == lock

        other = asyncio.create_task(task_a())
        assert await task_b()


@pytest.mark.parametrize("lock_for", [timedelta(0), timedelta(microseconds=500)])
def test_redis_py_timeout_0_means_no_expiry(engine: LockEngine, lock_for: timedelta) -> None:
    """Zero is a lock for ever, half a millisecond an error of the server. Here both are refused unsent."""
    with pytest.raises(InvalidArgument, match="lock_for must be a timedelta of at least 1 ms"):
        engine.lock("s", lock_for=lock_for)
    assert engine.list_locks() == []


def test_redisson_lets_the_clients_clock_decide_expiry() -> None:
    """Redisson's fair lock, rueidislock. Nothing that we send has the caller's clock in it."""
    sources = "".join(map(inspect.getsource, (arguments, calls, locks, slots)))
    assert "now(" not in sources
    assert "time.time" not in sources
    assert "redis.call('TIME')" in scripts.LOCK.source


def test_shedlock_unlocks_without_comparing(engine: LockEngine) -> None:
    """ShedLock's Jedis default deletes whatever is there."""
    lock = engine.lock("s", lock_for=MINUTE)
    with pytest.raises(LockKeyInvalid):
        engine.unlock("s", lock_key="another")
    assert engine.check(lock) == lock


def test_aioredlock_reports_the_unlock_of_an_expired_lock_as_success(engine: LockEngine) -> None:
    """The holder must learn that it did not hold the slot to the end."""
    lock = engine.lock("s", lock_for=SHORT)
    await_end(engine, "s")
    assert not engine.unlock(lock).released


def test_aioredlock_makes_an_expired_lock_anew_on_extend(engine: LockEngine) -> None:
    """Somebody else may have had the slot in between."""
    lock = engine.lock("s", lock_for=SHORT)
    await_end(engine, "s")
    with pytest.raises(LockLost):
        engine.extend(lock, lock_for=MINUTE)
    assert engine.list_locks() == []


def test_etcd_22082_a_late_unlock_removes_a_newer_lock_of_the_same_owner(engine: LockEngine) -> None:
    """An unlock takes the fencing token too."""
    old = engine.lock("s", lock_key="mine", lock_for=MINUTE)
    engine.unlock(old)
    new = engine.lock("s", lock_key="mine", lock_for=MINUTE)
    assert not engine.unlock(old).released
    assert engine.check(new) == new


def test_coredis_rolls_back_with_a_plain_del(connect: Connect, proxy: Proxy, lock_server: EmbeddedServer) -> None:
    """coredis deletes the key after a failed WAIT, whoever has it by then. Our undoing compares."""
    hasty, other = connect(proxy.url, timeout=milliseconds(200)), connect(lock_server.url)
    proxy.hold_request(runs(scripts.LOCK), times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        hasty.lock("s", lock_for=MINUTE)
    theirs = other.lock("s", lock_for=MINUTE)
    seen = proxy.count(runs(scripts.UNLOCK))
    until(lambda: proxy.count(runs(scripts.UNLOCK)) > seen)
    proxy.heal()
    assert other.check(theirs) == theirs


def test_rfencedlock_starts_counting_again_when_redis_lost_its_data(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """A counter that is lost starts again at 1. Ours starts at Redis' clock."""
    engine = connect(own_server.url)
    before = engine.lock("s", lock_for=MINUTE)
    operator.flushall()
    after = engine.lock("s", lock_for=MINUTE)
    assert after.fencing_token > before.fencing_token


def test_tostring_rounds_a_fencing_token(engine: LockEngine) -> None:
    """Lua's ``tostring`` of a microsecond token has 14 digits: tokens collide. Ours differ within a microsecond."""
    tokens = [lock.fencing_token for lock in engine.lock_many([str(i) for i in range(100)], lock_for=MINUTE)]
    assert len(set(tokens)) == 100
    assert [engine.check(str(i), lock_key="x") for i in range(100)] == [None] * 100
    assert [lock.fencing_token for lock in sorted(engine.list_locks(), key=lambda lock: int(lock.slot_id))] == tokens


def test_redisson_6510_fence_keys_that_never_go(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """25 million of them. Ours go with their locks: all that stays is the last token, and some of what was told."""
    for _ in range(20):
        locks = engine.lock_many([f"{i}" for i in range(50)], lock_for=MINUTE)
        engine.unlock_many(locks)
    left = [f"{lock_namespace}:slots:{kind}" for kind in ("events", "locks")]
    assert sorted(raw.keys(f"{lock_namespace}:*")) == left
    assert raw.hkeys(f"{lock_namespace}:slots:locks") == [""]


def test_python_redis_lock_renewer_dies_silently(
    lock_server: EmbeddedServer, lock_namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """python-redis-lock, redisson #2515: the holder goes on without a lock. Ours learns of it at once."""
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:

        def die(*_: object) -> None:
            raise MemoryError("the renewer dies")

        monkeypatch.setattr(engine, "_extend_within", die)
        with pytest.raises(LockLost) as lost, engine.hold("s", lock_for=milliseconds(300)) as hold:
            assert hold.lost.wait(10)
        assert isinstance(lost.value.__cause__, MemoryError)


def test_node_redlock_168_busy_cannot_be_told_from_down(connect: Connect, proxy: Proxy) -> None:
    """node-redlock #168, redsync #164: held by another, not applied, and unknown are three results."""
    engine = connect(proxy.url, timeout=milliseconds(200))
    engine.lock("s", lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock("s", lock_for=MINUTE)
    proxy.withhold_reply(runs(scripts.LOCK), times=ALWAYS)
    with pytest.raises(StoreUnavailable) as unknown:
        engine.lock("t", lock_key="mine", lock_for=MINUTE)
    proxy.refuse()
    with pytest.raises(StoreUnavailable) as down:
        connect(proxy.url, timeout=milliseconds(200)).lock("u", lock_for=MINUTE)
    assert (unknown.value.outcome, down.value.outcome) == ("unknown", "not_applied")


def test_redis_py_8_a_blocking_wait_is_cut_by_the_clients_own_timeout(
    connect: Connect, lock_server: EmbeddedServer
) -> None:
    """A wait may be longer than any call: it ends when the slot comes free, or at its own deadline."""
    engine = connect(lock_server.url, timeout=milliseconds(100))
    engine.lock("s", lock_for=milliseconds(400))
    assert engine.lock("s", lock_for=MINUTE, wait=MINUTE).remaining() > timedelta(seconds=50)


def test_cal_com_18935_a_slot_that_its_own_holder_sees_as_taken(
    connect: Connect, lock_server: EmbeddedServer, new_slot: Callable[..., NewSlot]
) -> None:
    """The holder's view says available; that of everybody else does not."""
    engine = connect(lock_server.url)
    slot = engine.create_slot(new_slot())
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert lock.slot is not None
    assert lock.slot.available
    assert engine.get_slot(slot.id, lock_key=lock.lock_key).available
    assert not engine.get_slot(slot.id).available


def test_cal_com_21589_available_and_can_be_reserved_disagree(
    connect: Connect, lock_server: EmbeddedServer, new_slot: Callable[..., NewSlot]
) -> None:
    """What a list shows as available can be locked, and what it does not show can't."""
    engine = connect(lock_server.url)
    slots = engine.create_slots(new_slot(status=status) for status in ("active", "disabled") * 5)
    engine.lock_many([slot.id for slot in slots[:2:2]], lock_for=MINUTE)
    available = {slot.id for slot in engine.list_slots(available=True).slots}
    for slot in slots:
        try:
            engine.lock(slot.id, lock_for=MINUTE)
        except (SlotLocked, SlotNotLockable):
            assert slot.id not in available
        else:
            assert slot.id in available


def test_pretix_1575_a_failed_attempt_extended_the_hold(engine: LockEngine) -> None:
    """Who is refused changes nothing, not even the date of what it has."""
    mine = engine.lock("a", lock_key="mine", lock_for=MINUTE)
    engine.lock("b", lock_key="theirs", lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock_many(["a", "b"], lock_key="mine", lock_for=3 * MINUTE)
    assert engine.check(mine) == mine


def test_event_espresso_3324_slots_stay_taken_until_a_sweeper_runs(
    connect: Connect, lock_server: EmbeddedServer, new_slot: Callable[..., NewSlot]
) -> None:
    """Expiry is judged when a slot is read: nothing has to run."""
    engine = connect(lock_server.url)
    slot = engine.create_slot(new_slot())
    lock = engine.lock(slot.id, lock_for=SHORT)
    until(lambda: engine.get_slot(slot.id).available)
    assert engine.list_slots(available=True).total == 1
    assert datetime.now(lock.locked_until.tzinfo) >= lock.locked_until - timedelta(seconds=1)


def test_a_token_is_a_value_and_not_a_state(engine: LockEngine) -> None:
    """What a lock call returns is immutable: it means the same wherever it is sent."""
    lock = engine.lock("s", lock_for=MINUTE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        lock.fencing_token = 1  # type: ignore[misc]  # that is the point
