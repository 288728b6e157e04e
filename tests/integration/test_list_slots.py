"""list_slots and prune_slots: in the order of their start, filtered, paged with a total."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import LockEngine, NewSlot, Slot
from overbooked_lock.keys import Keys
from overbooked_lock.operations import CHUNK

HOUR = timedelta(hours=1)
DAY = datetime(2030, 6, 1, tzinfo=UTC)
Make = Callable[..., NewSlot]


@pytest.fixture
def day(lock_engine: LockEngine, new_slot: Make) -> list[Slot]:
    """Two courts, each with a slot at every hour of a day; created last to first."""
    new = [
        new_slot(
            id=f"{court}-{hour:02}", resource_id=court, start_date=DAY + hour * HOUR, end_date=DAY + (hour + 1) * HOUR
        )
        for hour in range(24)
        for court in ("court-a", "court-b")
    ]
    slots = lock_engine.create_slots(reversed(new))
    return list(reversed(slots))


def ids(slots: Any) -> list[str]:
    return [slot.id for slot in slots]


def test_in_the_order_of_their_start(engine: LockEngine, day: list[Slot]) -> None:
    """All of them, whole."""
    page = engine.list_slots()
    assert list(page.slots) == day
    assert (page.total, page.limit, page.page) == (48, 50, 1)


def test_by_resource(engine: LockEngine, day: list[Slot], new_slot: Make) -> None:
    """And not those of one whose id begins alike."""
    engine.create_slot(new_slot(resource_id="court-a2"))
    engine.create_slot(new_slot(resource_id="court-"))
    page = engine.list_slots(resource_id="court-a")
    assert page.slots == tuple(slot for slot in day if slot.resource_id == "court-a")
    assert engine.list_slots(resource_id="court").total == 0


@pytest.mark.parametrize("resource_id", [None, "court-a"])
@pytest.mark.parametrize(
    ("since", "until"), [(None, None), (9, None), (None, 17), (9, 17), (9.5, 16.5), (24, None), (None, 0), (12, 12)]
)
def test_by_time_range(
    engine: LockEngine, day: list[Slot], resource_id: str | None, since: float | None, until: float | None
) -> None:
    """Those that start at or after, and end at or before."""
    start = None if since is None else DAY + since * HOUR
    end = None if until is None else DAY + until * HOUR
    page = engine.list_slots(resource_id=resource_id, start_date=start, end_date=end)
    expected = [
        slot.id
        for slot in day
        if (resource_id is None or slot.resource_id == resource_id)
        and (start is None or slot.start_date >= start)
        and (end is None or slot.end_date <= end)
    ]
    assert ids(page.slots) == expected
    assert page.total == len(expected)


def test_a_long_slot_that_ends_too_late(engine: LockEngine, day: list[Slot], new_slot: Make) -> None:
    """One that starts within the range and ends beyond it is not in it."""
    long = engine.create_slot(new_slot(resource_id="court-a", start_date=DAY + HOUR, end_date=DAY + 20 * HOUR))
    assert long.id not in ids(engine.list_slots(end_date=DAY + 10 * HOUR).slots)
    assert long.id in ids(engine.list_slots(start_date=DAY + HOUR, end_date=DAY + 20 * HOUR).slots)


@pytest.mark.parametrize(
    "filters", [{}, {"resource_id": "court-b"}, {"available": True}, {"end_date": DAY + 24 * HOUR}]
)
def test_pages(engine: LockEngine, day: list[Slot], filters: dict[str, Any]) -> None:
    """Pages join to the whole list; beyond the last one there is nothing, and the total stays."""
    whole = engine.list_slots(**filters)
    pages = [engine.list_slots(**filters, limit=7, page=number) for number in range(1, 9)]
    assert tuple(slot for page in pages for slot in page.slots) == whole.slots
    assert {page.total for page in pages} == {whole.total}
    assert engine.list_slots(**filters, limit=7, page=100).slots == ()


def test_by_availability(engine: LockEngine, day: list[Slot]) -> None:
    """To the one who asks: a lock of one's own does not count."""
    engine.disable_slot("court-a-03")
    lock = engine.lock("court-a-05", lock_for=HOUR)
    taken = ["court-a-03", "court-a-05"]
    assert ids(engine.list_slots(available=False).slots) == taken
    assert ids(engine.list_slots(available=False, lock_key=lock.lock_key).slots) == ["court-a-03"]
    assert engine.list_slots(available=True).total == 46
    assert engine.list_slots(available=True, lock_key=lock.lock_key).total == 47
    assert not set(ids(engine.list_slots(resource_id="court-a", available=True).slots)) & set(taken)


