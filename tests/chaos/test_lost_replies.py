"""Replies that never arrive: what was done is done once, what is unknown says so, and what nobody can own is undone."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, cast

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    Lock,
    LockEngine,
    NewSlot,
    Quota,
    SlotLocked,
    SlotNotFound,
    StoreUnavailable,
    TooManyLocks,
    scripts,
)
from overbooked_lock.keys import Keys

from .proxy import ALWAYS, Proxy, runs
from .tools import MINUTE, Connect, ends_within, milliseconds, stopped, until

TIMEOUT = 0.35
"""The engines' timeout where it is to run out, in seconds."""

NewSlots = Callable[..., NewSlot]

LOCK, UNLOCK, EXTEND = runs(scripts.LOCK), runs(scripts.UNLOCK), runs(scripts.EXTEND)
GET, BOOK, DELETE = runs(scripts.GET_SLOTS), runs(scripts.BOOK), runs(scripts.DELETE_BOOKINGS)


class Store:
    """What the server holds of a test's locks, whatever the engine says."""

    def __init__(self, raw: redis.Redis, namespace: str) -> None:
        self._raw = raw
        self._keys = Keys(namespace)

    def is_locked(self, slot_id: str) -> bool:
        return self._raw.exists(self._keys.lock(slot_id)) == 1

    def token(self, slot_id: str = "") -> int:
        """The fencing token of a slot's lock; without a slot the last that was given out at all."""
        held = cast("str | None", self._raw.hget(self._keys.locks, slot_id))
        return int(held.split(" ")[0]) if held else 0

    def tokens_given(self) -> list[int]:
        """The fencing tokens of all locks that were ever made, by what the stream of events tells."""
        entries: Any = self._raw.xrange(self._keys.events)
        lines = [line for _, entry in entries for line in entry["events"].split("\n")]
        return [int(line.split("\t")[4]) for line in lines if line.startswith("locked\t")]


@pytest.fixture
def store(raw: redis.Redis, lock_namespace: str) -> Store:
    return Store(raw, lock_namespace)


@pytest.fixture
def engine(connect: Connect, proxy: Proxy) -> LockEngine:
    """An engine behind the proxy, whose time does not run out."""
    return connect(proxy.url, timeout=milliseconds(10_000))


@pytest.fixture
def hasty(connect: Connect, proxy: Proxy) -> LockEngine:
    """An engine behind the proxy that gives up soon, and is connected: what it sends now, it has sent."""
    engine = connect(proxy.url, timeout=milliseconds(TIMEOUT * 1000))
    engine.unlock(engine.lock("warm up", lock_for=MINUTE))
    return engine


# A reply is lost, and the call made again by the engine


