"""Bookings: their payload, their verbs, what goes to their scripts, and what the replies mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from json.encoder import encode_basestring as _quoted
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from overbooked_lock import arguments, scripts
from overbooked_lock.calls import Builder, Call, Listed, Reply, Settings, fields, own_removal, rows, slots_of
from overbooked_lock.errors import (
    BookingExists,
    BookingNotFound,
    InvalidArgument,
    OverbookedError,
    SlotNotBookable,
    SlotNotFound,
    StoreCorrupt,
)
from overbooked_lock.locks import Claim, ClaimRequest, claim_of, locked_by_another
from overbooked_lock.models import JSON_BOOLEAN, Lock, UtcDate
from overbooked_lock.operations import CHUNK, Operations

BookingStatus = Literal["active", "cancelled"]


class Booking(BaseModel):
    """A booking as the Overbooked API shows it: ``model_dump_json()`` is its payload, field for field.

    ``lock_expired``, which is no part of the payload, tells that it was made with the key of a lock that had ended: the
    place was still free, so it was given, but nothing had kept it for the caller.
    """

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    object_: Literal["booking"] = Field("booking", alias="_object")
    resource_id: str
    created_at: UtcDate
    id: str
    metadata: dict[str, JsonValue]
    slot_id: str
    status: BookingStatus
    updated_at: UtcDate
    lock_expired: bool = Field(default=False, exclude=True)

    @classmethod
    def from_record(cls, booking_id: str, record: bytes) -> Booking:
        """Builds the payload from what Redis holds (see ``lua/lib/bookings.lua``).

        Raises :class:`~overbooked_lock.errors.StoreCorrupt` if it is not such a record.
        """
        try:
            head, slot_id, resource_id, metadata = record.decode().split("\n", 3)
            flags, created_ms, updated_ms = head.split(" ")
            booking: Booking = cls.__pydantic_validator__.validate_json(
                f'{{"resource_id":{_quoted(resource_id)},"created_at":{created_ms},"id":{_quoted(booking_id)},'
                f'"metadata":{metadata},"slot_id":{_quoted(slot_id)},'
                f'"status":"{"active" if flags[1] == "A" else "cancelled"}","updated_at":{updated_ms},'
                f'"lock_expired":{JSON_BOOLEAN[flags[2] == "E"]}}}'
            )
        except (ValueError, IndexError) as error:
            raise StoreCorrupt(booking_id) from error
        return booking


@dataclass(frozen=True, slots=True)
class BookingPage:
    """A page of a list: ``bookings``, and how many there are in ``total`` on all pages."""

    bookings: tuple[Booking, ...]
    total: int
    limit: int
    page: int


class Bookings(Operations):
    """The verbs of bookings."""

    async def book(
        self,
        slot: Lock | str,
        *,
        lock_key: str | None = None,
        fencing_token: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        booking_id: str | None = None,
    ) -> Booking:
        """Books a place in a slot, named by its id or by the Lock that holds it.

        The caller's lock is consumed in the same step. A slot that nobody holds can be booked without one; where
        the key's lock has ended and the place is still free, it is booked and ``lock_expired`` says so.

        Args:
            slot: The slot, or the lock that was made on it.
            lock_key: With a slot_id: the key that holds it.
            fencing_token: Which lock of this key is meant; a later one is not consumed, it is in the way.
            metadata: What to keep with the booking: JSON values.
            booking_id: Its id; a UUID by default. A call that is made again with the same id, slot and metadata
                gives the booking that is there.

        Raises:
            InvalidArgument: An argument is wrong.
            SlotNotFound: No such slot.
            SlotNotBookable: It is disabled, or full.
            SlotLocked: Another key holds it; the code is E050.
            BookingExists: The id is another booking's.
            StoreCorrupt, StoreUnavailable: As everywhere.
        """
        request = _book_request(slot, lock_key, fencing_token, metadata, booking_id)
        [booking] = await self._attempt(book, [request], _delete_all if booking_id is None else None)
        return booking

    async def book_many(
        self,
        slots: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        booking_ids: Iterable[str] | None = None,
    ) -> list[Booking]:
        """Books a place in each of up to 512 slots: all of them or none, in one step.

        Takes the locks that :meth:`lock_many` gave, or slot ids and their one lock_key. Raises what :meth:`book`
        raises; the error is that of the first slot in the way. With ``booking_ids``, one for each slot, the call can
        be made again, and books once.
        """
        places = list(arguments.many(slots, "slots"))
        requests = [
            _book_request(slot, None if isinstance(slot, Lock) else lock_key, None, metadata, booking_id)
            for slot, booking_id in zip(places, arguments.booking_ids(booking_ids, len(places)), strict=True)
        ]
        arguments.slot_ids([request.slot_id for request in requests])
        undoing = _delete_all if booking_ids is None else None
        return await self._attempt(book_many, requests, undoing, alone=True)

    async def get_booking(self, booking_id: str) -> Booking:
        """A booking. Raises InvalidArgument, BookingNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._one(get_bookings, _booking_request(booking_id))

    async def update_booking(self, booking_id: str, *, metadata: Mapping[str, Any]) -> Booking:
        """Puts other metadata in the place of a booking's. Raises what :meth:`get_booking` raises."""
        request = _booking_request(booking_id, arguments.metadata(metadata))
        return await self._one(update_booking, request)

    async def cancel_booking(self, booking_id: str) -> Booking:
        """Cancels a booking: its place is free again. One that is cancelled stays so.

        Raises what :meth:`get_booking` raises.
        """
        return await self._one(cancel_booking, _booking_request(booking_id))

    async def enable_booking(self, booking_id: str, *, lock_key: str | None = None) -> Booking:
        """Makes a cancelled booking active again, as if it were booked now. One that is active stays so.

        Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        request = _booking_request(booking_id, arguments.optional_lock_key(lock_key))
        return await self._one(enable_booking, request)

    async def reschedule_booking(self, booking_id: str, target_slot_id: str, *, lock_key: str | None = None) -> Booking:
        """Moves a booking to another slot, as if it were booked there now; both slots count it in one step.

        A cancelled booking moves without a place. Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        target = arguments.slot_id(target_slot_id, "target_slot_id")
        request = _booking_request(booking_id, target, arguments.optional_lock_key(lock_key))
        [booking] = await self._attempt(reschedule_booking, [request])
        return booking

    async def delete_booking(self, booking_id: str) -> bool:
        """Removes a booking. True if it was there. Raises InvalidArgument, StoreCorrupt, StoreUnavailable."""
        return await self._one(delete_bookings, arguments.slot_id(booking_id, "booking_id"))

    async def list_bookings(
        self,
        *,
        slot_id: str | None = None,
        resource_id: str | None = None,
        status: BookingStatus | None = None,
        limit: int = 50,
        page: int = 1,
    ) -> BookingPage:
        """A page of bookings in the order they were made: all, a slot's, a resource's, with one status.

        Args:
            slot_id: Only this slot's.
            resource_id: Only this resource's.
            status: Only ``active`` or only ``cancelled`` ones.
            limit: Bookings on a page, 1 to 512.
            page: Which page, from 1.

        Raises InvalidArgument, StoreUnavailable.
        """
        limit, skip = arguments.page(limit, page)
        if status not in (None, "active", "cancelled"):
            raise InvalidArgument("status", "must be 'active' or 'cancelled', or None for both")
        request = ListBookingsRequest(
            slot_id="" if slot_id is None else arguments.slot_id(slot_id),
            resource_id="" if resource_id is None else arguments.slot_id(resource_id, "resource_id"),
            status="" if status is None else {"active": "A", "cancelled": "C"}[status],
            cursor=0,
            chunk=CHUNK,
            skip=skip,
            limit=limit,
        )
        bookings, total = await self._list(list_bookings, request)
        return BookingPage(bookings, total, limit, page)


