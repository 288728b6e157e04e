"""lock and lock_many under a quota: its holder never has more live locks than it allows."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    InvalidArgument,
    Lock,
    LockEngine,
    NewSlot,
    Quota,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    TooManyLocks,
)
from overbooked_lock.keys import Keys

MINUTE = timedelta(minutes=1)
THREE = Quota("pk_1|192.0.2.7", most=3)


@pytest.fixture
def ids(lock_engine: LockEngine, new_slot: Callable[..., NewSlot]) -> list[str]:
    """A row of eight seats."""
    return [slot.id for slot in lock_engine.create_slots(new_slot() for _ in range(8))]


@pytest.fixture
def counted(raw: redis.Redis, lock_namespace: str) -> Callable[[], set[str]]:
    """The slots that the quota's holder is charged for, ended ones included."""
    return lambda: set(map(str, raw.hkeys(Keys(lock_namespace).locks_of(THREE.holder))))


def take(engine: LockEngine, ids: list[str], **options: Any) -> list[Lock]:
    """Locks slots one by one under the quota."""
    defaults: dict[str, Any] = {"lock_for": MINUTE, "quota": THREE}
    return [engine.lock(slot_id, **(defaults | options)) for slot_id in ids]


def test_no_more_than_the_quota_allows(engine: LockEngine, ids: list[str]) -> None:
    """The error says which slot, how many are allowed, and when the first of them ends; nothing is locked."""
    take(engine, ids[:1], lock_for=2 * MINUTE)
    first = engine.lock(ids[1], lock_for=MINUTE, quota=THREE)
    take(engine, ids[2:3], lock_for=3 * MINUTE)
    with pytest.raises(TooManyLocks) as refused:
        take(engine, ids[3:4])
    error = refused.value
    assert (error.slot_id, error.most, error.reason, error.code, error.status) == (ids[3], 3, "live_locks", "E062", 429)
    assert first.remaining() - timedelta(seconds=1) < error.retry_after <= MINUTE
    assert {lock.slot_id for lock in engine.list_locks()} == set(ids[:3])


def test_each_holder_has_its_own(engine: LockEngine, ids: list[str]) -> None:
    """Another holder, or nobody's quota, is not in the way."""
    take(engine, ids[:3])
    engine.lock(ids[3], lock_for=MINUTE, quota=Quota("another", most=1))
    engine.lock(ids[4], lock_for=MINUTE)
    assert len(engine.list_locks()) == 5


@pytest.mark.parametrize("holder", ["a|b:locks", "%s %d", "ключ\n\x00", " 7 x", "x" * 255])
def test_a_holder_is_any_text(engine: LockEngine, ids: list[str], holder: str) -> None:
    """It is told from others to the letter."""
    take(engine, ids[:1], quota=Quota(holder, most=1))
    with pytest.raises(TooManyLocks):
        take(engine, ids[1:2], quota=Quota(holder, most=1))
    take(engine, ids[1:2], quota=Quota(holder[:-1] + "!", most=1))


def test_what_has_ended_does_not_count(
    engine: LockEngine, ids: list[str], await_expiry: Callable[[str], None], counted: Callable[[], set[str]]
) -> None:
    """Unlocked, forced, expired, its slot deleted: each gives its place back, and is forgotten when that is needed."""
    quota = Quota(THREE.holder, most=4)
    locks = take(engine, ids[:3], quota=quota)
    take(engine, ids[3:4], quota=quota, lock_for=timedelta(milliseconds=20))
    engine.unlock(locks[0])
    engine.force_unlock(ids[1])
    engine.delete_slot(ids[2])
    await_expiry(ids[3])
    take(engine, ids[4:], quota=quota)
    assert counted() == set(ids[4:])
    with pytest.raises(TooManyLocks):
        take(engine, ids[:1], quota=quota)


def test_a_slot_that_another_has_by_now_does_not_count(engine: LockEngine, ids: list[str]) -> None:
    """The fencing token tells the holder's lock from the one that came after it."""
    for lock in take(engine, ids[:3]):
        engine.unlock(lock)
    engine.lock_many(ids[:3], lock_for=MINUTE)
    assert take(engine, ids[3:6])
    with pytest.raises(TooManyLocks):
        take(engine, ids[6:7])


