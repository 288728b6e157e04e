"""The endpoints: one table, from which routes, validation and the OpenAPI document are made.

A handler is a few lines: it gets the engine, the request, and the model of its body or query, calls a verb, and says
what came of it. What it raises, ``envelopes.py`` turns into an answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from overbooked_lock import AsyncLockEngine, arguments
from overbooked_lock.api_keys import ApiKeyInfo
from overbooked_lock.bookings import Booking
from overbooked_lock.errors import BookingNotFound, InvalidArgument, SlotNotFound
from overbooked_lock.events import Event
from overbooked_lock.http import inputs
from overbooked_lock.http.access import Rights, check_rights
from overbooked_lock.http.envelopes import Answer
from overbooked_lock.http.request import Request
from overbooked_lock.http.streams import Stream, Streams
from overbooked_lock.models import LiveLock, NewSlot, Quota, Slot, UtcDate


class Call(NamedTuple):
    """A request that was let in, as a handler needs it.

    Attributes:
        engine: Where the slots are.
        request: The request.
        key: The API key it came with.
        quota: How many live locks who asks may have; None: as many as they want.
        streams: The application's streams of events.
        identify: Looks the key up again; raises ApiKeyInvalid where it was revoked meanwhile.
        new_id: The id of what is created, where ``Idempotency-Key`` says that this must happen once only.
    """

    engine: AsyncLockEngine
    request: Request
    key: ApiKeyInfo
    quota: Quota | None
    streams: Streams
    identify: Callable[[], Awaitable[ApiKeyInfo]]
    new_id: str | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the table.

    Attributes:
        method, path: ``{id}`` in the path stands for a whole segment.
        name: As the published API calls it: ``slot.lock``.
        summary: A sentence for the documentation.
        rights: Which API keys may call it.
        takes: The model of the body, or of the query of a GET.
        answers: The model of ``data``; None for ``{}``.
        errors: The codes that only some endpoints have; those of all are not repeated.
        handler: What it does.
        lists: Whether ``data`` is a list of ``answers``, with a page in ``meta``.
        creates: Whether it heeds ``Idempotency-Key``.
        takes_lists: Whether a body may be a list, too: the handler gets a list then, and gives one.
        reads_lock_key: Whether it heeds ``X-Lock-Key``.
        streams: Whether it answers with a stream of ``answers``, and a public key may stand in its URL.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    name: str
    summary: str
    rights: Rights
    takes: type[BaseModel] | None
    answers: type[BaseModel] | None
    errors: tuple[str, ...]
    handler: Callable[[Call, Any], Awaitable[Answer | Stream]]
    lists: bool = False
    creates: bool = False
    takes_lists: bool = False
    reads_lock_key: bool = False
    streams: bool = False

    @property
    def route(self) -> str:
        """``POST /slots/{id}/lock``: its name in logs and metrics, where a path would hold ids."""
        return f"{self.method} {self.path}"


# Slots


async def create_slot(call: Call, body: inputs.NewSlotBody | list[inputs.NewSlotBody]) -> Answer:
    if not isinstance(body, list):
        return Answer(await call.engine.create_slot(_new_slot(body, call.new_id)))
    ids = [call.new_id and str(uuid.uuid5(uuid.UUID(call.new_id), str(at))) for at in range(len(body))]
    return Answer(await call.engine.create_slots(map(_new_slot, body, ids)))


def _new_slot(body: inputs.NewSlotBody, new_id: str | None) -> NewSlot:
    return NewSlot(
        resource_id=arguments.slot_id(body.resource_id, "resource_id"),
        start_date=body.start_date,
        end_date=body.end_date,
        capacity=body.capacity,
        metadata={} if body.metadata is None else body.metadata,
        lockable=body.lockable is not False,
        id=new_id or arguments.new_id(),
    )


async def list_slots(call: Call, query: inputs.SlotsQuery) -> Answer:
    found = await call.engine.list_slots(
        resource_id=query.resource_id,
        start_date=query.start_date,
        end_date=query.end_date,
        available=None if query.available is None else query.available == "true",
        limit=query.limit,
        page=query.page,
        lock_key=call.request.lock_key,
    )
    return Answer(found.slots, _page(query, found.total))


async def get_slot(call: Call, _: None) -> Answer:
    return Answer(await call.engine.get_slot(call.request.item_id, lock_key=call.request.lock_key))


async def update_slot(call: Call, body: inputs.SlotChanges) -> Answer:
    return Answer(
        await call.engine.update_slot(
            call.request.item_id,
            start_date=body.start_date,
            end_date=body.end_date,
            capacity=body.capacity,
            metadata=body.metadata,
            lockable=body.lockable,
        )
    )


async def enable_slot(call: Call, _: None) -> Answer:
    return Answer(await call.engine.enable_slot(call.request.item_id))


async def disable_slot(call: Call, _: None) -> Answer:
    return Answer(await call.engine.disable_slot(call.request.item_id))


async def lock_slot(call: Call, body: inputs.LockBody) -> Answer:
    lock = await call.engine.lock(
        call.request.item_id, lock_key=body.lock_key, lock_until=body.lock_until, quota=call.quota
    )
    return Answer(lock.slot_json, headers=((b"x-fencing-token", b"%d" % lock.fencing_token),))


async def unlock_slot(call: Call, body: inputs.UnlockBody) -> Answer:
    slot_id = call.request.item_id
    if body.force:
        check_rights("secret", call.key, strict=False)
        unlocked = await call.engine.force_unlock(slot_id)
    elif body.lock_key is None:
        raise InvalidArgument("lock_key", "must be given")
    else:
        unlocked = await call.engine.unlock(slot_id, lock_key=body.lock_key)
    payload = unlocked.slot_json
    if payload is None:
        raise SlotNotFound(slot_id)
    return Answer(payload)


async def delete_slot(call: Call, _: None) -> Answer:
    if not await call.engine.delete_slot(call.request.item_id):
        raise SlotNotFound(call.request.item_id)
    return Answer(None)


class LockItem(BaseModel):
    """A live lock, as an operator sees it."""

    slot_id: str
    locked_until: UtcDate
    locked_since: UtcDate
    fencing_token: int
    key_hash: str

    @classmethod
    def of(cls, lock: LiveLock) -> LockItem:
        return cls(
            slot_id=lock.slot_id,
            locked_until=lock.locked_until,
            locked_since=lock.locked_since,
            fencing_token=lock.fencing_token,
            key_hash=lock.key_hash,
        )


async def list_locks(call: Call, query: inputs.PageQuery) -> Answer:
    locks = await call.engine.list_locks()
    first = (query.page - 1) * query.limit
    return Answer([LockItem.of(lock) for lock in locks[first : first + query.limit]], _page(query, len(locks)))


# Bookings


async def create_booking(call: Call, body: inputs.NewBookingBody) -> Answer:
    booking = await call.engine.book(
        body.slot_id, lock_key=body.lock_key, metadata=body.metadata, booking_id=call.new_id
    )
    return _booked(booking, body.lock_key)


async def list_bookings(call: Call, query: inputs.BookingsQuery) -> Answer:
    found = await call.engine.list_bookings(
        slot_id=query.slot_id,
        resource_id=query.resource_id,
        status=query.status,
        limit=query.limit,
        page=query.page,
    )
    return Answer(found.bookings, _page(query, found.total))


async def get_booking(call: Call, _: None) -> Answer:
    return Answer(await call.engine.get_booking(call.request.item_id))


async def update_booking(call: Call, body: inputs.BookingChanges) -> Answer:
    if body.metadata is None:
        return await get_booking(call, None)
    return Answer(await call.engine.update_booking(call.request.item_id, metadata=body.metadata))


async def cancel_booking(call: Call, _: None) -> Answer:
    return Answer(await call.engine.cancel_booking(call.request.item_id))


async def enable_booking(call: Call, _: None) -> Answer:
    lock_key = call.request.lock_key
    return _booked(await call.engine.enable_booking(call.request.item_id, lock_key=lock_key), lock_key)


async def reschedule_booking(call: Call, body: inputs.RescheduleBody) -> Answer:
    lock_key = call.request.lock_key
    return _booked(
        await call.engine.reschedule_booking(call.request.item_id, body.target_slot_id, lock_key=lock_key), lock_key
    )


def _booked(booking: Booking, lock_key: str | None) -> Answer:
    # The place was free all the same, but nothing had kept it for the caller, who should know.
    return Answer(booking, {"lock": "expired"} if lock_key is not None and booking.lock_expired else {})


async def delete_booking(call: Call, _: None) -> Answer:
    if not await call.engine.delete_booking(call.request.item_id):
        raise BookingNotFound(call.request.item_id)
    return Answer(None)


async def stream_events(call: Call, query: inputs.EventsQuery) -> Stream | Answer:
    if not call.request.wants_body:
        return Answer(None)
    holder = f"{call.key.id}|{call.request.address}" if call.key.kind == "public" else None
    return await call.streams.open(call.request, query, holder, call.identify)


def _page(query: inputs.PageQuery, total: int) -> Mapping[str, int]:
    return {"limit": query.limit, "page": query.page, "total": total}


_CAN_BOOK = ("E025", "E049", "E050", "E051")

ENDPOINTS = (
    Endpoint(
        "POST", "/slots/{id}/lock", "slot.lock",
        "Locks a slot for a while: nobody else can lock or book it. Its `lock_key` may lock again, to a later date.",
        "any", inputs.LockBody, Slot, ("E025", "E044", "E045"), lock_slot,
    ),
    Endpoint(
        "POST", "/slots/{id}/unlock", "slot.unlock", "Ends a lock. One that has ended already is no error.",
        "any", inputs.UnlockBody, Slot, ("E025", "E059"), unlock_slot,
    ),
    Endpoint(
        "POST", "/slots", "slot.create", "Creates a slot; or several, given and answered as a list.",
        "secret", inputs.NewSlotBody, Slot, ("E023", "E042", "E047"), create_slot, creates=True, takes_lists=True,
    ),
    Endpoint(
        "GET", "/slots", "slot.list", "Lists slots in the order of their start.",
        "any", inputs.SlotsQuery, Slot, (), list_slots, lists=True, reads_lock_key=True,
    ),
    Endpoint(
        "GET", "/slots/{id}", "slot.get", "Shows a slot to anybody, or to the holder of the lock on it.",
        "any", None, Slot, ("E025",), get_slot, reads_lock_key=True,
    ),
    Endpoint(
        "PATCH", "/slots/{id}", "slot.update", "Changes what is given and leaves the rest.",
        "secret", inputs.SlotChanges, Slot, ("E023", "E025", "E042", "E046", "E047"), update_slot,
    ),
    Endpoint(
        "POST", "/slots/{id}/enable", "slot.enable", "Opens a slot for locks and bookings.",
        "secret", None, Slot, ("E025",), enable_slot,
    ),
    Endpoint(
        "POST", "/slots/{id}/disable", "slot.disable",
        "Closes a slot for locks and bookings. A lock on it stays until its date.",
        "secret", None, Slot, ("E025",), disable_slot,
    ),
    Endpoint(
        "DELETE", "/slots/{id}", "slot.delete", "Removes a slot, the lock on it and its cancelled bookings.",
        "secret", None, None, ("E025", "E060"), delete_slot,
    ),
    Endpoint(
        "POST", "/bookings", "booking.create",
        "Books a place. With the lock's `lock_key` it uses up the lock, in the same step.",
        "any", inputs.NewBookingBody, Booking, (*_CAN_BOOK, "E042"), create_booking, creates=True,
    ),
    Endpoint(
        "GET", "/bookings", "booking.list", "Lists bookings.",
        "any, but strict", inputs.BookingsQuery, Booking, (), list_bookings, lists=True,
    ),
    Endpoint(
        "GET", "/bookings/{id}", "booking.get", "Shows a booking.",
        "any, but strict", None, Booking, ("E048",), get_booking,
    ),
    Endpoint(
        "PATCH", "/bookings/{id}", "booking.update", "Changes a booking's metadata.",
        "any, but strict", inputs.BookingChanges, Booking, ("E042", "E048"), update_booking,
    ),
    Endpoint(
        "POST", "/bookings/{id}/cancel", "booking.cancel", "Cancels a booking; its place is free again.",
        "any, but strict", None, Booking, ("E048",), cancel_booking,
    ),
    Endpoint(
        "POST", "/bookings/{id}/enable", "booking.enable",
        "Makes a cancelled booking active again, if its slot could be booked.",
        "any, but strict", None, Booking, (*_CAN_BOOK, "E048"), enable_booking, reads_lock_key=True,
    ),
    Endpoint(
        "POST", "/bookings/{id}/reschedule", "booking.reschedule", "Moves a booking to another slot, in one step.",
        "any, but strict", inputs.RescheduleBody, Booking, (*_CAN_BOOK, "E048"), reschedule_booking,
        reads_lock_key=True,
    ),
    Endpoint(
        "DELETE", "/bookings/{id}", "booking.delete", "Removes a booking.",
        "secret", None, None, ("E048",), delete_booking,
    ),
    Endpoint(
        "GET", "/locks", "lock.list", "Lists the live locks by their end: for operators.",
        "secret", inputs.PageQuery, LockItem, (), list_locks, lists=True,
    ),
    Endpoint(
        "GET", "/events", "event.stream", "Tells what happens to slots, as it happens: server-sent events.",
        "any", inputs.EventsQuery, Event, (), stream_events, streams=True,
    ),
)  # fmt: skip
"""All that takes an API key."""
