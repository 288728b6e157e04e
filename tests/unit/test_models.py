"""What callers get: the payload to the letter, values that are immutable and can travel, keys that stay hidden."""

from __future__ import annotations

import dataclasses
import json
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overbooked_lock import Lock, Slot, StoreCorrupt, Unlocked, arguments, models
from overbooked_lock.models import OpenLock, OpenUnlocked, given_date, slot_json

# The answer of the published page "Lock a Slot", its data to the letter.
PAYLOAD = """{
    "_object": "slot",
    "available": true,
    "resource_id": "5b003c67-f69f-471b-9268-3896a9a3df29",
    "capacity": 1,
    "created_at": "2020-12-19T15:44:22.854Z",
    "end_date": "2020-10-21T22:50:00+02:00",
    "id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332",
    "lockable": true,
    "locked_until": "2020-12-19T16:00:00.000Z",
    "metadata": {},
    "num_active_bookings": 0,
    "num_bookings": 0,
    "num_cancelled_bookings": 0,
    "start_date": "2020-10-21T22:30:00+02:00",
    "status": "active",
    "updated_at": "2020-12-19T15:44:22.854Z"
}"""
UNTIL = datetime(2020, 12, 19, 16, tzinfo=UTC)
RECORD = (
    b"3LA 0 0 1 1603313400000 1603312200000\n"
    b"5b003c67-f69f-471b-9268-3896a9a3df29\n2020-10-21T22:30:00+02:00\n2020-10-21T22:50:00+02:00\n"
    b"1608392662854 1608392662854\n{}"
)
UNTIL_MS = arguments.to_milliseconds(UNTIL)
LOCK = Lock("3751095a-b4ef-41a3-98a3-b8a0eecfc332", "secret-key", UNTIL_MS, 1795342754587123, False, RECORD, 0.0)


def test_the_payload_is_that_of_the_published_page() -> None:
    """Field for field, in order, dates in their documented formats."""
    assert LOCK.slot is not None
    assert LOCK.slot.model_dump_json() == json.dumps(json.loads(PAYLOAD), separators=(",", ":"))


def test_the_payload_is_read_back() -> None:
    """What a Slot serialises to is the same Slot again."""
    slot = Slot.model_validate_json(PAYLOAD)
    assert slot == LOCK.slot
    assert slot.model_dump(mode="json") == json.loads(PAYLOAD)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (datetime(2030, 1, 1, 12, tzinfo=UTC), "2030-01-01T12:00:00.000Z"),
        (datetime(2030, 1, 1, 12, 0, 0, 5678, tzinfo=UTC), "2030-01-01T12:00:00.005Z"),
        (datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=-5, minutes=-30))), "2030-01-01T12:00:00-05:30"),
        (datetime(2030, 1, 1, 12, 0, 0, 5000, tzinfo=timezone(timedelta(hours=2))), "2030-01-01T12:00:00.005+02:00"),
    ],
)
def test_dates_of_a_slot_keep_their_offset(given: datetime, shown: str) -> None:
    """start_date and end_date are shown as they were given; UTC as JavaScript writes it."""
    slot = Slot.model_validate_json(PAYLOAD).model_copy(update={"start_date": given})
    assert slot.model_dump(mode="json")["start_date"] == shown


def test_a_slot_is_immutable() -> None:
    """A payload can be handed around."""
    with pytest.raises(pydantic.ValidationError):
        Slot.model_validate_json(PAYLOAD).available = False  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"3LA 0",
        b"2LA 0 0 1 1603313400000 1603312200000 1608392662854 1608392662854",
        RECORD.replace(b"{}", b"{"),
        RECORD.replace(b"{}", b"[]"),
        RECORD.replace(b"3LA 0 0 1 ", b"3LA 0 0 x "),
        RECORD.replace(b"3LA 0 0 1 ", b"3 0 0 1 "),
        RECORD.replace(b"\n1608392662854 ", b"\n1608392662854"),
        RECORD.replace(b"\n1608392662854 ", b"\nyesterday "),
        RECORD.replace(b"\n1608392662854 ", b"\n9999999999999999 "),
        RECORD.replace(b"T22:30:00+02:00", b"T22:30:00"),
        RECORD.replace(b"T22:30:00+02:00", b"T22:30:00 o'clock"),
        b"\xff\n\n\n\n",
    ],
)
def test_a_record_that_we_did_not_write_is_corrupt(record: bytes) -> None:
    """Neither half a payload nor a ValidationError of somebody else's."""
    assert record != RECORD
    with pytest.raises(StoreCorrupt, match="'s1'"):
        Slot.from_record("s1", record, 0, available=True)


def test_a_lock_hides_its_key() -> None:
    """A lock_key is in no repr, and so in no log that shows one."""
    assert "secret-key" not in repr(LOCK)
    assert "secret-key" not in str(LOCK)


