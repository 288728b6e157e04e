"""lock: a slot has one holder until a date by Redis' clock."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import (
    AsyncLockEngine,
    InvalidArgument,
    LockEngine,
    NewSlot,
    Slot,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
)

MINUTE = timedelta(minutes=1)


def test_a_free_slot_is_locked_for_a_duration(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str, redis_now: Callable[[], datetime]
) -> None:
    """The key in Redis is the lock_key itself, with the lock's end as its expiry."""
    before = redis_now()
    lock = engine.lock(slot.id, lock_for=MINUTE)
    after = redis_now()
    assert before + MINUTE - timedelta(milliseconds=1) <= lock.locked_until <= after + MINUTE
    assert not lock.already_held
    assert MINUTE - timedelta(seconds=5) < lock.remaining() <= MINUTE
    key = f"{lock_namespace}:slot:{slot.id}:lock"
    assert raw.get(key) == lock.lock_key
    assert abs(raw.pttl(key) / 1000 - lock.remaining().total_seconds()) < 1


def test_a_free_slot_is_locked_until_a_date(engine: LockEngine, slot: Slot, redis_now: Callable[[], datetime]) -> None:
    """The date comes back to the millisecond, whatever its zone."""
    until = (redis_now() + MINUTE).astimezone(datetime.fromisoformat("2030-01-01T00:00-07:00").tzinfo)
    lock = engine.lock(slot.id, lock_until=until)
    assert lock.locked_until == until.replace(microsecond=until.microsecond // 1000 * 1000)
    assert lock.locked_until.utcoffset() == timedelta(0)


def test_the_payload_is_the_holders_view(engine: LockEngine, slot: Slot) -> None:
    """Available to the holder although it is locked; taken to everybody else."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    assert lock.slot == slot.model_copy(update={"locked_until": lock.locked_until, "available": True})
    assert engine.get_slot(slot.id) == lock.slot.model_copy(update={"available": False})


def test_another_key_is_refused_and_told_until_when(engine: LockEngine, slot: Slot) -> None:
    """The error carries the facts that the caller needs to decide whether to wait."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        engine.lock(slot.id, lock_for=MINUTE)
    assert refused.value.slot_id == slot.id
    assert refused.value.locked_until == lock.locked_until
    assert timedelta(seconds=50) < refused.value.retry_after <= MINUTE
    assert lock.lock_key not in str(refused.value)


def test_the_same_key_gets_its_lock_again(engine: LockEngine, slot: Slot) -> None:
    """Same fencing token, later date: a call whose answer was lost can be made again."""
    first = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    again = engine.lock(slot.id, lock_key="mine", lock_for=2 * MINUTE)
    assert again.fencing_token == first.fencing_token
    assert again.already_held
    assert again.locked_until > first.locked_until + timedelta(seconds=50)


def test_a_late_retry_never_shortens_a_lock(
    engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """The later of two dates holds, in the answer and in Redis."""
    first = engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    again = engine.lock(slot.id, lock_key="mine", lock_for=timedelta(seconds=1))
    assert again.locked_until == first.locked_until
    assert raw.pttl(f"{lock_namespace}:slot:{slot.id}:lock") > 50_000


def test_keys_are_made_where_none_is_given(engine: LockEngine, slot: Slot) -> None:
    """At least 128 bits, another each time."""
    keys = set()
    for _ in range(20):
        lock = engine.lock(slot.id, lock_for=MINUTE)
        engine.unlock(lock)
        keys.add(lock.lock_key)
    assert len(keys) == 20
    assert all(len(key) >= 22 for key in keys)


def test_fencing_tokens_rise(engine: LockEngine, slot: Slot) -> None:
    """Every new lock of a slot has a higher token than all before."""
    tokens = []
    for _ in range(20):
        lock = engine.lock(slot.id, lock_for=MINUTE)
        tokens.append(lock.fencing_token)
        engine.unlock(lock)
    assert tokens == sorted(set(tokens))
    assert all(0 < token < 2**53 for token in tokens)


def test_an_expired_lock_can_be_taken(engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]) -> None:
    """It frees itself at its date; nobody has to clean up."""
    first = engine.lock(slot.id, lock_for=timedelta(milliseconds=30))
    await_expiry(slot.id)
    assert first.remaining() < timedelta(milliseconds=30)
    second = engine.lock(slot.id, lock_for=MINUTE)
    assert second.fencing_token > first.fencing_token
    assert not second.already_held


def test_a_date_in_the_past_is_refused_by_redis_clock(
    engine: LockEngine, slot: Slot, redis_now: Callable[[], datetime]
) -> None:
    """Never an unlock: a lock that is there stays."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    with pytest.raises(InvalidArgument, match="lock_until must be in the future; by Redis' clock it is 20"):
        engine.lock(slot.id, lock_key=lock.lock_key, lock_until=redis_now() - timedelta(seconds=1))
    assert engine.check(lock) == lock


def test_the_callers_clock_judges_nothing(
    engine: LockEngine, slot: Slot, monkeypatch: pytest.MonkeyPatch, redis_now: Callable[[], datetime]
) -> None:
    """A caller whose clock is a year off locks until the date it names, by Redis' clock."""
    year = 365 * 86_400
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + year)
    until = redis_now() + MINUTE
    assert engine.lock(slot.id, lock_until=until).remaining() <= MINUTE


