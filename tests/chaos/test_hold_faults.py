"""Holds on a bad day: the body learns in time that its lock is lost, and whatever happens the slot comes free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    Hold,
    LockEngine,
    LockLost,
    NewSlot,
    SlotLocked,
    StoreUnavailable,
    scripts,
)

from .proxy import ALWAYS, Proxy, runs
from .tools import MINUTE, Connect, ends_within, milliseconds, until

LOCK_FOR = milliseconds(450)
RENEWAL = LOCK_FOR.total_seconds() / 3
"""Seconds between two renewals."""

GRACE = 0.15
"""Seconds by which a machine that has other work may be late."""

EXTEND, UNLOCK = runs(scripts.EXTEND), runs(scripts.UNLOCK)


@pytest.fixture
def engine(connect: Connect, proxy: Proxy) -> LockEngine:
    """The holder's engine, behind the proxy. Its timeout is far beyond the locks: no test waits for it."""
    return connect(proxy.url, timeout=milliseconds(5000))


@pytest.fixture
def rival(lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[LockEngine]:
    """Whoever else wants the slot, and the operator: no fault of the proxy concerns them."""
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        yield engine


def assert_told_in_time(hold: Hold) -> None:
    """``lost`` is set before the hold's own deadline is over."""
    left = hold.remaining().total_seconds()
    assert hold.lost.wait(left + GRACE)
    with pytest.raises(LockLost):
        hold.raise_if_lost()


# Renewal


def test_a_hold_outlives_its_lock(engine: LockEngine, rival: LockEngine) -> None:
    """Twice as long as the lock lasts, it is the same lock, and nobody else's."""
    with engine.hold("a", lock_for=LOCK_FOR) as hold:
        first = hold.lock
        assert not hold.lost.wait(2 * LOCK_FOR.total_seconds())
        assert hold.lock.locked_until >= first.locked_until + LOCK_FOR
        assert hold.fencing_token == first.fencing_token
        with pytest.raises(SlotLocked):
            rival.lock("a", lock_for=MINUTE)
    rival.lock("a", lock_for=MINUTE)


def test_a_renewal_whose_reply_is_lost_loses_no_lock(engine: LockEngine, proxy: Proxy) -> None:
    """The next try finds the lock where it was, and prolongs it."""
    with engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.lose_reply(EXTEND, times=3)
        assert not hold.lost.wait(1.5 * LOCK_FOR.total_seconds())
        assert proxy.done["lose_reply"] == 3


def test_a_store_that_is_away_for_a_moment_loses_no_lock(engine: LockEngine, proxy: Proxy) -> None:
    """As long as the lock lives, a renewal that failed is made again."""
    lock_for = 3 * LOCK_FOR  # what is left of it when the store is back must be longer than a pause between two tries
    with engine.hold("a", lock_for=lock_for) as hold:
        proxy.refuse()
        assert not hold.lost.wait(lock_for.total_seconds() / 2)
        proxy.heal()
        assert not hold.lost.wait(lock_for.total_seconds())


def test_a_renewal_that_is_refused_once_loses_no_lock(engine: LockEngine, proxy: Proxy) -> None:
    """An error that the engine does not wait out is no loss either, as long as the lock lives."""
    with engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.answer(EXTEND, "-NOPERM somebody changed the rights, and back")
        assert not hold.lost.wait(1.5 * LOCK_FOR.total_seconds())
        assert proxy.done["answer"] == 1


def test_a_hold_is_never_renewed_past_its_lifetime(engine: LockEngine, rival: LockEngine, proxy: Proxy) -> None:
    """However slow the first reply was, the lock ends where its lifetime does, the body is told, and the slot free."""
    lifetime = 2 * LOCK_FOR
    engine.lock("warm up", lock_for=MINUTE)  # so that no handshake is slow, but the lock's own reply
    proxy.delay = 0.1
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR, max_lifetime=lifetime) as hold:
        proxy.delay = 0.0
        began = hold.lock.locked_until - LOCK_FOR  # by Redis' clock, like the end
        until(hold.lost.is_set)
        assert hold.lock.locked_until - began <= lifetime
        assert hold.lock.locked_until - began > lifetime - milliseconds(50)
        rival.lock("a", lock_for=MINUTE, wait=milliseconds(1000 * GRACE))


# Loss


