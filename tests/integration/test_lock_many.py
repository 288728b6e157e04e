"""lock_many: a row of seats, all or nothing, in one step."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
import redis

from overbooked_lock import (
    EmbeddedServer,
    LockEngine,
    NewSlot,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    locks,
)
from overbooked_lock.calls import Settings
from overbooked_lock.keys import Keys

MINUTE = timedelta(minutes=1)


@pytest.fixture
def ids(lock_engine: LockEngine, new_slot: Callable[..., NewSlot]) -> list[str]:
    """A row of five seats."""
    return [slot.id for slot in lock_engine.create_slots(new_slot() for _ in range(5))]


def test_all_are_locked_with_one_key_and_one_date(engine: LockEngine, ids: list[str]) -> None:
    """Each has a fencing token of its own, and the payload of its own slot."""
    locks = engine.lock_many(ids, lock_for=MINUTE)
    assert [lock.slot_id for lock in locks] == ids
    assert len({lock.lock_key for lock in locks}) == 1
    assert len({lock.locked_until for lock in locks}) == 1
    assert len({lock.fencing_token for lock in locks}) == 5
    assert [lock.slot.id for lock in locks if lock.slot] == ids


@pytest.mark.parametrize("right", ["+@all", "-msetex"])
def test_many_are_set_with_one_command_by_who_may(
    lock_server: EmbeddedServer, lock_namespace: str, ids: list[str], raw: redis.Redis, right: str
) -> None:
    """Where the server has that command. Without the right to it the same is done one by one, and nothing is denied."""
    if "msetex" not in raw.command():
        pytest.skip("MSETEX came with Valkey 9.1 and Redis 8.4")
    raw.acl_setuser("setter", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", right])
    try:
        raw.config_resetstat()
        raw.acl_log_reset()
        client = redis.Redis.from_url(lock_server.url, username="setter", password="pw")
        with LockEngine(client, namespace=lock_namespace) as engine:
            locks = engine.lock_many(ids, lock_for=MINUTE)
            called = raw.info("commandstats")
            assert [engine.check(lock) for lock in locks] == locks
        sets = [called.get(f"cmdstat_{command}", {}).get("calls", 0) for command in ("msetex", "set")]
        assert sets == ([1, 0] if right == "+@all" else [0, 5])
        assert raw.acl_log() == []
    finally:
        raw.acl_deluser("setter")
    keys = Keys(lock_namespace)
    assert raw.mget(map(keys.lock, ids)) == [lock.lock_key for lock in locks]
    assert all(55_000 < raw.pttl(keys.lock(slot_id)) <= 60_000 for slot_id in ids)


def test_callers_with_dates_of_their_own_in_one_call(
    lock_engine: LockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """An engine merges what its callers ask for at one time."""
    keys = Keys(lock_namespace)
    call = locks.lock(
        Settings(keys, 86_400_000, "registered"),
        [locks.LockRequest(slot_id, "mine", f"+{minute * 60_000}") for minute, slot_id in enumerate(ids, 1)],
    )
    raw.eval(call.script.source, len(call.keys), *call.keys, *call.args)
    assert [math.ceil(raw.pttl(keys.lock(slot_id)) / 60_000) for slot_id in ids] == [1, 2, 3, 4, 5]


def test_one_in_the_way_and_nothing_is_locked(engine: LockEngine, ids: list[str]) -> None:
    """The error names which slot was in the way and until when."""
    theirs = engine.lock(ids[3], lock_for=MINUTE)
    with pytest.raises(SlotLocked) as refused:
        engine.lock_many(ids, lock_for=MINUTE)
    assert (refused.value.slot_id, refused.value.locked_until) == (ids[3], theirs.locked_until)
    assert [lock.slot_id for lock in engine.list_locks()] == [ids[3]]


def test_whatever_is_wrong_with_one_nothing_is_locked(
    engine: LockEngine, ids: list[str], raw: redis.Redis, lock_namespace: str
) -> None:
    """Unknown, disabled, or a key of another kind: the first in order is named."""
    with pytest.raises(SlotNotFound, match="nope"):
        engine.lock_many([*ids, "nope"], lock_for=MINUTE)
    engine.disable_slot(ids[1])
    with pytest.raises(SlotNotLockable, match=ids[1]):
        engine.lock_many(ids, lock_for=MINUTE)
    engine.enable_slot(ids[1])
    raw.hset(f"{lock_namespace}:slot:{ids[4]}:lock", "not", "ours")
    with pytest.raises(StoreCorrupt, match=ids[4]):
        engine.lock_many(ids, lock_for=MINUTE)
    assert engine.list_locks() == []


def test_a_failed_attempt_does_not_extend_what_was_held(engine: LockEngine, ids: list[str]) -> None:
    """All or nothing holds for dates too."""
    mine = engine.lock(ids[0], lock_key="mine", lock_for=MINUTE)
    engine.lock(ids[4], lock_key="theirs", lock_for=MINUTE)
    with pytest.raises(SlotLocked):
        engine.lock_many(ids, lock_key="mine", lock_for=5 * MINUTE)
    assert engine.check(mine) == mine


def test_the_same_key_gets_its_row_again(engine: LockEngine, ids: list[str]) -> None:
    """What it held it still holds, with the same tokens; the rest is new."""
    first = engine.lock_many(ids[:3], lock_key="mine", lock_for=MINUTE)
    again = engine.lock_many(ids, lock_key="mine", lock_for=MINUTE)
    assert [lock.already_held for lock in again] == [True, True, True, False, False]
    assert [lock.fencing_token for lock in again[:3]] == [lock.fencing_token for lock in first]


def test_waiting_for_a_row(engine: LockEngine, ids: list[str]) -> None:
    """The row is taken when its last seat comes free."""
    engine.lock(ids[2], lock_for=timedelta(milliseconds=100))
    assert len(engine.lock_many(ids, lock_for=MINUTE, wait=timedelta(seconds=10))) == 5


def test_the_most_slots_of_a_call(engine: LockEngine, new_slot: Callable[..., NewSlot]) -> None:
    """512 slots are one call: locked, extended, unlocked."""
    ids = [slot.id for slot in engine.create_slots(new_slot() for _ in range(512))]
    locks = engine.lock_many(ids, lock_for=MINUTE)
    assert len(engine.extend_many(locks, lock_for=2 * MINUTE)) == 512
    assert all(unlocked.released for unlocked in engine.unlock_many(locks))


def test_crossing_rows_never_share_a_seat(lock_engine: LockEngine, ids: list[str]) -> None:
    """Threads go for overlapping rows in opposite orders: no deadlock, no seat held twice."""
    holders: dict[str, int] = dict.fromkeys(ids, 0)
    guard, start = threading.Lock(), threading.Barrier(8)

    def contend(row: list[str]) -> None:
        start.wait()
        for _ in range(25):
            try:
                locks = lock_engine.lock_many(row, lock_for=MINUTE, wait=timedelta(seconds=20))
            except SlotLocked:
                continue
            for change in (1, -1):
                with guard:
                    for slot_id in row:
                        holders[slot_id] += change
                        overlaps.append(holders[slot_id] > 1)
            lock_engine.unlock_many(locks)

    overlaps: list[bool] = []
    rows = [ids[:3], ids[2:], ids[::-1], ids[1:4]] * 2
    threads = [threading.Thread(target=contend, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(overlaps) > 100
    assert not any(overlaps)
