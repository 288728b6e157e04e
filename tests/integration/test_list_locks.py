"""list_locks, and what locks leave behind: nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import cast

import pytest
import redis

from overbooked_lock import LockEngine, NewSlot, Slot
from overbooked_lock.operations import CHUNK

MINUTE = timedelta(minutes=1)


def test_live_locks_by_their_end(
    engine: LockEngine, new_slot: Callable[..., NewSlot], redis_now: Callable[[], datetime]
) -> None:
    """Which slots are held, until when, since when, and a hash that tells one holder from another."""
    a, b, _ = engine.create_slots(new_slot() for _ in range(3))
    before = redis_now() - timedelta(milliseconds=1)
    later = engine.lock(a.id, lock_for=2 * MINUTE)
    sooner = engine.lock(b.id, lock_for=MINUTE)
    listed = engine.list_locks()
    assert [lock.slot_id for lock in listed] == [b.id, a.id]
    assert [lock.locked_until for lock in listed] == [sooner.locked_until, later.locked_until]
    assert all(before <= lock.locked_since <= redis_now() for lock in listed)
    assert [lock.fencing_token for lock in listed] == [sooner.fencing_token, later.fencing_token]
    digest = hashlib.sha1(later.lock_key.encode(), usedforsecurity=False).hexdigest()
    assert listed[1].key_hash == digest[:8]
    assert later.lock_key not in repr(listed)


def test_ended_locks_are_not_listed(engine: LockEngine, slot: Slot, await_expiry: Callable[[str], None]) -> None:
    """Expired or unlocked, swept or not."""
    engine.lock(slot.id, lock_for=timedelta(milliseconds=20))
    await_expiry(slot.id)
    assert engine.list_locks() == []


def test_more_locks_than_a_call_looks_at(engine: LockEngine, new_slot: Callable[..., NewSlot]) -> None:
    """All are listed, each once."""
    ids = []
    for _ in range(2):
        slots = engine.create_slots(new_slot() for _ in range(CHUNK))
        ids += [slot.id for slot in slots]
        engine.lock_many(ids[-CHUNK:], lock_for=MINUTE)
    assert sorted(lock.slot_id for lock in engine.list_locks()) == sorted(ids)


@pytest.fixture
def in_one_piece(raw: redis.Redis) -> Iterator[None]:
    """A server that stores large hashes in one piece."""
    name = "hash-max-ziplist-entries"  # which all servers know; to the newer it is another name of -listpack-entries
    before = cast("dict[str, str]", raw.config_get(name))
    raw.config_set(name, 20_000)
    yield
    raw.config_set(name, before[name])


@pytest.mark.usefixtures("in_one_piece")
def test_locks_that_the_server_gives_all_at_once(make_engine: Callable[..., LockEngine]) -> None:
    """Whatever it is asked for: they are more than a script may name in one command."""
    engine = make_engine(unregistered="allow")
    ids = [str(i) for i in range(9000)]
    for at in range(0, len(ids), 500):
        engine.lock_many(ids[at : at + 500], lock_for=MINUTE)
    assert sorted(lock.slot_id for lock in engine.list_locks()) == sorted(ids)


def test_expired_locks_leave_nothing_behind(
    make_engine: Callable[..., LockEngine], raw: redis.Redis, lock_namespace: str, await_expiry: Callable[[str], None]
) -> None:
    """Later locks sweep up after earlier ones: the bookkeeping never grows beyond what is alive."""
    engine = make_engine(unregistered="allow")
    for round_ in range(5):
        locks = engine.lock_many([f"{round_}-{i}" for i in range(100)], lock_for=timedelta(milliseconds=15))
        await_expiry(locks[-1].slot_id)
    assert raw.zcard(f"{lock_namespace}:slots:expiry") <= 100
    engine.lock_many([f"last-{i}" for i in range(100)], lock_for=MINUTE)
    assert raw.zcard(f"{lock_namespace}:slots:expiry") == 100
    assert raw.hlen(f"{lock_namespace}:slots:locks") == 101
    assert len(raw.keys(f"{lock_namespace}:*")) == 103