def test_the_body_is_told_when_the_store_is_silent(engine: LockEngine, proxy: Proxy) -> None:
    """No renewal is answered: ``lost`` is set at the lock's deadline, long before the engine's timeout."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.freeze()
        assert_told_in_time(hold)
        proxy.heal()


def test_the_body_is_told_when_the_store_is_gone(engine: LockEngine, proxy: Proxy) -> None:
    """Connections are refused: ``lost`` is set at the lock's deadline."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.refuse()
        assert_told_in_time(hold)
        proxy.heal()


def test_the_body_is_told_when_its_booking_outlasts_the_lock(
    connect: Connect, proxy: Proxy, rival: LockEngine, new_slot: Callable[..., NewSlot]
) -> None:
    """The booking never gets through, and meanwhile the lock ends: whoever waits for ``lost`` must hear of it."""
    rival.create_slot(new_slot(id="a"))
    engine = connect(proxy.url, timeout=2 * LOCK_FOR)
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.freeze()
        with pytest.raises(StoreUnavailable):
            hold.book()
        assert hold.lost.wait(GRACE)
        proxy.heal()


def test_the_body_is_told_when_renewals_trickle_in(engine: LockEngine, proxy: Proxy) -> None:
    """A reply that comes a byte at a time is no reply."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.slices = 1, 0.02
        assert_told_in_time(hold)
        proxy.heal()


def test_the_body_is_told_of_an_operator_at_the_next_renewal(engine: LockEngine, rival: LockEngine) -> None:
    """A lock that was ended by force is missed a third of its length later, and leaving says so, too."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        assert rival.force_unlock("a").released
        assert hold.lost.wait(RENEWAL + GRACE)


def test_leaving_a_lost_hold_leaves_the_next_holder_alone(engine: LockEngine, rival: LockEngine) -> None:
    """The operator gave the slot to somebody else: it stays theirs."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        rival.force_unlock("a")
        theirs = rival.lock("a", lock_for=MINUTE)
        assert hold.lost.wait(RENEWAL + GRACE)
    assert rival.check(theirs) == theirs


def test_a_loss_that_no_renewal_saw_is_told_when_leaving(engine: LockEngine, rival: LockEngine) -> None:
    """The body was over before the next renewal: what it did may have met another holder's work."""
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR):
        rival.force_unlock("a")


def test_a_slot_that_is_deleted_under_a_hold_loses_it(
    engine: LockEngine, rival: LockEngine, new_slot: Callable[..., NewSlot]
) -> None:
    """The lock went with its slot: the body is told at the next renewal."""
    rival.create_slot(new_slot(id="a"))
    with pytest.raises(LockLost), engine.hold("a", lock_for=LOCK_FOR) as hold:
        rival.delete_slot("a")
        assert hold.lost.wait(RENEWAL + GRACE)


def test_a_renewer_that_fails_on_its_own_tells_the_body(engine: LockEngine, proxy: Proxy) -> None:
    """A reply that makes no sense ends the renewer: the body learns of it, at the lock's deadline at the latest."""
    with pytest.raises(LockLost) as error, engine.hold("a", lock_for=LOCK_FOR) as hold:
        proxy.answer(EXTEND, ":1", times=ALWAYS)
        assert_told_in_time(hold)
        assert proxy.done["answer"] > 0
    assert error.value.__cause__ is not None


# Leaving


def test_a_lost_reply_to_the_unlock_is_no_lost_lock(engine: LockEngine, proxy: Proxy, rival: LockEngine) -> None:
    """The lock was held to the end and the slot is free: nothing is wrong, and leaving raises nothing."""
    with engine.hold("a", lock_for=MINUTE):
        proxy.lose_reply(UNLOCK)
    assert proxy.done["lose_reply"] == 1
    rival.lock("a", lock_for=MINUTE)


def test_the_bodys_error_is_not_hidden_by_a_lost_lock(engine: LockEngine, rival: LockEngine) -> None:
    """What the body raised is what its caller gets."""
    with pytest.raises(ZeroDivisionError), engine.hold("a", lock_for=LOCK_FOR) as hold:
        rival.force_unlock("a")
        assert hold.lost.wait(RENEWAL + GRACE)
        raise ZeroDivisionError