def test_a_date_beyond_the_longest_lock_is_refused(
    make_engine: Callable[..., LockEngine], slot: Slot, redis_now: Callable[[], datetime]
) -> None:
    """The error names the limit, in the engine's own setting."""
    engine = make_engine(max_lock=timedelta(minutes=10))
    with pytest.raises(InvalidArgument, match="lock_until must be at most 10 min from now, the longest lock"):
        engine.lock(slot.id, lock_until=redis_now() + timedelta(minutes=11))
    assert engine.lock(slot.id, lock_for=timedelta(minutes=10)).remaining() > timedelta(minutes=9)


def test_an_unknown_slot_is_not_found(engine: LockEngine) -> None:
    """By default a slot must be registered."""
    with pytest.raises(SlotNotFound, match="slot 'nope' not found"):
        engine.lock("nope", lock_for=MINUTE)


def test_why_a_slot_cannot_be_locked(
    engine: LockEngine, new_slot: Callable[..., NewSlot], raw: redis.Redis, lock_namespace: str
) -> None:
    """In the API's order: not lockable, then disabled, then full; each before whose lock is on it."""
    slot = engine.create_slot(new_slot(lockable=False, status="disabled"))
    key = f"{lock_namespace}:slot:{slot.id}:record"
    raw.set(key, str(raw.get(key)).replace("3ND 0 0 1", "3ND 1 0 1"))  # as one booking leaves it
    reasons = []
    for change in ({"lockable": True}, None, {"capacity": 2}):
        with pytest.raises(SlotNotLockable) as refused:
            engine.lock(slot.id, lock_for=MINUTE)
        reasons.append(refused.value.reason)
        engine.update_slot(slot.id, **change) if change else engine.enable_slot(slot.id)
    assert reasons == ["not_lockable", "disabled", "full"]
    assert not engine.lock(slot.id, lock_for=MINUTE).already_held


def test_the_holder_of_a_disabled_slot_hears_so_and_its_lock_stays(engine: LockEngine, slot: Slot) -> None:
    """A slot that is disabled meanwhile can't be locked again, not even by its holder."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    engine.disable_slot(slot.id)
    with pytest.raises(SlotNotLockable):
        engine.lock(slot.id, lock_key=lock.lock_key, lock_for=MINUTE)
    assert engine.check(lock) == lock


@pytest.mark.parametrize("slot_id", ["a:lock", "{tag}:x", "slot:1:record", "ünï çødé 🎾", "-", "%s", "a b", "x" * 255])
def test_odd_ids_are_slots_like_any_other(engine: LockEngine, new_slot: Callable[..., NewSlot], slot_id: str) -> None:
    """Braces, colons, spaces and unicode are fine."""
    engine.create_slot(new_slot(id=slot_id))
    lock = engine.lock(slot_id, lock_for=MINUTE, lock_key="ключ\n\x00:" * 3)
    assert lock.slot is not None
    assert lock.slot.id == slot_id
    assert engine.unlock(lock).released


def test_waiting_ends_when_the_slot_comes_free(engine: LockEngine, slot: Slot) -> None:
    """A waiter gets the slot after its holder's lock has ended by itself."""
    first = engine.lock(slot.id, lock_for=timedelta(milliseconds=150))
    second = engine.lock(slot.id, lock_for=MINUTE, wait=timedelta(seconds=10))
    assert second.fencing_token > first.fencing_token
    assert first.remaining() <= timedelta(0)


