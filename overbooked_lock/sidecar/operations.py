"""The operations: one table, from which validation, the JSON Schema and the page in the documentation are made.

A handler is a few lines: it gets the engine and the model of the request, calls a verb, and says what came of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from overbooked_lock import AsyncLockEngine, NewSlot, __version__, arguments
from overbooked_lock.bookings import Booking
from overbooked_lock.errors import InvalidArgument
from overbooked_lock.http.envelopes import Answer
from overbooked_lock.models import Lock, Slot, UtcDate
from overbooked_lock.sidecar import requests


class BareSlot(BaseModel):
    """What is told of a slot that is not registered, with ``--unregistered allow``."""

    id: str
    locked_until: UtcDate | None


class Pong(BaseModel):
    """Who is there."""

    sidecar: str
    version: str


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is worked on.

    Attributes:
        engine: Where the slots are.
        name: The sidecar's.
        new_id: The id of what is created: however often the request is worked on, it is created once.
    """

    engine: AsyncLockEngine
    name: str
    new_id: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler has to say: an answer as over HTTP, and the fencing tokens of the locks that were made."""

    answer: Answer
    fencing: Mapping[str, int | list[int]] | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """One line of the table.

    Attributes:
        name: What a request says in ``op``.
        summary: A sentence for the documentation.
        takes: The model of the request.
        answers: The model of ``data``; None for ``{}``.
        handler: What it does.
        lists: Whether ``data`` is a list of ``answers``.
        fencing: Which field the fencing tokens have in the answer, if it has any.
        claimed: Whether one sidecar alone works on it, and its answer is kept.
    """

    name: str
    summary: str
    takes: type[requests.RequestBody]
    answers: type[BaseModel] | None
    handler: Callable[[Call, Any], Awaitable[Reply]]
    lists: bool = False
    fencing: str | None = None
    claimed: bool = True


async def ping(call: Call, _: requests.PingRequest) -> Reply:
    return Reply(Answer(Pong(sidecar=call.name, version=__version__)))


# Locks


async def lock(call: Call, body: requests.LockRequest) -> Reply:
    if body.fair and body.wait_ms is None:
        raise InvalidArgument("fair", "needs wait_ms: only who waits has a place in the line")
    made = await call.engine.lock(
        body.slot_id, lock_key=body.lock_key, wait=_duration(body.wait_ms), fair=body.fair is True, **_until(body)
    )
    return _locked(made)


async def lock_many(call: Call, body: requests.LockManyRequest) -> Reply:
    made = await call.engine.lock_many(
        body.slot_ids, lock_key=body.lock_key, wait=_duration(body.wait_ms), **_until(body)
    )
    return _all_locked(made)


async def unlock(call: Call, body: requests.HeldRequest) -> Reply:
    done = await call.engine.unlock(body.slot_id, lock_key=body.lock_key, fencing_token=body.fencing_token)
    return Reply(Answer(done.slot or BareSlot(id=body.slot_id, locked_until=None), {"released": done.released}))


async def unlock_many(call: Call, body: requests.HeldManyRequest) -> Reply:
    done = await call.engine.unlock_many(body.slot_ids, lock_key=body.lock_key)
    slots = [one.slot or BareSlot(id=one.slot_id, locked_until=None) for one in done]
    return Reply(Answer(slots, {"released": [one.released for one in done]}))


async def extend(call: Call, body: requests.ExtendRequest) -> Reply:
    return _locked(
        await call.engine.extend(body.slot_id, lock_key=body.lock_key, fencing_token=body.fencing_token, **_until(body))
    )


async def extend_many(call: Call, body: requests.ExtendManyRequest) -> Reply:
    return _all_locked(await call.engine.extend_many(body.slot_ids, lock_key=body.lock_key, **_until(body)))


async def check(call: Call, body: requests.HeldRequest) -> Reply:
    held = await call.engine.check(body.slot_id, lock_key=body.lock_key, fencing_token=body.fencing_token)
    return Reply(Answer(None, {"held": False})) if held is None else _locked(held, {"held": True})


def _locked(lock: Lock, meta: Mapping[str, Any] | None = None) -> Reply:
    return Reply(Answer(_slot_of(lock), meta or {}), {"fencing_token": lock.fencing_token})


def _all_locked(locks: Sequence[Lock]) -> Reply:
    tokens = [lock.fencing_token for lock in locks]
    return Reply(Answer([_slot_of(lock) for lock in locks]), {"fencing_tokens": tokens})


def _slot_of(lock: Lock) -> BaseModel:
    return lock.slot or BareSlot(id=lock.slot_id, locked_until=lock.locked_until)


def _until(body: requests.Until) -> dict[str, Any]:
    if (body.lock_until is None) == (body.lock_for_ms is None):
        raise InvalidArgument("lock_until", "or lock_for_ms must be given, and not both")
    return {"lock_until": body.lock_until, "lock_for": _duration(body.lock_for_ms)}


def _duration(milliseconds: int | None) -> timedelta | None:
    return None if milliseconds is None else timedelta(milliseconds=milliseconds)


# Slots


async def get(call: Call, body: requests.GetRequest) -> Reply:
    return Reply(Answer(await call.engine.get_slot(body.slot_id, lock_key=body.lock_key)))


async def create_slot(call: Call, body: requests.CreateSlotRequest) -> Reply:
    new = NewSlot(
        resource_id=arguments.slot_id(body.resource_id, "resource_id"),
        start_date=body.start_date,
        end_date=body.end_date,
        capacity=body.capacity,
        metadata=body.metadata or {},
        lockable=body.lockable is not False,
        id=call.new_id if body.slot_id is None else arguments.slot_id(body.slot_id),
    )
    return Reply(Answer(await call.engine.create_slot(new)))


async def update_slot(call: Call, body: requests.UpdateSlotRequest) -> Reply:
    changed = await call.engine.update_slot(
        body.slot_id,
        start_date=body.start_date,
        end_date=body.end_date,
        capacity=body.capacity,
        metadata=body.metadata,
        lockable=body.lockable,
    )
    return Reply(Answer(changed))


async def enable_slot(call: Call, body: requests.SlotRequest) -> Reply:
    return Reply(Answer(await call.engine.enable_slot(body.slot_id)))


async def disable_slot(call: Call, body: requests.SlotRequest) -> Reply:
    return Reply(Answer(await call.engine.disable_slot(body.slot_id)))


async def delete_slot(call: Call, body: requests.SlotRequest) -> Reply:
    # Not there is no error here: it may be gone by the hand of a sidecar that died before it could say so.
    return Reply(Answer(None, {"deleted": await call.engine.delete_slot(body.slot_id)}))


async def list_slots(call: Call, body: requests.ListSlotsRequest) -> Reply:
    found = await call.engine.list_slots(
        resource_id=body.resource_id,
        start_date=body.start_date,
        end_date=body.end_date,
        available=body.available,
        limit=body.limit,
        page=body.page,
    )
    return Reply(Answer(found.slots, {"limit": found.limit, "page": found.page, "total": found.total}))


# Bookings


async def book(call: Call, body: requests.BookRequest) -> Reply:
    booking = await call.engine.book(
        body.slot_id,
        lock_key=body.lock_key,
        fencing_token=body.fencing_token,
        metadata=body.metadata,
        booking_id=call.new_id,
    )
    return _booked(booking, body.lock_key)


async def book_many(call: Call, body: requests.BookManyRequest) -> Reply:
    made = await call.engine.book_many(
        body.slot_ids,
        lock_key=body.lock_key,
        metadata=body.metadata,
        booking_ids=[str(uuid.uuid5(uuid.UUID(call.new_id), slot_id)) for slot_id in body.slot_ids],
    )
    expired = [booking.slot_id for booking in made if body.lock_key is not None and booking.lock_expired]
    return Reply(Answer(made, {"expired": expired} if expired else {}))


async def get_booking(call: Call, body: requests.BookingRequest) -> Reply:
    return Reply(Answer(await call.engine.get_booking(body.booking_id)))


async def update_booking(call: Call, body: requests.UpdateBookingRequest) -> Reply:
    return Reply(Answer(await call.engine.update_booking(body.booking_id, metadata=body.metadata)))


async def cancel(call: Call, body: requests.BookingRequest) -> Reply:
    return Reply(Answer(await call.engine.cancel_booking(body.booking_id)))


async def enable(call: Call, body: requests.EnableRequest) -> Reply:
    return _booked(await call.engine.enable_booking(body.booking_id, lock_key=body.lock_key), body.lock_key)


async def reschedule(call: Call, body: requests.RescheduleRequest) -> Reply:
    moved = await call.engine.reschedule_booking(body.booking_id, body.target_slot_id, lock_key=body.lock_key)
    return _booked(moved, body.lock_key)


async def delete_booking(call: Call, body: requests.BookingRequest) -> Reply:
    return Reply(Answer(None, {"deleted": await call.engine.delete_booking(body.booking_id)}))


async def list_bookings(call: Call, body: requests.ListBookingsRequest) -> Reply:
    found = await call.engine.list_bookings(
        slot_id=body.slot_id, resource_id=body.resource_id, status=body.status, limit=body.limit, page=body.page
    )
    return Reply(Answer(found.bookings, {"limit": found.limit, "page": found.page, "total": found.total}))


def _booked(booking: Booking, lock_key: str | None) -> Reply:
    # The place was free all the same, but nothing had kept it for the caller, who should know.
    expired = lock_key is not None and booking.lock_expired
    return Reply(Answer(booking, {"lock": "expired"} if expired else {}))


OPS = {
    op.name: op
    for op in (
        Op("ping", "Tells that a sidecar is there.", requests.PingRequest, Pong, ping, claimed=False),
        Op("lock", "Locks a slot.", requests.LockRequest, Slot, lock, fencing="fencing_token"),
        Op("unlock", "Ends a lock. One that has ended already is no error: `meta.released` tells.",
           requests.HeldRequest, Slot, unlock),
        Op("extend", "Moves the end of a live lock to a later date.",
           requests.ExtendRequest, Slot, extend, fencing="fencing_token"),
        Op("check", "Is it still mine? `meta.held` tells.",
           requests.HeldRequest, Slot, check, fencing="fencing_token"),
        Op("lock_many", "Locks up to 512 slots with one key, all or none.",
           requests.LockManyRequest, Slot, lock_many, lists=True, fencing="fencing_tokens"),
        Op("unlock_many", "Ends locks of one key, in one step.",
           requests.HeldManyRequest, Slot, unlock_many, lists=True),
        Op("extend_many", "Extends locks of one key, all or none.",
           requests.ExtendManyRequest, Slot, extend_many, lists=True, fencing="fencing_tokens"),
        Op("book", "Books a place. With the lock's key it uses up the lock, in the same step.",
           requests.BookRequest, Booking, book),
        Op("book_many", "Books a place in each of up to 512 slots, all or none.",
           requests.BookManyRequest, Booking, book_many, lists=True),
        Op("cancel", "Cancels a booking; its place is free again.", requests.BookingRequest, Booking, cancel),
        Op("enable", "Makes a cancelled booking active again, if its slot could be booked.",
           requests.EnableRequest, Booking, enable),
        Op("reschedule", "Moves a booking to another slot, in one step.",
           requests.RescheduleRequest, Booking, reschedule),
        Op("get", "Shows a slot, to anybody or to its holder.", requests.GetRequest, Slot, get),
        Op("get_booking", "Shows a booking.", requests.BookingRequest, Booking, get_booking),
        Op("update_booking", "Puts other metadata in the place of a booking's.",
           requests.UpdateBookingRequest, Booking, update_booking),
        Op("delete_booking", "Removes a booking: `meta.deleted` tells whether it was there.",
           requests.BookingRequest, None, delete_booking),
        Op("list_bookings", "Lists bookings.", requests.ListBookingsRequest, Booking, list_bookings, lists=True),
        Op("create_slot", "Registers a slot.", requests.CreateSlotRequest, Slot, create_slot),
        Op("update_slot", "Changes what is given and leaves the rest.", requests.UpdateSlotRequest, Slot, update_slot),
        Op("enable_slot", "Opens a slot for locks and bookings.", requests.SlotRequest, Slot, enable_slot),
        Op("disable_slot", "Closes a slot for locks and bookings. A lock on it stays until its date.",
           requests.SlotRequest, Slot, disable_slot),
        Op("delete_slot", "Removes a slot and the lock on it: `meta.deleted` tells whether it was there.",
           requests.SlotRequest, None, delete_slot),
        Op("list_slots", "Lists slots in the order of their start.",
           requests.ListSlotsRequest, Slot, list_slots, lists=True),
    )
}  # fmt: skip
"""All that a sidecar does."""

MODELS = {name: op.takes for name, op in OPS.items()}
