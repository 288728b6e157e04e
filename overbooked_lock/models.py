"""What callers get: the Slot's payload, a Lock, and what became of an unlock.

Values are immutable. A lock_key is a field of :class:`Lock` and of nothing else; no ``repr`` shows it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import cycle
from json.encoder import encode_basestring as _quoted
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, PlainSerializer
from pydantic_core import from_json

from overbooked_lock import arguments
from overbooked_lock.errors import InvalidArgument, StoreCorrupt

T = TypeVar("T")

Status = Literal["active", "disabled"]


def utc_date(date: datetime) -> str:
    """``2020-12-19T16:00:00.000Z``: how the API writes its own dates, and JavaScript all."""
    return date.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def given_date(date: datetime) -> str:
    """A date with the offset it was given with: ``2020-10-21T22:30:00+02:00``."""
    if not date.utcoffset():
        return utc_date(date)
    return date.isoformat(timespec="milliseconds" if date.microsecond >= 1000 else "seconds")


JSON_BOOLEAN = ("false", "true")

UtcDate = Annotated[AwareDatetime, PlainSerializer(utc_date, when_used="json")]
GivenDate = Annotated[AwareDatetime, PlainSerializer(given_date, when_used="json")]


class Slot(BaseModel):
    """A slot as the Overbooked API shows it: ``model_dump_json()`` is its payload, field for field.

    ``available`` answers whether a booking would succeed now for the one who asked: it is True for the holder
    of a lock and False for everybody else.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    object_: Literal["slot"] = Field("slot", alias="_object")
    available: bool
    resource_id: str
    capacity: int
    created_at: UtcDate
    end_date: GivenDate
    id: str
    lockable: bool
    locked_until: UtcDate | None
    metadata: dict[str, JsonValue]
    num_active_bookings: int
    num_bookings: int
    num_cancelled_bookings: int
    start_date: GivenDate
    status: Status
    updated_at: UtcDate

    @classmethod
    def from_record(cls, slot_id: str, record: bytes, locked_until_ms: int, *, available: bool) -> Slot:
        """Builds the payload from what Redis holds (see ``lua/lib/record.lua``).

        Raises :class:`~overbooked_lock.errors.StoreCorrupt` if it is not such a record.
        """
        try:
            head, created_and_updated, metadata_json = record.rsplit(b"\n", 2)
            read, metadata = _read(head), from_json(metadata_json)
            if not isinstance(metadata, dict):
                raise StoreCorrupt(slot_id)
            dates = _dates(created_and_updated)
            locked_until = arguments.from_milliseconds(locked_until_ms) if locked_until_ms else None
        except (ValueError, IndexError, OverflowError) as error:
            raise StoreCorrupt(slot_id) from error
        # What pydantic's model_copy does, in half the time. Metadata is made anew: nobody gets what another can change.
        fields = read.copy()
        fields["available"], fields["id"] = available, slot_id
        fields["created_at"], fields["updated_at"] = dates
        fields["locked_until"], fields["metadata"] = locked_until, metadata
        slot: Slot = _OpenSlot()
        slot.__dict__ = fields
        slot.__pydantic_fields_set__ = _SLOT_FIELDS
        slot.__pydantic_extra__ = None
        slot.__pydantic_private__ = None
        slot.__class__ = cls  # of the same slots
        return slot


_SLOT_FIELDS = set(Slot.model_fields)


class _OpenSlot(Slot):
    """A slot before it is sealed by its class: what it consists of can be set, and by no call of Python's."""

    __init__ = object.__init__
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__  # were it another's, Python would look up both each time