def test_a_lock_whose_reply_is_lost_is_one_lock(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """The caller gets the lock that the lost reply told of: new, and with the only token that was given out."""
    proxy.lose_reply(LOCK)
    lock = engine.lock("a", lock_for=MINUTE)
    assert proxy.done["lose_reply"] == 1
    assert not lock.already_held
    assert lock.fencing_token == store.token("a") == store.token()
    assert engine.unlock(lock).released


def test_a_lock_with_a_key_of_ones_own_survives_a_lost_reply(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """A caller's own key changes nothing about it: one lock, one token."""
    proxy.lose_reply(LOCK)
    lock = engine.lock("a", lock_key="mine", lock_for=MINUTE)
    assert proxy.done["lose_reply"] == 1
    assert lock.fencing_token == store.token("a") == store.token()


def test_many_lost_replies_in_a_row_are_one_lock(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """However often the reply is lost, no call gives out a second token."""
    proxy.lose_reply(LOCK, times=4)
    lock = engine.lock("a", lock_for=MINUTE)
    assert proxy.done["lose_reply"] == 4
    assert not lock.already_held
    assert lock.fencing_token == store.token()


def test_lock_many_whose_reply_is_lost_locks_each_slot_once(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """The caller gets every lock of the lost reply, each new and with the slot's only token."""
    slot_ids = [f"seat-{number}" for number in range(20)]
    proxy.lose_reply(LOCK)
    locks = engine.lock_many(slot_ids, lock_for=MINUTE)
    assert proxy.done["lose_reply"] == 1
    assert not any(lock.already_held for lock in locks)
    assert [lock.fencing_token for lock in locks] == [store.token(slot_id) for slot_id in slot_ids]
    assert store.token() - locks[0].fencing_token == len(slot_ids) - 1


def test_an_extend_whose_reply_is_lost_keeps_the_lock(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """The lock lives longer, with the token it had."""
    lock = engine.lock("a", lock_for=MINUTE)
    proxy.lose_reply(EXTEND)
    extended = engine.extend(lock, lock_for=2 * MINUTE)
    assert proxy.done["lose_reply"] == 1
    assert extended.locked_until > lock.locked_until
    assert extended.fencing_token == lock.fencing_token == store.token("a")


def test_an_unlock_whose_reply_is_lost_frees_the_slot(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """That the lock is gone when the call is made again is the call's own work."""
    lock = engine.lock("a", lock_for=MINUTE)
    proxy.lose_reply(UNLOCK)
    assert engine.unlock(lock).released
    assert proxy.done["lose_reply"] == 1
    assert not store.is_locked("a")


def test_an_unlock_by_key_alone_whose_reply_is_lost_tells_what_it_found(engine: LockEngine, proxy: Proxy) -> None:
    """Without a fencing token nobody can know that the lock was there before."""
    engine.lock("a", lock_key="desk 4", lock_for=MINUTE)
    proxy.lose_reply(UNLOCK)
    assert not engine.unlock("a", lock_key="desk 4").released
    assert proxy.done["lose_reply"] == 1


def test_a_lock_under_a_quota_whose_reply_is_lost_counts_once(engine: LockEngine, proxy: Proxy) -> None:
    """The lock made again is the one that was counted."""
    quota = Quota("till 7", most=1)
    proxy.lose_reply(LOCK)
    lock = engine.lock("a", lock_for=MINUTE, quota=quota)
    assert proxy.done["lose_reply"] == 1
    with pytest.raises(TooManyLocks):
        engine.lock("b", lock_for=MINUTE, quota=quota)
    engine.unlock(lock)
    engine.lock("b", lock_for=MINUTE, quota=quota)


def test_an_api_key_whose_reply_is_lost_is_one_key(engine: LockEngine, proxy: Proxy) -> None:
    """The caller gets the key that the lost reply told of; no other is left behind that nobody knows."""
    proxy.lose_reply(runs(scripts.CREATE_API_KEY), times=2)
    made = engine.create_api_key("secret")
    assert proxy.done["lose_reply"] == 2
    assert engine.find_api_key(made.key) is not None
    assert [info.id for info in engine.list_api_keys()] == [made.id]
    assert engine.list_api_keys()[0].created_at == made.created_at


def test_a_revocation_whose_reply_is_lost_is_the_callers_own_work(engine: LockEngine, proxy: Proxy) -> None:
    """That the key is gone when the call is made again is what the call did."""
    made = engine.create_api_key("secret")
    proxy.lose_reply(runs(scripts.REVOKE_API_KEY))
    assert engine.revoke_api_key(made.id) is True
    assert proxy.done["lose_reply"] == 1
    assert engine.list_api_keys() == []


def test_an_answer_whose_reply_is_lost_is_kept_once(engine: LockEngine, proxy: Proxy) -> None:
    """The call made again finds its own answer, as everybody does."""
    proxy.lose_reply(runs(scripts.KEEP_ANSWER))
    assert engine.keep_answer("order 7", "mine", keep_for=MINUTE) == "mine"
    assert proxy.done["lose_reply"] == 1
    assert engine.keep_answer("order 7", "another", keep_for=MINUTE) == "mine"


def test_an_unlock_made_again_never_ends_the_next_holders_lock(
    connect: Connect, engine: LockEngine, proxy: Proxy, lock_server: EmbeddedServer
) -> None:
    """Between the lost reply and the next try the slot went to somebody else with the same key: it stays theirs."""
    lock = engine.lock("a", lock_key="desk 4", lock_for=MINUTE)
    proxy.lose_reply(UNLOCK)
    proxy.delay = 0.2  # the second try is held up in its handshake
    with ThreadPoolExecutor() as pool:
        unlocking = pool.submit(engine.unlock, lock)
        until(lambda: proxy.done["lose_reply"] == 1)
        direct = connect(lock_server.url)
        newer = direct.lock("a", lock_key="desk 4", lock_for=MINUTE)
        assert unlocking.result().released
    assert direct.check(newer) is not None


def test_slots_whose_creation_is_not_confirmed_are_created_once(
    engine: LockEngine, proxy: Proxy, new_slot: NewSlots
) -> None:
    """The slots of the lost reply are no other slots in the way."""
    slots = [new_slot() for _ in range(3)]
    proxy.lose_reply(runs(scripts.CREATE_SLOTS))
    created = engine.create_slots(slots)
    assert proxy.done["lose_reply"] == 1
    assert [slot.id for slot in created] == [slot.id for slot in slots]
    assert engine.list_slots().total == 3


def test_an_update_whose_reply_is_lost_is_made_once(
    engine: LockEngine, proxy: Proxy, new_slot: NewSlots, raw: redis.Redis, lock_namespace: str
) -> None:
    """The caller sees the slot as it changed it, and the second try does not count as a change."""
    slot = engine.create_slot(new_slot(capacity=1))
    proxy.lose_reply(runs(scripts.UPDATE_SLOT))
    proxy.delay = 0.1  # the second try is held up in its handshake
    with ThreadPoolExecutor() as pool:
        updating = pool.submit(engine.update_slot, slot.id, capacity=7)
        until(lambda: proxy.done["lose_reply"] == 1)
        record = raw.get(Keys(lock_namespace).record(slot.id))
        assert updating.result().capacity == 7
    assert raw.get(Keys(lock_namespace).record(slot.id)) == record


def test_a_deletion_whose_reply_is_lost_succeeds(engine: LockEngine, proxy: Proxy, new_slot: NewSlots) -> None:
    """That the slot is not there when the call is made again is the call's own work."""
    slot = engine.create_slot(new_slot())
    proxy.lose_reply(runs(scripts.DELETE_SLOTS))
    assert engine.delete_slot(slot.id)
    assert proxy.done["lose_reply"] == 1
    with pytest.raises(SlotNotFound):
        engine.get_slot(slot.id)


def test_a_booking_whose_reply_is_lost_is_one_booking(engine: LockEngine, proxy: Proxy, new_slot: NewSlots) -> None:
    """Made again it finds itself: the lock counts as consumed and not as expired, and the place is taken once."""
    slot = engine.create_slot(new_slot(capacity=2))
    lock = engine.lock(slot.id, lock_for=MINUTE)
    proxy.lose_reply(runs(scripts.BOOK))
    booking = engine.book(lock)
    assert not booking.lock_expired
    assert engine.get_slot(slot.id).num_active_bookings == 1
    assert engine.list_bookings().bookings == (booking,)


def test_what_becomes_of_a_booking_survives_a_lost_reply(engine: LockEngine, proxy: Proxy, new_slot: NewSlots) -> None:
    """Each change is made once, whatever the number of tries."""
    slot, target = engine.create_slots([new_slot(), new_slot()])
    booking = engine.book(slot.id)
    proxy.lose_reply(runs(scripts.CANCEL_BOOKING))
    assert engine.cancel_booking(booking.id).status == "cancelled"
    proxy.lose_reply(runs(scripts.ENABLE_BOOKING))
    assert engine.enable_booking(booking.id).status == "active"
    proxy.lose_reply(runs(scripts.RESCHEDULE_BOOKING))
    assert engine.reschedule_booking(booking.id, target.id).slot_id == target.id
    assert (engine.get_slot(slot.id).num_bookings, engine.get_slot(target.id).num_bookings) == (0, 1)
    proxy.lose_reply(runs(scripts.DELETE_BOOKINGS))
    assert engine.delete_booking(booking.id) is True
    assert engine.get_slot(target.id).num_bookings == 0


def test_a_request_that_is_cut_off_is_sent_again(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """What the server never saw it is told again."""
    proxy.cut_request(LOCK, times=2)
    lock = engine.lock("a", lock_for=MINUTE)
    assert proxy.done["cut_request"] == 2
    assert lock.fencing_token == store.token()


def test_idle_connections_that_were_reset_cost_no_call(engine: LockEngine, proxy: Proxy) -> None:
    """Connections that broke while nobody used them are replaced without a word to the caller."""
    lock = engine.lock("a", lock_for=MINUTE)
    for _ in range(5):
        proxy.reset()
        assert engine.check(lock) is not None


def test_many_idle_connections_that_broke_at_once_cost_one_more_try(engine: LockEngine, proxy: Proxy) -> None:
    """What broke one has broken all: the next call does not try them one after the other."""
    proxy.delay = 0.05
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: engine.lock(f"seat-{number}", lock_for=MINUTE), range(16)))
    proxy.delay = 0.0
    proxy.reset()
    with ends_within(0):
        engine.lock("a", lock_for=MINUTE)


def test_replies_in_tiny_pieces_are_read_whole(engine: LockEngine, proxy: Proxy, new_slot: NewSlots) -> None:
    """Where the network cuts a reply has nothing to do with what it says."""
    proxy.slices = 3, 0.0
    slot = engine.create_slot(new_slot(metadata={"note": "x" * 500}))
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert engine.get_slot(slot.id, lock_key=lock.lock_key) == lock.slot


# Many callers in one call


async def test_all_callers_of_a_merged_call_get_their_lock_when_its_reply_is_lost(
    proxy: Proxy, store: Store, lock_namespace: str
) -> None:
    """A hundred callers share a few calls; one lost reply costs none of them its lock, or a second token."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        first = await engine.lock("warm up", lock_for=MINUTE)
        before = proxy.count(LOCK)
        proxy.lose_reply(LOCK)
        slot_ids = [f"seat-{number}" for number in range(100)]
        locks = await asyncio.gather(*(engine.lock(slot_id, lock_for=MINUTE) for slot_id in slot_ids))
    assert proxy.done["lose_reply"] == 1
    assert proxy.count(LOCK) - before < 10
    assert not any(lock.already_held for lock in locks)
    assert [lock.fencing_token for lock in locks] == [store.token(slot_id) for slot_id in slot_ids]
    assert sorted(store.tokens_given()) == sorted(lock.fencing_token for lock in [first, *locks])


async def test_rivals_in_a_merged_call_stay_rivals_when_its_reply_is_lost(
    proxy: Proxy, store: Store, lock_namespace: str
) -> None:
    """Of ten callers of one slot one gets it, and the second try does not give it to another."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        await engine.lock("warm up", lock_for=MINUTE)
        proxy.lose_reply(LOCK)
        rivals = (engine.lock("a", lock_for=MINUTE) for _ in range(10))
        outcomes = await asyncio.gather(*rivals, return_exceptions=True)
    assert proxy.done["lose_reply"] == 1
    [lock] = [outcome for outcome in outcomes if isinstance(outcome, Lock)]
    assert sum(isinstance(outcome, SlotLocked) for outcome in outcomes) == 9
    assert lock.fencing_token == store.token("a") == store.token()


def test_threads_that_share_an_engine_lose_no_lock(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """Replies are lost here and there under sixteen threads: each gets its own lock."""
    proxy.lose_reply(LOCK, times=5)
    proxy.lose_reply(UNLOCK, times=5)

    def lock_and_unlock(number: int) -> bool:
        lock = engine.lock(f"seat-{number}", lock_for=MINUTE)
        engine.unlock(lock)
        return lock.slot_id == f"seat-{number}" and not lock.already_held

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(lock_and_unlock, range(100)))
    assert proxy.done["lose_reply"] == 10
    assert not any(store.is_locked(f"seat-{number}") for number in range(100))


# No reply at all


def test_what_was_never_sent_is_known_not_to_be_applied(connect: Connect, proxy: Proxy, store: Store) -> None:
    """Connections are refused until the timeout is over: the error says that nothing was changed."""
    proxy.refuse()
    engine = connect(proxy.url, timeout=milliseconds(TIMEOUT * 1000))
    with ends_within(TIMEOUT), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    proxy.heal()
    assert engine.lock("a", lock_for=MINUTE).fencing_token == store.token()


def test_a_server_that_never_greets_was_sent_nothing(connect: Connect, proxy: Proxy) -> None:
    """A new connection that is accepted and then met with silence carries no call."""
    proxy.freeze()
    engine = connect(proxy.url, timeout=milliseconds(TIMEOUT * 1000))
    with ends_within(TIMEOUT), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"


def test_a_call_without_an_answer_ends_by_the_timeout_as_unknown(hasty: LockEngine, proxy: Proxy) -> None:
    """A black hole holds nobody longer than the timeout, and the error says that nobody can know."""
    proxy.freeze()
    with ends_within(TIMEOUT), pytest.raises(StoreUnavailable) as error:
        hasty.lock("a", lock_key="mine", lock_for=MINUTE)
    assert error.value.outcome == "unknown"


def test_a_reply_that_trickles_in_ends_by_the_timeout(hasty: LockEngine, proxy: Proxy) -> None:
    """That some bytes arrive now and then does not make the call any longer."""
    proxy.slices = 1, 0.05
    with ends_within(TIMEOUT), pytest.raises(StoreUnavailable):
        hasty.lock("a", lock_key="mine", lock_for=MINUTE)


def test_slow_replies_end_by_the_timeout(connect: Connect, proxy: Proxy) -> None:
    """A handshake of several slow replies takes no more time than one."""
    proxy.delay = 0.2
    engine = connect(proxy.url, timeout=milliseconds(TIMEOUT * 1000))
    with ends_within(TIMEOUT), pytest.raises(StoreUnavailable):
        engine.lock("a", lock_key="mine", lock_for=MINUTE)


def test_many_calls_without_an_answer_all_end_by_the_timeout(hasty: LockEngine, proxy: Proxy) -> None:
    """None of two hundred callers waits for the timeouts of the others."""
    proxy.freeze()

    def outcome(number: int) -> str:
        with ends_within(TIMEOUT), pytest.raises(StoreUnavailable) as error:
            hasty.lock(f"seat-{number}", lock_key="mine", lock_for=MINUTE)
        return error.value.outcome

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(outcome, range(200))) <= {"unknown", "not_applied"}


async def test_closing_an_engine_ends_the_calls_that_wait_for_a_store(proxy: Proxy, lock_namespace: str) -> None:
    """Calls that are between two tries when their engine is closed end, too, and so do those in the queue."""
    proxy.answer(GET, "-LOADING its data", times=ALWAYS)
    engine = AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, timeout=MINUTE)
    calls = [asyncio.create_task(engine.get_slot(f"seat-{number}")) for number in range(300)]
    await asyncio.to_thread(until, lambda: proxy.errors["LOADING"] > 5)
    await engine.close()
    done, pending = await asyncio.wait(calls, timeout=2)
    for call in pending:
        call.cancel()
    assert not pending
    assert all(isinstance(call.exception(), StoreUnavailable) for call in done)


def test_a_call_that_closing_ends_between_two_tries_is_unknown(engine: LockEngine, proxy: Proxy, store: Store) -> None:
    """The first try may have been carried out, and here it was: that the last one was never sent says nothing."""
    proxy.lose_reply(LOCK, times=ALWAYS)
    with ThreadPoolExecutor() as pool:
        locking = pool.submit(engine.lock, "a", lock_key="mine", lock_for=MINUTE)
        until(lambda: proxy.done["lose_reply"] > 3)
        engine.close()
        with pytest.raises(StoreUnavailable) as error:
            locking.result()
    assert store.is_locked("a")
    assert error.value.outcome == "unknown"


# What nobody can unlock is undone


def test_a_lock_of_unknown_outcome_is_undone_in_the_background(hasty: LockEngine, proxy: Proxy, store: Store) -> None:
    """Nobody has the key that the engine made: the engine unlocks the slot as soon as it can."""
    proxy.withhold_reply(LOCK, times=ALWAYS)
    proxy.cut_request(UNLOCK, times=ALWAYS)
    with pytest.raises(StoreUnavailable) as error:
        hasty.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "unknown"
    assert store.is_locked("a")
    proxy.heal()
    until(lambda: not store.is_locked("a"))


def test_a_lock_that_arrives_after_its_undoing_is_undone_again(hasty: LockEngine, proxy: Proxy, store: Store) -> None:
    """The network holds the request back, and brings it when the first unlock found nothing."""
    before = store.token()
    unlocks = proxy.count(UNLOCK)
    proxy.hold_request(LOCK, times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        hasty.lock("a", lock_for=MINUTE)
    until(lambda: proxy.count(UNLOCK) > unlocks)
    proxy.heal()
    until(lambda: store.token() > before and not store.is_locked("a"))


def test_lock_many_of_unknown_outcome_is_undone_whole(hasty: LockEngine, proxy: Proxy, store: Store) -> None:
    """All the slots come free, not only the first."""
    slot_ids = [f"seat-{number}" for number in range(20)]
    proxy.withhold_reply(LOCK, times=ALWAYS)
    proxy.cut_request(UNLOCK, times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        hasty.lock_many(slot_ids, lock_for=MINUTE)
    assert all(map(store.is_locked, slot_ids))
    proxy.heal()
    until(lambda: not any(map(store.is_locked, slot_ids)))


def test_a_lock_with_a_key_of_ones_own_is_never_undone(hasty: LockEngine, proxy: Proxy, store: Store) -> None:
    """The caller has the key: the lock may be an earlier one of theirs, and they can ask again."""
    proxy.withhold_reply(LOCK, times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        hasty.lock("a", lock_key="mine", lock_for=MINUTE)
    with pytest.raises(StoreUnavailable):
        hasty.lock("the clock", lock_for=MINUTE)
    proxy.heal()
    # What is undone was locked later than what must not be: when it is free, the other would be, too.
    until(lambda: not store.is_locked("the clock"))
    again = hasty.lock("a", lock_key="mine", lock_for=MINUTE)
    assert again.already_held
    assert again.fencing_token == store.token("a")


def test_bookings_of_unknown_outcome_are_undone(
    hasty: LockEngine, proxy: Proxy, lock_engine: LockEngine, new_slot: NewSlots
) -> None:
    """Nobody has the ids that the engine made, so nobody could cancel: the places are free again as soon as it can."""
    one, *two = (slot.id for slot in lock_engine.create_slots(new_slot() for _ in range(3)))
    proxy.withhold_reply(BOOK, times=ALWAYS)
    proxy.cut_request(DELETE, times=ALWAYS)
    with pytest.raises(StoreUnavailable) as error:
        hasty.book(one)
    assert error.value.outcome == "unknown"
    with pytest.raises(StoreUnavailable):
        hasty.book_many(two)
    assert {booking.slot_id for booking in lock_engine.list_bookings().bookings} == {one, *two}
    proxy.heal()
    until(lambda: lock_engine.list_bookings().total == 0)
    assert all(lock_engine.get_slot(slot_id).available for slot_id in (one, *two))


def test_a_booking_with_an_id_of_ones_own_is_never_undone(
    hasty: LockEngine, proxy: Proxy, lock_engine: LockEngine, new_slot: NewSlots
) -> None:
    """The caller has the id: they can ask again, or cancel."""
    mine, clock = (slot.id for slot in lock_engine.create_slots([new_slot(), new_slot()]))
    proxy.withhold_reply(BOOK, times=ALWAYS)
    with pytest.raises(StoreUnavailable):
        hasty.book(mine, booking_id="mine")
    with pytest.raises(StoreUnavailable):
        hasty.book(clock)
    proxy.heal()
    # What is undone was booked later than what must not be.
    until(lambda: lock_engine.get_slot(clock).num_bookings == 0)
    assert hasty.book(mine, booking_id="mine") == lock_engine.get_booking("mine")


def test_closing_an_engine_ends_its_undoing(hasty: LockEngine, proxy: Proxy) -> None:
    """An engine that is closed leaves nothing behind that knocks at a dead store, however much there was to undo."""
    threads = set(threading.enumerate())
    proxy.withhold_reply(LOCK, times=ALWAYS)
    proxy.cut_request(UNLOCK, times=ALWAYS)

    def outcome(number: int) -> str:
        with pytest.raises(StoreUnavailable) as error:
            hasty.lock(f"seat-{number}", lock_for=MINUTE)
        return error.value.outcome

    with ThreadPoolExecutor(10) as pool:
        assert "unknown" in set(pool.map(outcome, range(10)))
    with ends_within(2 * TIMEOUT):
        hasty.close()
    until(lambda: threads.issuperset(threading.enumerate()), seconds=2)


# Cancelled and interrupted callers


async def test_what_undoes_a_call_does_not_overtake_it(proxy: Proxy, store: Store, lock_namespace: str) -> None:
    """There are two connections, and the request may hang on one: the unlock waits until it was answered."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        await asyncio.gather(*(engine.check(slot_id, lock_key="mine") for slot_id in "ab"))
        sent, undone = proxy.count(LOCK), proxy.count(UNLOCK)
        proxy.hold_request(LOCK)
        locking = asyncio.create_task(engine.lock("a", lock_for=MINUTE))
        await asyncio.to_thread(until, lambda: proxy.count(LOCK) > sent)
        locking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await locking
        for _ in range(10):
            await engine.check("b", lock_key="mine")  # the other connection is free
        assert proxy.count(UNLOCK) == undone
        proxy.heal()
        await asyncio.to_thread(until, lambda: proxy.count(UNLOCK) > undone and not store.is_locked("a"))
        assert store.token() > 0


async def test_a_cancelled_booking_is_undone(
    proxy: Proxy, lock_engine: LockEngine, lock_namespace: str, new_slot: NewSlots
) -> None:
    """The request was on its way when its caller went: the booking that it makes does not stay."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace) as engine:
        slot = await engine.create_slot(new_slot(capacity=2))
        first = await engine.book(slot.id)
        sent, undone = proxy.count(BOOK), proxy.count(DELETE)
        proxy.freeze()
        booking = asyncio.create_task(engine.book(slot.id))
        await asyncio.to_thread(until, lambda: proxy.count(BOOK) > sent)
        booking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await booking
        proxy.heal()
        await asyncio.to_thread(until, lambda: proxy.count(DELETE) > undone)
        await asyncio.to_thread(until, lambda: lock_engine.get_slot(slot.id).num_bookings == 1)
        assert (await engine.list_bookings()).bookings == (first,)


async def test_a_cancelled_lock_is_undone(proxy: Proxy, store: Store, lock_namespace: str) -> None:
    """The request was on its way when its caller went: the lock that it makes does not stay."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        await engine.unlock(await engine.lock("warm up", lock_for=MINUTE))
        before = store.token()
        sent = proxy.count(LOCK)
        proxy.freeze()
        locking = asyncio.create_task(engine.lock("a", lock_for=MINUTE))
        await asyncio.to_thread(until, lambda: proxy.count(LOCK) > sent)
        locking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await locking
        proxy.heal()
        await asyncio.to_thread(until, lambda: store.token() > before and not store.is_locked("a"))


async def test_a_cancelled_lock_with_a_key_of_ones_own_is_not_undone(
    proxy: Proxy, store: Store, lock_namespace: str
) -> None:
    """A re-lock that is cancelled never releases the hold that was there; nor does any lock with a caller's key."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        lock = await engine.lock("a", lock_for=MINUTE)
        sent = proxy.count(LOCK)
        proxy.freeze()
        tasks = [
            asyncio.create_task(engine.lock("a", lock_key=lock.lock_key, lock_for=2 * MINUTE)),
            asyncio.create_task(engine.lock("b", lock_key="mine", lock_for=MINUTE)),
            asyncio.create_task(engine.lock("the clock", lock_for=MINUTE)),
        ]
        await asyncio.to_thread(until, lambda: proxy.count(LOCK) > sent)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        proxy.heal()
        await asyncio.to_thread(until, lambda: store.is_locked("b") and not store.is_locked("the clock"))
        held = await engine.check(lock)
        assert held is not None
        assert held.fencing_token == lock.fencing_token
        assert store.is_locked("b")


async def test_a_cancelled_caller_costs_its_neighbours_nothing(
    proxy: Proxy, new_slot: NewSlots, lock_namespace: str
) -> None:
    """Half of those who share a call are cancelled: the rest get their own answers, and nobody another's."""
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace) as engine:
        slots = await engine.create_slots([new_slot(capacity=number + 1) for number in range(40)])
        proxy.delay = 0.1
        calls = [asyncio.create_task(engine.get_slot(slot.id)) for slot in slots]
        before = proxy.count(GET)
        await asyncio.to_thread(until, lambda: proxy.count(GET) > before)
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[1::2] == slots[1::2]
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        assert await asyncio.gather(*(engine.get_slot(slot.id) for slot in slots)) == slots


class Interrupted(BaseException):
    """What a signal handler raises in the middle of a call, as Ctrl-C does."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread, in which pytest runs the test."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def _when(happened: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    def wait_and_act() -> None:
        until(happened)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def test_the_reply_to_an_interrupted_call_answers_no_other(
    proxy: Proxy, new_slot: NewSlots, lock_namespace: str, interrupt: Callable[[], None]
) -> None:
    """The interrupted call's reply is on its way: the next calls get their own, on whatever connection."""
    with LockEngine.from_url(proxy.url, namespace=lock_namespace) as engine:
        slots = engine.create_slots([new_slot(capacity=number + 1) for number in range(10)])
        engine.get_slot(slots[0].id)
        seen = proxy.count(GET)
        proxy.delay = 0.2
        interrupter = _when(lambda: proxy.count(GET) > seen, interrupt)
        with pytest.raises(Interrupted):
            engine.get_slot(slots[0].id)
        interrupter.join()
        proxy.delay = 0.0
        for slot in slots:
            assert engine.get_slot(slot.id) == slot


def test_an_interrupted_lock_is_undone(
    proxy: Proxy, store: Store, lock_namespace: str, interrupt: Callable[[], None]
) -> None:
    """Ctrl-C while the request is on its way leaves no lock that nobody has the key of."""
    with LockEngine.from_url(proxy.url, namespace=lock_namespace, unregistered="allow") as engine:
        engine.unlock(engine.lock("warm up", lock_for=MINUTE))
        before = store.token()
        sent = proxy.count(LOCK)
        proxy.freeze()
        interrupter = _when(lambda: proxy.count(LOCK) > sent, interrupt)
        with pytest.raises(Interrupted):
            engine.lock("a", lock_for=MINUTE)
        interrupter.join()
        proxy.heal()
        until(lambda: store.token() > before and not store.is_locked("a"))


# A server that stands still


def test_a_stopped_server_holds_no_call_beyond_its_timeout(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, lock_namespace: str
) -> None:
    """The kernel takes the requests and nobody reads them: the calls end, and what the server does later is undone."""
    store = Store(operator, lock_namespace)
    engine = connect(own_server.url, timeout=milliseconds(TIMEOUT * 1000))
    engine.unlock(engine.lock("warm up", lock_for=MINUTE))
    before = store.token()
    slot_ids = [f"seat-{number}" for number in range(20)]

    def outcome(slot_id: str) -> str:
        with pytest.raises(StoreUnavailable) as error:
            engine.lock(slot_id, lock_for=MINUTE)
        return error.value.outcome

    with stopped(own_server), ends_within(TIMEOUT), ThreadPoolExecutor(20) as pool:
        assert "unknown" in set(pool.map(outcome, slot_ids))
    until(lambda: store.token() > before and not any(map(store.is_locked, slot_ids)))