def test_a_lock_that_somebody_deleted_by_hand_does_not_count(
    engine: LockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """A lock lives as long as its key, for a quota too."""
    take(engine, ids[:3])
    raw.delete(Keys(lock_namespace).lock(ids[0]))
    assert take(engine, ids[3:4])


def test_the_same_key_locks_again_at_no_cost(engine: LockEngine, ids: list[str]) -> None:
    """A retry or a prolongation is never refused for the quota, and counts once."""
    first = engine.lock(ids[0], lock_key="mine", lock_for=MINUTE, quota=THREE)
    take(engine, ids[1:3])
    again = engine.lock(ids[0], lock_key="mine", lock_for=2 * MINUTE, quota=THREE)
    assert (again.fencing_token, again.already_held) == (first.fencing_token, True)
    engine.unlock(again)
    assert take(engine, ids[3:4])


def test_an_extended_lock_counts_as_long_as_it_lives(
    engine: LockEngine, ids: list[str], await_expiry: Callable[[str], None]
) -> None:
    """Past the end that it was made with, and its new end is the one to wait for."""
    until = timedelta(milliseconds=60)
    locks = take(engine, ids[:3], lock_for=until)
    engine.extend(locks[0], lock_for=MINUTE)
    await_expiry(ids[1])
    await_expiry(ids[2])
    with pytest.raises(TooManyLocks) as refused:
        take(engine, ids[3:4], quota=Quota(THREE.holder, most=1))
    assert timedelta(seconds=50) < refused.value.retry_after <= MINUTE


def test_the_count_is_kept_as_long_as_the_longest_lock(
    make_engine: Callable[..., LockEngine], ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """From the last lock that was made or prolonged under the quota, and no engine shortens what another needs."""
    name = Keys(lock_namespace).locks_of(THREE.holder)
    hour, day = 3_600_000, 24 * 3_600_000
    engine, modest = make_engine(), make_engine(max_lock=timedelta(hours=1))
    modest.lock(ids[0], lock_key="mine", lock_for=MINUTE, quota=THREE)
    assert hour - 60_000 < raw.pttl(name) <= hour
    engine.lock(ids[0], lock_key="mine", lock_for=MINUTE, quota=THREE)
    assert day - 60_000 < raw.pttl(name) <= day
    modest.lock(ids[1], lock_for=MINUTE, quota=THREE)
    assert day - 60_000 < raw.pttl(name) <= day


def test_without_a_quota_nothing_is_kept(
    engine: LockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """Neither for a lock, nor for what happens to one that was made under a quota."""
    engine.lock(ids[0], lock_for=MINUTE)
    assert raw.keys(f"{lock_namespace}:holder:*") == []
    [lock] = take(engine, ids[1:2])
    [name] = raw.keys(f"{lock_namespace}:holder:*")
    before = raw.dump(name)
    engine.unlock(engine.extend(lock, lock_for=2 * MINUTE))
    engine.lock(ids[1], lock_for=MINUTE)
    engine.delete_slot(ids[1])
    assert raw.dump(name) == before


def test_what_is_in_the_way_of_anybody_comes_first(
    engine: LockEngine, ids: list[str], new_slot: Callable[..., NewSlot], redis_now: Callable[[], datetime]
) -> None:
    """Only a lock that would be made is refused for the quota: not found, not lockable and taken come before it."""
    take(engine, ids[:3])
    engine.lock(ids[3], lock_for=MINUTE)
    engine.disable_slot(ids[4])
    for slot_id, kind in (("nope", SlotNotFound), (ids[3], SlotLocked), (ids[4], SlotNotLockable)):
        with pytest.raises(kind):
            take(engine, [slot_id])
    with pytest.raises(InvalidArgument, match="must be in the future"):
        take(engine, ids[5:6], lock_for=None, lock_until=redis_now() - MINUTE)


def test_a_row_counts_seat_by_seat(engine: LockEngine, ids: list[str], counted: Callable[[], set[str]]) -> None:
    """All or nothing: the error names the first seat that is too many, and what is refused costs nothing."""
    engine.lock(ids[0], lock_key="mine", lock_for=5 * MINUTE, quota=THREE)
    with pytest.raises(TooManyLocks) as refused:
        engine.lock_many(ids[1:4], lock_for=MINUTE, quota=THREE)
    assert refused.value.slot_id == ids[3]
    assert 4 * MINUTE < refused.value.retry_after <= 5 * MINUTE
    assert counted() == {ids[0]}
    assert len(engine.lock_many(ids[:3], lock_key="mine", lock_for=2 * MINUTE, quota=THREE)) == 3
    assert counted() == set(ids[:3])


def test_a_row_that_another_lock_is_in_the_way_of_costs_nothing(engine: LockEngine, ids: list[str]) -> None:
    """Its seats are not counted."""
    engine.lock(ids[2], lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock_many(ids[:3], lock_for=MINUTE, quota=THREE)
    assert len(engine.lock_many(ids[3:6], lock_for=MINUTE, quota=THREE)) == 3


def test_a_row_beyond_the_quota_is_no_matter_of_time(engine: LockEngine, ids: list[str]) -> None:
    """Who asks for more than may ever be granted is told so, and not to try again later."""
    with pytest.raises(InvalidArgument, match="slot_ids must name at most 3 slots that are not yours yet"):
        engine.lock_many(ids[:4], lock_for=MINUTE, quota=THREE)
    assert engine.list_locks() == []


def test_a_smaller_quota_counts_what_a_larger_one_allowed(engine: LockEngine, ids: list[str]) -> None:
    """A holder is one, whatever it may: the limit is that of the call."""
    take(engine, ids[:3])
    with pytest.raises(TooManyLocks):
        take(engine, ids[3:4], quota=Quota(THREE.holder, most=2))
    assert take(engine, ids[3:4], quota=Quota(THREE.holder, most=4))


def test_a_key_of_another_kind_fails_its_own_request(
    engine: LockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """The holder's key is not ours to change, and no other holder notices."""
    name = Keys(lock_namespace).locks_of(THREE.holder)
    raw.set(name, "not ours")
    mine = engine.lock(ids[0], lock_key="mine", lock_for=MINUTE)
    with pytest.raises(StoreCorrupt):
        take(engine, ids[1:2])
    assert engine.lock(ids[0], lock_key="mine", lock_for=MINUTE, quota=THREE).fencing_token == mine.fencing_token
    assert (raw.get(name), raw.ttl(name)) == ("not ours", -1)


async def test_callers_of_one_moment_count_each_other(
    async_lock_engine: AsyncLockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """Merged into few calls, a holder's requests do not slip through together, and other holders' are untouched."""
    raw.set(Keys(lock_namespace).locks_of("spoilt"), "not ours")
    quotas = [THREE] * 5 + [Quota("another", most=1), None, Quota("spoilt", most=1)]
    results: list[Any] = await asyncio.gather(
        *(
            async_lock_engine.lock(slot_id, lock_for=MINUTE, quota=quota)
            for slot_id, quota in zip(ids, quotas, strict=True)
        ),
        return_exceptions=True,
    )
    assert [type(result) for result in results[5:]] == [Lock, Lock, StoreCorrupt]
    # Calls that go over two connections have no order, so which of the five come first is open.
    assert Counter(type(result) for result in results[:5]) == {Lock: 3, TooManyLocks: 2}
    refused = next(result for result in results if isinstance(result, TooManyLocks))
    assert timedelta(seconds=50) < refused.retry_after <= MINUTE


def test_many_threads_of_one_holder_never_have_more(lock_engine: LockEngine, ids: list[str], soak: bool) -> None:
    """Threads lock and unlock under one quota: at no time are more locks alive than it allows."""
    live: set[int] = set()
    guard, start = threading.Lock(), threading.Barrier(8)
    most_seen, refusals, failures = [0], [0], []

    def contend(slot_id: str) -> None:
        start.wait()
        for _ in range(500 if soak else 60):
            try:
                lock = lock_engine.lock(slot_id, lock_for=MINUTE, quota=THREE)
            except TooManyLocks:
                with guard:
                    refusals[0] += 1
                continue
            except Exception as error:  # noqa: BLE001 - a thread must not fail in silence
                failures.append(error)
                return
            with guard:
                live.add(lock.fencing_token)
                most_seen[0] = max(most_seen[0], len(live))
            lock_engine.check(lock)  # the others have time to try
            with guard:
                live.remove(lock.fencing_token)
            lock_engine.unlock(lock)

    threads = [threading.Thread(target=contend, args=(slot_id,)) for slot_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert refusals[0] > 0
    assert 1 <= most_seen[0] <= 3


def test_no_error_shows_the_holder_or_a_key(engine: LockEngine, ids: list[str]) -> None:
    """A holder may be somebody's address, and a lock_key is a secret."""
    take(engine, ids[:3])
    with pytest.raises(TooManyLocks) as refused:
        engine.lock(ids[3], lock_key="my-secret", lock_for=MINUTE, quota=THREE)
    shown = f"{refused.value!r} {vars(refused.value)}"
    assert "192.0.2.7" not in shown
    assert "my-secret" not in shown
