"""What requests may say, as pydantic models, and how a message becomes one of them: no I/O.

Names, types and what is ignored are those of the HTTP API's bodies. What is wrong with a message is told to its sender
wherever it says, in a form that can be trusted, who that is.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from overbooked_lock.arguments import MAX_SLOTS
from overbooked_lock.errors import InvalidArgument
from overbooked_lock.http import inputs
from overbooked_lock.http.inputs import Body, Date, Id, LockKey

MAX_MESSAGE = 65_536
"""Bytes."""

DEADLINE_MS, LONGEST_DEADLINE_MS = 5_000, 120_000
LONGEST_WAIT_MS = 60_000

_NAMESPACE = uuid.UUID("5b1c7f0e-6a55-4b0a-9a0e-0f3f6d9b2c47")
_NAME, _ID, _WORDS = r"[A-Za-z0-9_.-]{1,64}", r"[!-~]{1,128}", r"[A-Za-z0-9_.:-]{1,128}"
_is_name, _is_id, _is_words = (re.compile(pattern).fullmatch for pattern in (_NAME, _ID, _WORDS))


class Channels:
    """The channels of one sidecar.

    Attributes:
        requests: Where it listens.
        replies: How every channel begins that it answers on.

    Raises:
        InvalidArgument: This is no name of a sidecar.
    """

    def __init__(self, name: str) -> None:
        if not _is_name(name):
            raise InvalidArgument("name", "must be 1 to 64 letters, digits, '_', '.' or '-'")
        self.name = name
        self.requests = f"overbooked:sidecar:{name}:requests"
        self.replies = f"overbooked:sidecar:{name}:replies:"

    def of(self, client: str) -> str:
        """The channel of a client that asks for no other."""
        return f"{self.replies}{client}"

    def may_reply_to(self, channel: object) -> bool:
        """Whether an answer may go there."""
        if not isinstance(channel, str) or not channel.startswith(self.replies):
            return False
        return _is_words(channel.removeprefix(self.replies)) is not None


# What requests say


class RequestBody(Body):
    """What every request says. One of ``client`` and ``reply_to`` must be there: else nobody can be answered."""

    id: Annotated[
        str,
        Field(pattern=f"^{_ID}$", description="Names the request among its client's; best a UUID. Its answer has it."),
    ]
    op: str
    client: Annotated[
        str | None,
        Field(pattern=f"^{_NAME}$", description="Who asks. The answer goes to `…:replies:<client>`."),
    ] = None
    reply_to: Annotated[
        str | None, Field(max_length=255, description="Another channel for the answer, below `…:replies:`.")
    ] = None
    deadline_ms: Annotated[
        int | None,
        Field(
            ge=100,
            le=LONGEST_DEADLINE_MS,
            description="How long the answer may take, from when the sidecar hears the request. "
            f"{DEADLINE_MS:,} unless given, and `wait_ms` on top.",
        ),
    ] = None


FencingToken = Annotated[
    int | None, Field(ge=1, lt=2**53, description="The lock's, as its answer had it: an older lock is not meant.")
]
SlotIds = Annotated[
    list[Id], Field(min_length=1, max_length=MAX_SLOTS, description="All of them or none, in one step.")
]


class Until(RequestBody):
    """When a lock ends: one of the two."""

    lock_until: Annotated[Date | None, Field(description="Until when.")] = None
    lock_for_ms: Annotated[int | None, Field(ge=1, le=2**48, description="Or else for how long, from Redis' now.")] = (
        None
    )


class Wait(RequestBody):
    """How long to wait for what another key holds."""

    wait_ms: Annotated[
        int | None,
        Field(
            ge=0,
            le=LONGEST_WAIT_MS,
            description="How long to wait for what another key holds; not at all unless given.",
        ),
    ] = None


class LockRequest(Until, Wait):
    example: ClassVar = {"slot_id": "court-1-18h", "lock_key": "a-random-string", "lock_for_ms": 600000}

    slot_id: Id
    lock_key: LockKey
    fair: Annotated[
        bool | None, Field(description="Wait in line: who came first gets the slot first. Needs `wait_ms`.")
    ] = None


class LockManyRequest(Until, Wait):
    example: ClassVar = {"slot_ids": ["seat-1", "seat-2"], "lock_key": "a-random-string", "lock_for_ms": 600000}

    slot_ids: SlotIds
    lock_key: LockKey


class HeldRequest(RequestBody):
    """A lock, named by its slot and its key."""

    example: ClassVar = {"slot_id": "court-1-18h", "lock_key": "a-random-string"}

    slot_id: Id
    lock_key: LockKey
    fencing_token: FencingToken = None


class HeldManyRequest(RequestBody):
    example: ClassVar = {"slot_ids": ["seat-1", "seat-2"], "lock_key": "a-random-string"}

    slot_ids: SlotIds
    lock_key: LockKey


class ExtendRequest(Until, HeldRequest):
    example: ClassVar = {"slot_id": "court-1-18h", "lock_key": "a-random-string", "lock_for_ms": 600000}


class ExtendManyRequest(Until, HeldManyRequest):
    example: ClassVar = {"slot_ids": ["seat-1", "seat-2"], "lock_key": "a-random-string", "lock_for_ms": 600000}


class SlotRequest(RequestBody):
    example: ClassVar = {"slot_id": "court-1-18h"}

    slot_id: Id


class GetRequest(SlotRequest):
    lock_key: Annotated[
        LockKey | None, Field(description="The holder's secret: shows the slot as its holder sees it.")
    ] = None


class CreateSlotRequest(RequestBody, inputs.NewSlotBody):
    example: ClassVar = {
        "resource_id": "court-1",
        "start_date": "2030-06-01T18:00:00Z",
        "end_date": "2030-06-01T19:00:00Z",
        "capacity": 1,
    }

    slot_id: Annotated[Id | None, Field(description="Its id; unless given, one that follows from the request's.")] = (
        None
    )


class UpdateSlotRequest(SlotRequest, inputs.SlotChanges):
    example: ClassVar = {"slot_id": "court-1-18h", "capacity": 2}


class Page(RequestBody):
    """A page of a list."""

    limit: Annotated[int, Field(ge=1, le=50, description="How many a page.")]
    page: Annotated[int, Field(ge=1, le=10**9, description="Which page, from 1.")]


class ListSlotsRequest(Page):
    example: ClassVar = {"limit": 50, "page": 1, "available": True}

    available: Annotated[bool | None, Field(description="Only those that can be booked now, or can't.")] = None
    start_date: Annotated[Date | None, Field(description="Only those that start then or later.")] = None
    end_date: Annotated[Date | None, Field(description="Only those that are over by then.")] = None
    resource_id: Annotated[Id | None, Field(description="Only this resource's.")] = None


class BookRequest(RequestBody, inputs.NewBookingBody):
    example: ClassVar = {"slot_id": "court-1-18h", "lock_key": "a-random-string"}

    fencing_token: FencingToken = None


class BookManyRequest(RequestBody):
    example: ClassVar = {"slot_ids": ["seat-1", "seat-2"], "lock_key": "a-random-string"}

    slot_ids: SlotIds
    lock_key: LockKey | None = None
    metadata: Annotated[inputs.Metadata | None, Field(description="That of each booking.")] = None


class BookingRequest(RequestBody):
    example: ClassVar = {"booking_id": "0b0a3f6e-7c5e-5f0e-9d43-2f8f3a1f5e21"}

    booking_id: Id


class UpdateBookingRequest(BookingRequest):
    example: ClassVar = {"booking_id": "0b0a3f6e-7c5e-5f0e-9d43-2f8f3a1f5e21", "metadata": {"name": "Ada"}}

    metadata: inputs.Metadata


class EnableRequest(BookingRequest):
    lock_key: LockKey | None = None


class RescheduleRequest(BookingRequest, inputs.RescheduleBody):
    example: ClassVar = {"booking_id": "0b0a3f6e-7c5e-5f0e-9d43-2f8f3a1f5e21", "target_slot_id": "court-2-18h"}

    lock_key: Annotated[LockKey | None, Field(description="The caller's own lock of the target slot.")] = None


class ListBookingsRequest(Page):
    example: ClassVar = {"limit": 50, "page": 1, "status": "active"}

    slot_id: Annotated[Id | None, Field(description="Only this slot's.")] = None
    resource_id: Annotated[Id | None, Field(description="Only this resource's.")] = None
    status: Annotated[Literal["active", "cancelled"] | None, Field(description="Only those that are so.")] = None


class PingRequest(RequestBody):
    example: ClassVar = {}


# How a message is read


@dataclass(frozen=True, slots=True)
class Address:
    """Who is to be answered: the request's id, and a channel."""

    id: str
    channel: str