@pytest.mark.parametrize("record", ["nonsense", "3LA 0 "], ids=["all of it", "its end"])
def test_a_record_of_nonsense_is_passed_over(
    engine: LockEngine, day: list[Slot], raw: redis.Redis, lock_namespace: str, record: str
) -> None:
    """Where it would be looked at: the others are listed all the same."""
    raw.set(Keys(lock_namespace).record("court-a-03"), record)
    page = engine.list_slots(resource_id="court-a", end_date=DAY + 5 * HOUR)
    assert ids(page.slots) == ["court-a-00", "court-a-01", "court-a-02", "court-a-04"]


def test_a_list_shows_what_get_shows(engine: LockEngine, day: list[Slot]) -> None:
    """One predicate says what is available, wherever it is asked."""
    lock = engine.lock("court-a-05", lock_for=HOUR)
    for key in (None, lock.lock_key):
        listed = engine.list_slots(limit=48, lock_key=key).slots
        assert listed == tuple(engine.get_slot(slot.id, lock_key=key) for slot in day)


def test_a_changed_start_moves_it(engine: LockEngine, day: list[Slot]) -> None:
    """The indexes follow an update."""
    engine.update_slot("court-a-00", start_date=DAY + 23.5 * HOUR, end_date=DAY + 25 * HOUR)
    assert ids(engine.list_slots().slots)[-1] == "court-a-00"
    assert ids(engine.list_slots(resource_id="court-a").slots)[-1] == "court-a-00"
    assert engine.list_slots().total == 48


def test_more_slots_than_a_call_looks_at(engine: LockEngine, new_slot: Make) -> None:
    """A filtered list of many slots is put together from several calls; none is lost between them."""
    many = 2 * CHUNK + 100
    for first in range(0, many, CHUNK):
        engine.create_slots(
            new_slot(id=f"s{at:05}", start_date=DAY + at * HOUR, end_date=DAY + (at + 1) * HOUR)
            for at in range(first, min(first + CHUNK, many))
        )
    for at in (0, CHUNK - 1, CHUNK, many - 1):
        engine.disable_slot(f"s{at:05}")
    closed = engine.list_slots(available=False)
    assert ids(closed.slots) == ["s00000", f"s{CHUNK - 1:05}", f"s{CHUNK:05}", f"s{many - 1:05}"]
    page = engine.list_slots(available=True, limit=20, page=(many - 5) // 20 + 1)
    assert page.total == many - 4
    assert ids(page.slots)[-1] == f"s{many - 2:05}"
    assert engine.list_slots(resource_id="court-1", available=True).total == many - 4
    assert engine.prune_slots(DAY + many * HOUR) == many


def test_prune_removes_what_ended(engine: LockEngine, day: list[Slot]) -> None:
    """At or before the date; one that is locked stays, and goes once it is free."""
    lock = engine.lock("court-b-03", lock_for=HOUR)
    assert engine.prune_slots(DAY + 12 * HOUR) == 23
    assert ids(engine.list_slots(limit=3).slots) == ["court-b-03", "court-a-12", "court-b-12"]
    assert engine.check(lock) == lock
    engine.unlock(lock)
    assert engine.prune_slots(DAY + 12 * HOUR) == 1
    assert engine.prune_slots(DAY + 12 * HOUR) == 0


def test_prune_leaves_nothing_behind(engine: LockEngine, day: list[Slot], raw: Any, lock_namespace: str) -> None:
    """Record and index entries go with the slot."""
    assert engine.prune_slots(DAY + 48 * HOUR) == 48
    assert raw.keys(f"{lock_namespace}:*") == [f"{lock_namespace}:slots:events"]