def _book_request(
    slot: Lock | str,
    lock_key: str | None,
    fencing_token: int | None,
    metadata: Mapping[str, Any] | None,
    booking_id: str | None,
) -> BookRequest:
    claim: Claim
    if isinstance(slot, Lock) or lock_key is not None or fencing_token is not None:
        claim = claim_of(slot, lock_key, fencing_token)
    else:
        claim = ClaimRequest(arguments.slot_id(slot), "")
    return BookRequest(
        claim.slot_id,
        arguments.booking_id(booking_id),
        claim.lock_key,
        claim.fencing_token,
        arguments.metadata({} if metadata is None else metadata),
    )


def _delete_all(requests: Sequence[BookRequest]) -> tuple[Builder[bool], list[str]]:
    return delete_bookings, [request.booking_id for request in requests]


def _booking_request(booking_id: str, *own: str) -> BookingRequest:
    return BookingRequest(arguments.slot_id(booking_id, "booking_id"), own)


class BookRequest(NamedTuple):
    slot_id: str
    booking_id: str
    lock_key: str
    fencing_token: str | int
    metadata: str


class BookingRequest(NamedTuple):
    """What is to be done with a booking; ``arguments`` are the verb's own."""

    booking_id: str
    arguments: tuple[str, ...] = ()