def test_waiting_ends_at_its_deadline(engine: LockEngine, slot: Slot) -> None:
    """With the error that a caller who did not wait gets."""
    lock = engine.lock(slot.id, lock_for=MINUTE)
    started = time.monotonic()
    with pytest.raises(SlotLocked) as refused:
        engine.lock(slot.id, lock_for=MINUTE, wait=timedelta(milliseconds=200))
    assert time.monotonic() - started >= 0.2
    assert refused.value.locked_until == lock.locked_until


def test_a_waiter_is_refused_at_once_what_waiting_cannot_bring(engine: LockEngine, slot: Slot) -> None:
    """Only a lock of another is worth waiting for."""
    engine.disable_slot(slot.id)
    started = time.monotonic()
    with pytest.raises(SlotNotLockable):
        engine.lock(slot.id, lock_for=MINUTE, wait=MINUTE)
    assert time.monotonic() - started < 30


def test_unregistered_slots_can_be_locked_if_allowed(make_engine: Callable[..., LockEngine]) -> None:
    """Locks alone: no record, no payload, everything else as always."""
    engine = make_engine(unregistered="allow")
    lock = engine.lock("anything", lock_for=MINUTE)
    assert lock.slot is None
    with pytest.raises(SlotLocked):
        engine.lock("anything", lock_for=MINUTE)
    assert engine.extend(lock, lock_for=2 * MINUTE).locked_until > lock.locked_until
    assert engine.unlock(lock).released


def test_a_lock_set_by_hand_is_respected(engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """Any client can SET NX the key: its holder is told apart, and its date is the key's own."""
    key = f"{lock_namespace}:slot:{slot.id}:lock"
    raw.set(key, "by-hand", nx=True, px=60_000)
    with pytest.raises(SlotLocked) as refused:
        engine.lock(slot.id, lock_for=MINUTE)
    assert timedelta(seconds=50) < refused.value.retry_after <= MINUTE
    adopted = engine.lock(slot.id, lock_key="by-hand", lock_for=MINUTE)
    assert adopted.fencing_token > 0
    assert engine.lock(slot.id, lock_key="by-hand", lock_for=MINUTE).fencing_token == adopted.fencing_token
    raw.persist(key)
    raw.hdel(f"{lock_namespace}:slots:locks", slot.id)
    with pytest.raises(SlotLocked) as refused:
        engine.lock(slot.id, lock_for=MINUTE)
    assert refused.value.locked_until.year == 9999


def test_one_slot_has_one_winner_among_threads(lock_engine: LockEngine, slot: Slot) -> None:
    """Sixteen threads share one engine; one of them gets the slot."""
    start, won = threading.Barrier(16), []

    def contend() -> None:
        start.wait()
        with contextlib.suppress(SlotLocked):
            won.append(lock_engine.lock(slot.id, lock_for=MINUTE))

    threads = [threading.Thread(target=contend) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


async def test_one_slot_has_one_winner_among_tasks(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """Merged into few calls, callers of one slot still see each other."""
    results: list[Any] = await asyncio.gather(
        *(async_lock_engine.lock(slot.id, lock_for=MINUTE) for _ in range(300)), return_exceptions=True
    )
    assert sum(not isinstance(result, SlotLocked) for result in results) == 1
