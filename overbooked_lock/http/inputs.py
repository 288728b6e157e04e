"""What requests may say, as pydantic models: the body or the query of each endpoint.

Fields that nobody asked for are ignored: a client may know more than we do. ``null`` stands for absent where a
field may be absent. Names and meanings are those of the published API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from overbooked_lock.arguments import MAX_CAPACITY, MAX_SLOTS
from overbooked_lock.errors import InvalidArgument

_is_date = re.compile(
    r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?([Zz]|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
).fullmatch


def date(value: object) -> datetime:
    """An ISO 8601 date; without a zone it is in UTC. Raises ValueError: a number is no date here."""
    if isinstance(value, str) and _is_date(value):
        given = datetime.fromisoformat(value.upper())
        return given if given.tzinfo else given.replace(tzinfo=UTC)
    raise ValueError("no ISO 8601 date")


Date = Annotated[
    datetime,
    BeforeValidator(date),
    WithJsonSchema({"type": "string", "format": "date-time", "description": "ISO 8601; without a zone it is in UTC."}),
]
Id = Annotated[str, Field(min_length=1, max_length=255, description="An opaque id, mostly a UUID.")]
LockKey = Annotated[
    str, Field(min_length=1, max_length=255, description="The holder's secret, a random string; no answer shows it.")
]
Metadata = Annotated[
    dict[str, Any],
    Field(description="Facts of your own: keys of at most 100 characters, values of at most 5,000 as JSON."),
]
Capacity = Annotated[int, Field(ge=1, le=MAX_CAPACITY, description="The most active bookings it can hold.")]
Lockable = Annotated[bool, Field(description="False: it can't be locked through the API.")]


class Body(BaseModel):
    """What comes as JSON: types are as written, so that ``"1"`` is no number."""

    model_config = ConfigDict(strict=True, frozen=True)

    example: ClassVar[Mapping[str, Any]]
    """For the documentation."""


class Query(BaseModel):
    """What comes in a URL, where all is text."""

    model_config = ConfigDict(frozen=True)


class NewSlotBody(Body):
    """A slot to be created."""

    example: ClassVar = {
        "resource_id": "5b003c67-f69f-471b-9268-3896a9a3df29",
        "start_date": "2030-10-21T22:30:00+02:00",
        "end_date": "2030-10-21T22:50:00+02:00",
        "capacity": 1,
    }

    resource_id: Id
    start_date: Date
    end_date: Date
    capacity: Capacity
    metadata: Metadata | None = None
    lockable: Lockable | None = None


class SlotChanges(Body):
    """What is to change; what is absent stays."""

    example: ClassVar = {"capacity": 2}

    start_date: Date | None = None
    end_date: Date | None = None
    metadata: Metadata | None = None
    lockable: Lockable | None = None
    capacity: Capacity | None = None


class LockBody(Body):
    """A lock asked for."""

    example: ClassVar = {"lock_until": "2030-12-19T15:00:00.000Z", "lock_key": "lock_key_1234"}

    lock_until: Annotated[Date, Field(description="Until when: within 24 hours.")]
    lock_key: LockKey


class UnlockBody(Body):
    """The lock's own key; or ``force`` with a secret API key, which ends any lock."""

    example: ClassVar = {"lock_key": "lock_key_1234"}

    lock_key: LockKey | None = None
    force: Annotated[bool | None, Field(description="End the lock whoever holds it. Needs a secret API key.")] = None


class NewBookingBody(Body):
    """A booking to be made."""

    example: ClassVar = {"slot_id": "3751095a-b4ef-41a3-98a3-b8a0eecfc332", "lock_key": "lock_key_1234"}

    slot_id: Id
    lock_key: LockKey | None = None
    metadata: Metadata | None = None


class BookingChanges(Body):
    """What is to change; what is absent stays."""

    example: ClassVar = {"metadata": {"name": "Ada"}}

    metadata: Metadata | None = None


class RescheduleBody(Body):
    """Where a booking goes."""

    example: ClassVar = {"target_slot_id": "9a3f95a0-0dbd-4f2f-8c40-43d6a4e6a0b1"}

    target_slot_id: Id