def test_a_lock_is_immutable() -> None:
    """What one task holds another can't change."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        LOCK.lock_key = "mine"  # type: ignore[misc]  # that is the point


def test_what_the_quick_constructors_make_is_no_different() -> None:
    """Equal, of one hash, as immutable, and as discreet."""
    lock = OpenLock().sealed(LOCK.slot_id, LOCK.lock_key, UNTIL_MS, LOCK.fencing_token, False, RECORD, 0.0)
    assert type(lock) is Lock
    assert (lock, hash(lock), repr(lock), lock.slot) == (LOCK, hash(LOCK), repr(LOCK), LOCK.slot)
    with pytest.raises(dataclasses.FrozenInstanceError):
        lock.lock_key = "mine"  # type: ignore[misc]  # that is the point
    unlocked = OpenUnlocked().sealed("s", True, None, 0, False)
    assert (unlocked, repr(unlocked)) == (Unlocked("s", True), repr(Unlocked("s", True)))
    with pytest.raises(TypeError):
        OpenUnlocked().sealed("s", True)  # type: ignore[call-arg]  # else a field would be missing later


def test_a_lock_can_be_pickled() -> None:
    """Another process gets the same lock, payload and remaining time included."""
    lock = dataclasses.replace(LOCK, _ends_at=LOCK._ends_at - LOCK.remaining().total_seconds() + 60)
    copy = pickle.loads(pickle.dumps(lock))  # noqa: S301 - our own
    assert copy == lock
    assert copy.lock_key == "secret-key"
    assert copy.slot == lock.slot
    assert timedelta(seconds=59) < copy.remaining() <= timedelta(seconds=60)


def test_a_slot_is_nobody_elses() -> None:
    """What is known of a record is kept, but metadata can be changed: each caller has its own."""
    record = RECORD.removesuffix(b"{}") + b'{"tags":["a"]}'
    first = Slot.from_record("s", record, 0, available=True)
    first.metadata["tags"].append("mine")  # type: ignore[union-attr]  # a list, as it says above
    assert Slot.from_record("s", record, 0, available=True).metadata == {"tags": ["a"]}
    assert Slot.from_record("t", record, 0, available=False) != first


HEAD = RECORD.rsplit(b"\n", 2)[0]


def _head(capacity: int) -> bytes:
    return HEAD.replace(b"3LA 0 0 1 ", f"3LA 0 0 {capacity} ".encode())


def _is_kept(head: bytes) -> bool:
    return models._read(head) is models._read(head)


def _see_often(head: bytes) -> None:
    for _ in range(64):
        models._read(head)


def test_what_was_read_is_kept_of_a_record_that_is_seen_often() -> None:
    """And it is not taken for what another has, nor for that of another slot."""
    _see_often(HEAD)
    assert _is_kept(HEAD)
    assert models._read(_head(7))["capacity"] == 7
    assert [Slot.from_record(slot_id, RECORD, 0, available=True).id for slot_id in ("s1", "s2")] == ["s1", "s2"]
    texts = [json.loads(slot_json(slot_id, RECORD, 0, available=True)) for slot_id in ("s1", "s2")]
    assert [text["id"] for text in texts] == ["s1", "s2"]


def test_what_was_read_is_kept_for_the_seats_of_an_event() -> None:
    """Each has its own dates of registration and of change, and its own metadata."""
    _see_often(HEAD)
    seat = RECORD.replace(b"\n1608392662854 1608392662854\n{}", b'\n1608392662999 1608392663000\n{"seat":2}')
    slot = Slot.from_record("seat-2", seat, 0, available=True)
    assert seat.startswith(HEAD)
    assert (slot.created_at, slot.updated_at) == tuple(map(arguments.from_milliseconds, (1608392662999, 1608392663000)))
    assert slot.metadata == {"seat": 2}
    assert slot_json("seat-2", seat, 0, available=True) == slot.model_dump_json()


def test_what_was_read_is_kept_of_so_many_records_and_no_more() -> None:
    """Which came first goes first."""
    _see_often(HEAD)
    kept = models._read(HEAD)
    for number in range(64 * 4100):
        models._read(_head(1000 + number))
    assert models._read(HEAD) is not kept
    assert sum(_is_kept(_head(1000 + number)) for number in range(64 * 4000, 64 * 4100)) >= 90


def test_a_lock_of_an_unregistered_slot_has_no_payload() -> None:
    """Locks alone: there is nothing to show."""
    assert dataclasses.replace(LOCK, _record=None).slot is None
    assert Unlocked("s", released=True).slot is None


@given(
    slot_id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
    resource_id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
    metadata=st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5)),
    start=st.datetimes(timezones=st.timezones()).filter(lambda date: 1970 < date.year < 9990),
    until_ms=st.just(0) | st.integers(1_600_000_000_000, 253_402_300_799_999),
    numbers=st.tuples(*[st.integers(0, 10**9)] * 3),
    flags=st.sampled_from(["3LA", "3LD", "3NA", "3ND"]),
    available=st.booleans(),
)
def test_the_text_of_a_payload_is_its_models(
    slot_id: str,
    resource_id: str,
    metadata: dict[str, Any],
    start: datetime,
    until_ms: int,
    numbers: tuple[int, int, int],
    flags: str,
    available: bool,
) -> None:
    """Letter for letter, so that a server may send the one and a library read the other."""
    capacity, active, cancelled = numbers
    start_date, end_date = given_date(start), given_date(start + timedelta(hours=1))
    record = (
        f"{flags} {active} {cancelled} {capacity} 1 0\n{resource_id}\n{start_date}\n{end_date}\n"
        f"1600000000123 1600000000456\n{arguments.metadata(metadata)}"
    ).encode()
    model = Slot.from_record(slot_id, record, until_ms, available=available)
    assert json.loads(slot_json(slot_id, record, until_ms, available=available)) == json.loads(model.model_dump_json())
    if not metadata:
        assert slot_json(slot_id, record, until_ms, available=available) == model.model_dump_json()


@pytest.mark.parametrize("metadata", ["", "{", "{}x", "junk", '{"a":1'])
def test_a_text_that_would_be_no_json_is_told(metadata: str) -> None:
    """Whatever stands in the record."""
    record = f"3LA 0 0 1 1 0\nr\n2030-01-01T00:00:00Z\n2030-01-01T01:00:00Z\n1 1\n{metadata}".encode()
    with pytest.raises(StoreCorrupt):
        slot_json("s", record, 0, available=True)