def test_the_bodys_error_is_not_hidden_by_a_dead_store(
    connect: Connect, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving takes no longer than the timeout, and logs that the slot stays locked."""
    engine = connect(proxy.url, timeout=milliseconds(400))
    with ends_within(0.4), pytest.raises(ZeroDivisionError), engine.hold("a", lock_for=MINUTE):
        proxy.refuse()
        raise ZeroDivisionError
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "'a' stays locked until" in record.getMessage()


def test_a_body_that_is_done_does_not_fail_with_the_store(
    connect: Connect, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock was held to the end: that it can't be unlocked is a matter for the log, without the key."""
    engine = connect(proxy.url, timeout=milliseconds(400))
    with ends_within(0.4), engine.hold("a", lock_for=MINUTE, lock_key="s3cret"):
        proxy.refuse()
    assert "'a' stays locked until" in caplog.text
    assert "s3cret" not in caplog.text


# Cancelled bodies


async def test_a_cancelled_body_unlocks(proxy: Proxy, rival: LockEngine, lock_namespace: str) -> None:
    """Cancelling is leaving: when the task is over, the slot is free."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        entered = asyncio.Event()

        async def body() -> None:
            async with engine.hold("a", lock_for=MINUTE):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        rival.lock("a", lock_for=MINUTE)


async def test_a_body_that_is_cancelled_twice_unlocks(proxy: Proxy, rival: LockEngine, lock_namespace: str) -> None:
    """The second cancellation meets an unlock that the network still keeps off, and that goes on without the task."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        entered = asyncio.Event()

        async def body() -> None:
            async with engine.hold("a", lock_for=MINUTE):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await entered.wait()
        proxy.cut_request(UNLOCK, times=ALWAYS)
        task.cancel()
        await asyncio.to_thread(until, lambda: proxy.done["cut_request"] > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [lock.slot_id for lock in rival.list_locks()] == ["a"]
        proxy.heal()
        await asyncio.to_thread(until, lambda: not rival.list_locks())


async def test_a_hold_that_is_cancelled_while_it_is_entered_unlocks(
    proxy: Proxy, rival: LockEngine, lock_namespace: str
) -> None:
    """The lock's reply was on its way when the task was cancelled: nobody holds the slot in the end."""
    options: dict[str, Any] = {"namespace": lock_namespace, "unregistered": "allow", "timeout": milliseconds(500)}
    async with AsyncLockEngine.from_url(proxy.url, **options) as engine:
        await engine.unlock(await engine.lock("warm up", lock_for=MINUTE))

        async def body() -> None:
            async with engine.hold("a", lock_for=MINUTE):
                pass

        proxy.withhold_reply(runs(scripts.LOCK))
        task = asyncio.create_task(body())
        await asyncio.to_thread(until, lambda: proxy.done["withhold_reply"] == 1)
        assert [lock.slot_id for lock in rival.list_locks()] == ["a"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: not rival.list_locks())


async def test_a_renewal_that_is_on_its_way_does_not_bring_the_lock_back(
    proxy: Proxy, rival: LockEngine, lock_namespace: str
) -> None:
    """The body ends while a renewal is held up in the network: what arrives after the unlock makes no lock."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        proxy.hold_request(EXTEND)
        async with engine.hold("a", lock_for=LOCK_FOR):
            await asyncio.to_thread(until, lambda: proxy.done["hold_request"] == 1)
        assert not rival.list_locks()
        proxy.heal()
        theirs = rival.lock("a", lock_for=MINUTE)
        await asyncio.to_thread(until, lambda: proxy.late == 1)
        assert rival.check(theirs) == theirs


async def test_closing_the_engine_does_not_make_the_body_look_failed(
    proxy: Proxy, lock_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The store is silent while the body ends: the engine gives up the unlock, and the lock ends by its date."""
    options: dict[str, Any] = {"namespace": lock_namespace, "unregistered": "allow"}
    async with AsyncLockEngine.from_url(proxy.url, **options) as engine:
        entered = asyncio.Event()
        ends = asyncio.Event()

        async def body() -> str:
            async with engine.hold("a", lock_for=MINUTE):
                entered.set()
                await ends.wait()
                return "done"

        task = asyncio.create_task(body())
        await entered.wait()
        proxy.freeze()
        ends.set()
        await asyncio.sleep(0)
        await engine.close()
        assert await task == "done"
        proxy.heal()
    assert "stays locked until" in caplog.text