class PageQuery(Query):
    """A page of a list."""

    limit: Annotated[int, Field(ge=1, le=50, description="How many a page.", examples=[50])]
    page: Annotated[int, Field(ge=1, le=10**9, description="Which page, from 1.", examples=[1])]


class SlotsQuery(PageQuery):
    """Which slots."""

    available: Annotated[
        Literal["true", "false"] | None, Field(description="Only those that can be booked now by who asks, or can't.")
    ] = None
    start_date: Annotated[Date | None, Field(description="Only those that start then or later.")] = None
    end_date: Annotated[Date | None, Field(description="Only those that are over by then.")] = None
    resource_id: Annotated[Id | None, Field(description="Only this resource's.")] = None


class BookingsQuery(PageQuery):
    """Which bookings."""

    slot_id: Annotated[Id | None, Field(description="Only this slot's.")] = None
    resource_id: Annotated[Id | None, Field(description="Only this resource's.")] = None
    status: Annotated[Literal["active", "cancelled"] | None, Field(description="Only those that are so.")] = None


class EventsQuery(Query):
    """Which events."""

    slot_id: Annotated[Id | None, Field(description="Only this slot's.")] = None
    resource_id: Annotated[Id | None, Field(description="Only those of this resource's slots.")] = None
    since: Annotated[
        str | None, Field(description="Begin after the event with this id, and not with what happens from now on.")
    ] = None
    key: Annotated[
        str | None,
        Field(
            pattern="^pk_[0-9a-f]{64}$",
            description="A public API key, where no header can be set: `EventSource` in a browser can't.",
        ),
    ] = None


Input = TypeVar("Input", bound=BaseModel)


def read_json(body: bytes) -> Any:
    """The JSON of a body. Raises InvalidArgument, also for names that come twice: nobody knows which one counts."""
    try:
        text = body.decode().strip(_SPACE)
        given, end = _decode(text)
    except (ValueError, RecursionError):
        raise _no_json() from None
    if end < len(text):
        raise _no_json()
    return given


def _no_json() -> InvalidArgument:
    return InvalidArgument("body", "must be JSON in UTF-8, with each name once and without NaN and Infinity")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name comes twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


# Not decode: to pass over space, and see that nothing follows, takes it half as long as all the rest.
_decode = json.JSONDecoder(object_pairs_hook=_once_each, parse_constant=_refuse).raw_decode
_SPACE = " \t\n\r"
"""What may stand around JSON."""


def validate(model: type[Input], given: Any, *, lists: bool = False) -> Input | list[Input]:
    """A model of what was given, or with ``lists`` a list of them.

    Raises InvalidArgument, which names the first field that is wrong, never its value.
    """
    if lists and isinstance(given, list):
        if not 1 <= len(given) <= MAX_SLOTS:
            raise InvalidArgument("body", f"must be 1 to {MAX_SLOTS} objects, where it is a list")
        return [_validate(model, item, at) for at, item in enumerate(given)]
    return _validate(model, given)


def _validate(model: type[Input], given: Any, place: int | None = None) -> Input:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=True, include_input=False)[0]
    whole = "body" if place is None else f"body[{place}]"
    if not problem["loc"]:
        raise InvalidArgument(whole, "must be a JSON object")
    name = str(problem["loc"][0])
    field = name if place is None else f"{whole}.{name}"
    if problem["type"] == "missing":
        raise InvalidArgument(field, "must be given")
    if name == "capacity":
        raise InvalidArgument(field, f"must be a whole number from 1 to {MAX_CAPACITY:,}", code="E047")
    raise InvalidArgument(field, _ALLOWED.get(problem["type"], "is not valid").format_map(problem.get("ctx", {})))


_ALLOWED = {
    "value_error": "must be an ISO 8601 date like 2030-06-01T18:00:00Z or 2030-06-01T20:00:00+02:00; "
    "without a zone it is in UTC",
    "string_type": "must be a string",
    "string_too_short": "must have at least 1 character",
    "string_too_long": "must have at most 255 characters",
    "string_unicode": "must be a string without lone surrogates",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "bool_type": "must be true or false",
    "dict_type": "must be a JSON object",
    "literal_error": "must be {expected}",
}
"""What is allowed where pydantic finds what it calls by these names."""