def slot_json(slot_id: str, record: bytes, locked_until_ms: int, *, available: bool) -> str:
    """The payload of a slot as JSON text: that of its model, for who needs no more than the text.

    Raises :class:`~overbooked_lock.errors.StoreCorrupt` if the record is none.
    """
    try:
        head, created_and_updated, metadata = record.rsplit(b"\n", 2)
        written = _written(head)
        created_at, updated_at = _dates_as_json(created_and_updated)
        from_json(metadata)  # whatever stands in the record, what goes out is JSON
        locked_until = _json_date(locked_until_ms) if locked_until_ms else "null"
        return (
            f'{{"_object":"slot","available":{JSON_BOOLEAN[available]},{written.before_created_at},"created_at":'
            f'{created_at},{written.before_id},"id":{_quoted(slot_id)},{written.before_locked_until},"locked_until":'
            f'{locked_until},"metadata":{metadata.decode()},{written.after_metadata},"updated_at":{updated_at}}}'
        )
    except (ValueError, IndexError, OverflowError) as error:
        raise StoreCorrupt(slot_id) from error


def _kept(function: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Keeps what a function made of a part of a slot's record that it shares with others.

    That is its head, all before the lines of what is each slot's own, or the dates of registration and change.

    Mostly a slot is seen many times before it changes, and the seats of an event have one head. What is kept has a
    bound, that of 4,096 parts. One in 64 that were not kept is let in. Which comes often soon is; and where very many
    come once each, few push others out, which takes longer than to make it: memory used in turns is in no cache. For
    the same reason what is found is not moved to the end, as an ``lru_cache`` would.
    """
    kept: OrderedDict[bytes, T] = OrderedDict()
    let_in = cycle((True, *[False] * 63))

    def kept_or_made(part: bytes) -> T:
        known = kept.get(part)
        if known is not None:
            return known
        made = function(part)
        if next(let_in):
            kept[part] = made
            if len(kept) > 4096:
                kept.popitem(last=False)
        return made

    return kept_or_made


@_kept
def _read(head: bytes) -> dict[str, Any]:
    """The fields of a slot in the order of its model, with room for what is not in the head of its record.

    Who wrote the record has validated them. Raises ValueError, IndexError, OverflowError.
    """
    numbers, resource_id, start_date, end_date = head.decode().split("\n")
    flags, active, cancelled, capacity, _, _ = numbers.split(" ")
    start, end = datetime.fromisoformat(start_date), datetime.fromisoformat(end_date)
    if start.tzinfo is None or end.tzinfo is None:
        raise ValueError(numbers)
    num_active, num_cancelled = int(active), int(cancelled)
    return {
        "object_": "slot",
        "available": False,
        "resource_id": resource_id,
        "capacity": int(capacity),
        "created_at": None,
        "end_date": end,
        "id": "",
        "lockable": flags[1] == "L",
        "locked_until": None,
        "metadata": None,
        "num_active_bookings": num_active,
        "num_bookings": num_active + num_cancelled,
        "num_cancelled_bookings": num_cancelled,
        "start_date": start,
        "status": "active" if flags[2] == "A" else "disabled",
        "updated_at": None,
    }


@_kept
def _dates(created_and_updated: bytes) -> tuple[datetime, datetime]:
    """Slots that were registered together have them in common. Raises ValueError, OverflowError."""
    created_ms, updated_ms = created_and_updated.split(b" ")
    created_at = arguments.from_milliseconds(int(created_ms))
    return created_at, created_at if updated_ms == created_ms else arguments.from_milliseconds(int(updated_ms))


class _Written(NamedTuple):
    """What the head of a slot's record tells in its payload."""

    before_created_at: str
    before_id: str
    before_locked_until: str
    after_metadata: str


@_kept
def _written(head: bytes) -> _Written:
    """Raises ValueError, IndexError, OverflowError."""
    numbers, resource_id, start_date, end_date = head.decode().split("\n")
    flags, active, cancelled, capacity, _, _ = numbers.split(" ")
    return _Written(
        f'"resource_id":{_quoted(resource_id)},"capacity":{int(capacity)}',
        f'"end_date":{_quoted(end_date)}',
        f'"lockable":{JSON_BOOLEAN[flags[1] == "L"]}',
        f'"num_active_bookings":{int(active)},"num_bookings":{int(active) + int(cancelled)},'
        f'"num_cancelled_bookings":{int(cancelled)},"start_date":{_quoted(start_date)},'
        f'"status":"{"active" if flags[2] == "A" else "disabled"}"',
    )


@_kept
def _dates_as_json(created_and_updated: bytes) -> tuple[str, str]:
    created_at, updated_at = _dates(created_and_updated)
    return f'"{utc_date(created_at)}"', f'"{utc_date(updated_at)}"'


@lru_cache(maxsize=4096)
def _json_date(ms: int) -> str:
    return f'"{utc_date(arguments.from_milliseconds(ms))}"'


@dataclass(frozen=True, kw_only=True)
class NewSlot:
    """A slot to be registered. Each field is checked here: :class:`~overbooked_lock.errors.InvalidArgument`.

    ``id`` is made (a UUID) where none is given; ``start_date`` must be before ``end_date``, both with a time zone.
    """

    resource_id: str
    start_date: datetime
    end_date: datetime
    capacity: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)
    lockable: bool = True
    status: Status = "active"
    id: str = field(default_factory=arguments.new_id)

    def __post_init__(self) -> None:
        arguments.slot_id(self.id, "id")
        arguments.slot_id(self.resource_id, "resource_id")
        start_ms = arguments.milliseconds(self.start_date, "start_date")
        if start_ms >= arguments.milliseconds(self.end_date, "end_date"):
            raise InvalidArgument("start_date", "must be before end_date", code="E023", status=422)
        arguments.capacity(self.capacity)
        arguments.metadata(self.metadata)
        arguments.flag(self.lockable, "lockable")
        if self.status not in ("active", "disabled"):
            raise InvalidArgument("status", "must be 'active' or 'disabled'")