class Refused(Exception):
    """A message that is no request: ``error`` says why, ``address`` who may be told."""

    def __init__(self, error: InvalidArgument, address: Address | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.address = address


@dataclass(frozen=True, slots=True)
class Heard:
    """A request as a sidecar works on it.

    Attributes:
        op: What is asked for.
        body: The model of the whole.
        address: Who is to be answered.
        seconds: How long that may take.
        key: A UUID that follows from the sidecar's name, the client and the request's id: the request's name in the
            store, and the id of what it creates.
        fingerprint: SHA-256 of all that is asked for; not of where the answer goes, nor of how long it may take.
    """

    op: str
    body: Any
    address: Address
    seconds: float
    key: str
    fingerprint: str

    @property
    def delivery(self) -> tuple[str, str, str]:
        """The same for all messages that one answer will do for."""
        return self.key, self.fingerprint, self.address.channel


def read(message: bytes, channels: Channels, models: Mapping[str, type[RequestBody]]) -> Heard:
    """The request that a message is. ``models`` has each op's. Raises Refused."""
    address: Address | None = None
    try:
        if len(message) > MAX_MESSAGE:
            raise InvalidArgument("message", f"must be at most {MAX_MESSAGE:,} bytes")
        try:
            given = inputs.read_json(message)
        except InvalidArgument as error:
            address = _address(_whatever(message), channels)
            raise InvalidArgument("message", str(error).removeprefix("body ")) from None
        address = _address(given, channels)
        if not isinstance(given, dict):
            raise InvalidArgument("message", "must be a JSON object")
        op = given.get("op")
        model = models.get(op) if isinstance(op, str) else None
        if model is None:
            raise InvalidArgument("op", f"must be one of {', '.join(models)}")
        body: Any = inputs.validate(model, given)
        if body.reply_to is not None and not channels.may_reply_to(body.reply_to):
            raise InvalidArgument("reply_to", f"must begin with {channels.replies}")
        if address is None:
            raise InvalidArgument("client", "or reply_to must be given")
        wait_ms = getattr(body, "wait_ms", None) or 0
        deadline_ms = DEADLINE_MS + wait_ms if body.deadline_ms is None else body.deadline_ms
        if wait_ms >= deadline_ms:
            raise InvalidArgument("wait_ms", "must be less than deadline_ms")
        return Heard(body.op, body, address, deadline_ms / 1000, _key(channels, body), _fingerprint(given))
    except InvalidArgument as error:
        raise Refused(error, address) from None


def _whatever(message: bytes) -> Any:
    """What a message that is not as it must be says all the same: good for knowing whom to tell."""
    with suppress(ValueError, RecursionError):
        return json.loads(message.decode(errors="replace"))
    return None


def _address(given: Any, channels: Channels) -> Address | None:
    if not isinstance(given, dict):
        return None
    name, client, reply_to = given.get("id"), given.get("client"), given.get("reply_to")
    if not isinstance(name, str) or not _is_id(name):
        return None
    if reply_to is not None and channels.may_reply_to(reply_to):
        return Address(name, reply_to)
    # A channel that is not allowed is told of where the client listens anyway.
    return Address(name, channels.of(client)) if isinstance(client, str) and _is_name(client) else None


def _key(channels: Channels, body: RequestBody) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"{channels.name}\n{body.client or ''}\n{body.id}"))


_DELIVERY = ("reply_to", "deadline_ms")


def _fingerprint(given: dict[str, Any]) -> str:
    asked = {name: value for name, value in given.items() if name not in _DELIVERY}
    try:
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise InvalidArgument("message", "must not be nested that deep") from None