class ListBookingsRequest(NamedTuple):
    slot_id: str
    resource_id: str
    status: str
    cursor: int
    chunk: int
    skip: int
    limit: int


def book(settings: Settings, requests: Sequence[BookRequest], mode: str = "each") -> Call[Booking]:
    keys = settings.keys
    args = [*keys.naming, mode, *fields(requests)]
    named = [(request.booking_id, request.slot_id) for request in requests]
    return Call(scripts.BOOK, keys.of_bookings(slots_of(requests)), args, partial(_bookings, named))


def book_many(settings: Settings, requests: Sequence[BookRequest]) -> Call[Booking]:
    """All or nothing."""
    return book(settings, requests, "all")


def get_bookings(settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    return _on_bookings(scripts.GET_BOOKINGS, settings, requests)


def update_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    """Takes the metadata."""
    return _on_bookings(scripts.UPDATE_BOOKING, settings, requests)


def cancel_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    return _on_bookings(scripts.CANCEL_BOOKING, settings, requests)


def enable_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    """Takes a lock_key."""
    return _on_bookings(scripts.ENABLE_BOOKING, settings, requests)


def reschedule_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    """Takes the slot_id of where it goes, and a lock_key."""
    return _on_bookings(scripts.RESCHEDULE_BOOKING, settings, requests)


def delete_bookings(settings: Settings, requests: Sequence[str]) -> Call[bool]:
    """Takes ids; the outcome is True for a booking that this call removed, False for one that was not there."""
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[bool | OverbookedError]:
        tags = zip(requests, reply[1:], strict=True)
        return [StoreCorrupt(booking_id) if tag == b"corrupt" else tag == b"deleted" for booking_id, tag in tags]

    return Call(scripts.DELETE_BOOKINGS, keys.of_bookings(), [*keys.naming, *requests], parse, own_removal)


def list_bookings(settings: Settings, requests: Sequence[ListBookingsRequest]) -> Call[Listed[Booking]]:
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[Listed[Booking]]:
        bookings = [Booking.from_record(booking_id.decode(), record) for booking_id, record in rows(reply, 3, width=2)]
        return [Listed(bookings, matched=reply[2], next_cursor=reply[1])]

    return Call(scripts.LIST_BOOKINGS, keys.of_bookings(), [*keys.naming, *requests[0]], parse)


def _on_bookings(script: scripts.Script, settings: Settings, requests: Sequence[BookingRequest]) -> Call[Booking]:
    keys = settings.keys
    args = [*keys.naming, *fields((request.booking_id, *request.arguments) for request in requests)]
    # The first argument of a verb that has two is the slot that its refusals are about.
    named = [(request.booking_id, request.arguments[0] if request.arguments[1:] else "") for request in requests]
    return Call(script, keys.of_bookings(), args, partial(_bookings, named))


def _bookings(named: Sequence[tuple[str, str]], reply: Reply, _: float) -> list[Booking | OverbookedError]:
    """Takes the ids of each booking and of the slot that it is to have."""
    outcomes: list[Booking | OverbookedError] = []
    for (booking_id, slot_id), (tag, record, until_ms) in zip(named, rows(reply, width=3), strict=True):
        if tag != b"withheld":
            outcomes.append(_booking(booking_id, slot_id, tag, record, until_ms, reply[0]))
    return outcomes


def _booking(
    booking_id: str, slot_id: str, tag: bytes, record: bytes | None, until_ms: int, now_us: int
) -> Booking | OverbookedError:
    try:
        booking = Booking.from_record(booking_id, record) if record else None
    except StoreCorrupt as error:
        return error
    slot_id = slot_id or (booking.slot_id if booking else "")
    if tag == b"taken":
        return locked_by_another(slot_id, until_ms, now_us, code="E050")
    if tag in (b"disabled", b"full"):
        return SlotNotBookable(slot_id, cast("Literal['disabled', 'full']", tag.decode()))
    kinds: dict[bytes, tuple[Callable[[str], OverbookedError], str]] = {
        b"not_found": (BookingNotFound, booking_id),
        b"exists": (BookingExists, booking_id),
        b"slot_not_found": (SlotNotFound, slot_id),
        b"corrupt": (StoreCorrupt, slot_id or booking_id),
    }
    if tag in kinds:
        kind, named = kinds[tag]
        return kind(named)
    return cast("Booking", booking)