@dataclass(frozen=True, slots=True, repr=False)
class Lock:
    """A slot that is yours until a date. Can be pickled: who gets it can extend and unlock.

    Attributes:
        slot_id: The slot.
        lock_key: The owner's secret; not in the ``repr``.
        fencing_token: Rises with every new lock of a slot. Pass it to what the lock protects and let that refuse
            any lower one: a lock makes conflicts rare, the token makes them harmless (Kleppmann, "How to do
            distributed locking", 2016).
        already_held: True if this lock_key held the slot before the call that returned this.
    """

    slot_id: str
    lock_key: str
    _until_ms: int
    fencing_token: int
    already_held: bool = field(default=False, compare=False)
    _record: bytes | None = field(default=None, compare=False)
    _ends_at: float = field(default=0.0, compare=False)

    def __repr__(self) -> str:
        return (
            f"Lock(slot_id={self.slot_id!r}, locked_until={self.locked_until!r}, fencing_token={self.fencing_token}, "
            f"already_held={self.already_held})"
        )

    @property
    def locked_until(self) -> datetime:
        """When it ends by itself, by Redis' clock."""
        return arguments.from_milliseconds(self._until_ms)

    def remaining(self) -> timedelta:
        """How long the lock still lives by Redis' clock, at least; negative if it ended.

        Counted by this machine's monotonic clock from before the request was sent. After a journey to another
        process it is counted by both machines' wall clocks: ask ``engine.check(lock)`` where that matters.
        """
        return timedelta(seconds=self._ends_at - time.monotonic())

    @property
    def slot_json(self) -> str | None:
        """The text of ``slot.model_dump_json()``, which is less work than the slot itself."""
        if self._record is None:
            return None
        return slot_json(self.slot_id, self._record, self._until_ms, available=True)

    @property
    def slot(self) -> Slot | None:
        """The slot's payload in the holder's view; None if the slot is not registered."""
        if self._record is None:
            return None
        return Slot.from_record(self.slot_id, self._record, self._until_ms, available=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # A monotonic clock means nothing to another machine.
        ends_at_wall_clock = self._ends_at - time.monotonic() + time.time()
        return _lock_from_pickle, (
            (self.slot_id, self.lock_key, self._until_ms, self.fencing_token, self.already_held, self._record),
            ends_at_wall_clock,
        )


def _lock_from_pickle(fields: tuple[str, str, int, int, bool, bytes | None], ends_at_wall_clock: float) -> Lock:
    return Lock(*fields, _ends_at=ends_at_wall_clock - time.time() + time.monotonic())


@dataclass(frozen=True, slots=True)
class Quota:
    """How many live locks one holder may have at once. Each field is checked here: InvalidArgument.

    Attributes:
        holder: Whoever the locks are counted for: an API key and an address, say. Any 1 to 255 characters.
        most: How many of the locks made under this quota may live at once, 1 to 1,000.
    """

    holder: str
    most: int

    def __post_init__(self) -> None:
        arguments.holder(self.holder)
        arguments.most_locks(self.most)


@dataclass(frozen=True, slots=True)
class Unlocked:
    """What became of an unlock that was not refused.

    Attributes:
        slot_id: The slot.
        released: True if this call ended the lock, False if it had ended before. A call that had to be sent again,
            because a reply was lost, and then finds its lock gone, counts that as its own work (where the fencing
            token says which lock is meant).
    """

    slot_id: str
    released: bool
    _record: bytes | None = field(default=None, repr=False, compare=False)
    _locked_until_ms: int = field(default=0, repr=False, compare=False)
    _available: bool = field(default=False, repr=False, compare=False)

    @property
    def slot_json(self) -> str | None:
        """The text of ``slot.model_dump_json()``, which is less work than the slot itself."""
        if self._record is None:
            return None
        return slot_json(self.slot_id, self._record, self._locked_until_ms, available=self._available)

    @property
    def slot(self) -> Slot | None:
        """The slot's payload after the call; None if the slot is not registered."""
        if self._record is None:
            return None
        return Slot.from_record(self.slot_id, self._record, self._locked_until_ms, available=self._available)


# Two such values are made for each lock, and a frozen dataclass sets each of its fields by a call. Here a twin that is
# open is filled, and then sealed, at a fifth of the cost. It has no __init__: to have one called costs as much again.


class OpenLock:
    """``OpenLock().sealed(…)`` is a Lock."""

    __slots__ = Lock.__slots__

    def sealed(
        self,
        slot_id: str,
        lock_key: str,
        until_ms: int,
        fencing_token: int,
        already_held: bool,
        record: bytes | None,
        ends_at: float,
    ) -> Lock:
        self.slot_id = slot_id
        self.lock_key = lock_key
        self._until_ms = until_ms
        self.fencing_token = fencing_token
        self.already_held = already_held
        self._record = record
        self._ends_at = ends_at
        self.__class__ = Lock  # type: ignore[assignment]  # of the same slots
        return self  # type: ignore[return-value]


class OpenUnlocked:
    """``OpenUnlocked().sealed(…)`` is an Unlocked."""

    __slots__ = Unlocked.__slots__

    def sealed(
        self, slot_id: str, released: bool, record: bytes | None, locked_until_ms: int, available: bool
    ) -> Unlocked:
        self.slot_id = slot_id
        self.released = released
        self._record = record
        self._locked_until_ms = locked_until_ms
        self._available = available
        self.__class__ = Unlocked  # type: ignore[assignment]  # of the same slots
        return self  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class LiveLock:
    """A lock as an operator sees it.

    Attributes:
        slot_id: The slot.
        locked_until: When it ends by itself.
        locked_since: When it was made, by Redis' clock: its fencing token says so.
        fencing_token: Its fencing token.
        key_hash: Eight hex digits that tell one lock_key from another.
    """

    slot_id: str
    locked_until: datetime
    locked_since: datetime
    fencing_token: int
    key_hash: str


@dataclass(frozen=True, slots=True)
class SlotPage:
    """A page of a list: ``slots``, and how many there are in ``total`` on all pages."""

    slots: tuple[Slot, ...]
    total: int
    limit: int
    page: int
