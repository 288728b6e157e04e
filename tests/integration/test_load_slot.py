"""load_slot: slots may live in the host's own database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    InvalidArgument,
    LockEngine,
    NewSlot,
    Slot,
    SlotLocked,
    SlotNotFound,
    StoreUnavailable,
)

MINUTE = timedelta(minutes=1)
Make = Callable[..., NewSlot]


class Database:
    """A host's database: answers when it is told to, and counts who asks."""

    def __init__(self, new_slot: Make) -> None:
        self.asked: list[str] = []
        self.answer: Callable[[str], NewSlot | None] = lambda slot_id: new_slot(id=slot_id)

    def load(self, slot_id: str) -> NewSlot | None:
        self.asked.append(slot_id)
        return self.answer(slot_id)

    async def aload(self, slot_id: str) -> NewSlot | None:
        return self.load(slot_id)


@pytest.fixture
def database(new_slot: Make) -> Database:
    """Knows every slot."""
    return Database(new_slot)


@pytest.fixture
def loading(make_engine: Callable[..., LockEngine], database: Database, request: pytest.FixtureRequest) -> LockEngine:
    """An engine that asks the database."""
    kind = request.node.callspec.params["make_engine"]
    return make_engine(load_slot=database.load if kind == "sync" else database.aload)


def test_an_unknown_slot_is_fetched_and_registered(loading: LockEngine, engine: LockEngine, database: Database) -> None:
    """Once; from then on every engine knows it."""
    lock = loading.lock("seat-1", lock_for=MINUTE)
    assert lock.slot is not None
    assert lock.slot.resource_id == "court-1"
    loading.unlock(lock)
    loading.lock("seat-1", lock_for=MINUTE)
    assert database.asked == ["seat-1"]
    assert engine.get_slot("seat-1").id == "seat-1"


def test_whatever_verb_comes_first(loading: LockEngine, database: Database) -> None:
    """Reading fetches as locking does; a row fetches each seat it lacks."""
    assert loading.get_slot("seat-1").id == "seat-1"
    assert len(loading.lock_many(["seat-1", "seat-2", "seat-3"], lock_for=MINUTE)) == 3
    assert database.asked == ["seat-1", "seat-2", "seat-3"]


def test_a_slot_that_the_host_does_not_know(loading: LockEngine, database: Database) -> None:
    """Not found, as without a loader."""
    database.answer = lambda _: None
    for verb in (loading.get_slot, lambda slot_id: loading.lock(slot_id, lock_for=MINUTE)):
        with pytest.raises(SlotNotFound):
            verb("nope")


def test_the_loaders_own_error_reaches_the_caller(loading: LockEngine, database: Database) -> None:
    """And the next call asks again."""

    def fail(_: str) -> NewSlot:
        raise LookupError("database is down")

    knows, database.answer = database.answer, fail
    with pytest.raises(LookupError, match="database is down"):
        loading.lock("seat-1", lock_for=MINUTE)
    database.answer = knows
    assert not loading.lock("seat-1", lock_for=MINUTE).already_held


def test_a_slot_with_another_id_is_refused(loading: LockEngine, database: Database, new_slot: Make) -> None:
    """A loader that answers with something else would be asked for ever."""
    database.answer = lambda _: new_slot(id="another")
    with pytest.raises(InvalidArgument, match="load_slot must return a slot with the id asked for, 'seat-1'"):
        loading.lock("seat-1", lock_for=MINUTE)


def test_what_is_registered_meanwhile_wins(
    loading: LockEngine, lock_engine: LockEngine, database: Database, new_slot: Make
) -> None:
    """A slot is registered only if it still is absent."""

    def slow(slot_id: str) -> NewSlot:
        lock_engine.create_slot(new_slot(id=slot_id, capacity=9))
        return new_slot(id=slot_id, capacity=1)

    database.answer = slow
    lock = loading.lock("seat-1", lock_for=MINUTE)
    assert lock.slot is not None
    assert lock.slot.capacity == 9


def test_threads_ask_once_at_a_time(
    lock_server: EmbeddedServer, lock_namespace: str, database: Database, new_slot: Make
) -> None:
    """Sixteen callers of one unknown slot never make two queries at once."""
    entered, go_on, one = threading.Event(), threading.Event(), threading.Lock()

    def slow(slot_id: str) -> NewSlot:
        assert one.acquire(blocking=False)
        entered.set()
        assert go_on.wait(10)
        one.release()
        return new_slot(id=slot_id)

    database.answer = slow
    seen: list[Slot] = []
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, load_slot=database.load) as engine:
        threads = [threading.Thread(target=lambda: seen.append(engine.get_slot("seat-1"))) for _ in range(16)]
        for thread in threads:
            thread.start()
        assert entered.wait(10)
        go_on.set()
        for thread in threads:
            thread.join()
    assert len(seen) == 16


async def test_tasks_ask_once_at_a_time(lock_server: EmbeddedServer, lock_namespace: str, new_slot: Make) -> None:
    """One of them may be cancelled: the others still get the slot."""
    asked: list[str] = []
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def load(slot_id: str) -> NewSlot:
        asked.append(slot_id)
        entered.set()
        await go_on.wait()
        return new_slot(id=slot_id)

    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, load_slot=load) as engine:
        tasks = [asyncio.create_task(engine.lock("seat-1", lock_for=MINUTE)) for _ in range(50)]
        await entered.wait()
        tasks[0].cancel()
        go_on.set()
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert asked == ["seat-1"]
    assert isinstance(results[0], asyncio.CancelledError)
    assert sum(not isinstance(result, SlotLocked | asyncio.CancelledError) for result in results) == 1


async def test_closing_ends_who_waits_for_the_host(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """They are told that the engine is closed, and are not cancelled: nobody cancelled them."""
    entered = asyncio.Event()

    async def load(slot_id: str) -> NewSlot | None:
        entered.set()
        await asyncio.Event().wait()
        return None

    timeout = timedelta(milliseconds=50)  # closing waits as long for the host
    engine = AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, timeout=timeout, load_slot=load)
    asked = asyncio.create_task(engine.lock("seat-1", lock_for=MINUTE))
    await entered.wait()
    await engine.close()
    with pytest.raises(StoreUnavailable, match="this engine is closed") as refused:
        await asked
    assert refused.value.outcome == "not_applied"


def test_booking_fetches_what_is_not_here(loading: LockEngine, database: Database) -> None:
    """As locking does: one, a row, and where a booking is to go; and only once."""
    booking = loading.book("seat-1")
    assert [booking.slot_id for booking in loading.book_many(["seat-2", "seat-3"])] == ["seat-2", "seat-3"]
    assert loading.reschedule_booking(booking.id, "seat-4").slot_id == "seat-4"
    assert database.asked == ["seat-1", "seat-2", "seat-3", "seat-4"]
    database.answer = lambda _: None
    with pytest.raises(SlotNotFound, match="seat-5"):
        loading.book("seat-5")
