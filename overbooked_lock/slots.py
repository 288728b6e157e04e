"""Slots: their verbs, what goes to their scripts, and what the replies mean."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from overbooked_lock import arguments, scripts
from overbooked_lock.calls import Call, Listed, Reply, Settings, fields, own_removal, rows, slots_of
from overbooked_lock.errors import (
    CapacityTooSmall,
    InvalidArgument,
    OverbookedError,
    SlotExists,
    SlotHasBookings,
    SlotNotFound,
    StoreCorrupt,
)
from overbooked_lock.models import NewSlot, Slot, SlotPage, given_date
from overbooked_lock.operations import CHUNK, Operations


class Slots(Operations):
    """The verbs of slots."""

    async def create_slot(self, slot: NewSlot) -> Slot:
        """Registers a slot. One that is there already and says the same is a success.

        Raises SlotExists if it says something else, StoreCorrupt, StoreUnavailable.
        """
        [created] = await self.create_slots([slot])
        return created

    async def create_slots(self, slots: Iterable[NewSlot]) -> list[Slot]:
        """Registers up to 512 slots in one step; those that can be are, before the error of one that can't is raised.

        Raises InvalidArgument, SlotExists, StoreCorrupt, StoreUnavailable.
        """
        requests = [_create_request(slot) for slot in slots]
        arguments.slot_ids([request.slot_id for request in requests])
        return await self._all(create_slots, requests)

    async def get_slot(self, slot_id: str, *, lock_key: str | None = None) -> Slot:
        """The slot as somebody else sees it, or as the holder does whose ``lock_key`` is given.

        Raises InvalidArgument, SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        request = GetRequest(arguments.slot_id(slot_id), arguments.optional_lock_key(lock_key))
        [slot] = await self._attempt(get_slots, [request])
        return slot

    async def update_slot(
        self,
        slot_id: str,
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        capacity: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        lockable: bool | None = None,
    ) -> Slot:
        """Changes what is given and leaves the rest.

        Raises:
            InvalidArgument: A field is wrong, or the start would not be before the end.
            SlotNotFound: No such slot.
            CapacityTooSmall: It has more active bookings.
            StoreCorrupt, StoreUnavailable: As everywhere.
        """
        request = UpdateRequest(
            arguments.slot_id(slot_id),
            lockable="" if lockable is None else "NL"[arguments.flag(lockable, "lockable")],
            capacity="" if capacity is None else arguments.capacity(capacity),
            start_ms="" if start_date is None else str(arguments.milliseconds(start_date, "start_date")),
            end_ms="" if end_date is None else str(arguments.milliseconds(end_date, "end_date")),
            start_date="" if start_date is None else given_date(start_date),
            end_date="" if end_date is None else given_date(end_date),
            metadata="" if metadata is None else arguments.metadata(metadata),
        )
        return await self._one(update_slot, request)

    async def enable_slot(self, slot_id: str) -> Slot:
        """Opens a slot for locks and bookings. Raises SlotNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._set_status(slot_id, "A")

    async def disable_slot(self, slot_id: str) -> Slot:
        """Closes a slot for locks and bookings; a lock on it stays until its date.

        Raises SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        return await self._set_status(slot_id, "D")

    async def _set_status(self, slot_id: str, status: str) -> Slot:
        return await self._one(update_slot, UpdateRequest(arguments.slot_id(slot_id), status=status))

    async def delete_slot(self, slot_id: str) -> bool:
        """Removes a slot and the lock on it. True if it was there.

        Raises SlotHasBookings if it has active ones, StoreCorrupt, StoreUnavailable.
        """
        arguments.slot_id(slot_id)
        deleted = None
        while deleted is None:
            deleted = await self._one(delete_slots, slot_id)
        return deleted

    async def list_slots(
        self,
        *,
        resource_id: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        available: bool | None = None,
        limit: int = 50,
        page: int = 1,
        lock_key: str | None = None,
    ) -> SlotPage:
        """A page of slots in the order of their start, as :meth:`get_slot` shows them.

        Args:
            resource_id: Only this resource's.
            start_date: Only those that start then or later.
            end_date: Only those that end then or earlier.
            available: Only those that are available to the one who asks, or only those that are not.
            limit: Slots on a page, 1 to 512.
            page: Which page, from 1.
            lock_key: See with the eyes of the one who holds locks with it.

        Raises InvalidArgument, StoreUnavailable.
        """
        limit, skip = arguments.page(limit, page)
        request = ListRequest(
            resource_id="" if resource_id is None else arguments.slot_id(resource_id, "resource_id"),
            from_ms="" if start_date is None else str(arguments.milliseconds(start_date, "start_date")),
            to_ms="" if end_date is None else str(arguments.milliseconds(end_date, "end_date")),
            available="" if available is None else "01"[arguments.flag(available, "available")],
            lock_key=arguments.optional_lock_key(lock_key),
            cursor=0,
            chunk=CHUNK,
            skip=skip,
            limit=limit,
        )
        slots, total = await self._list(list_slots, request)
        return SlotPage(slots, total, limit, page)

    async def prune_slots(self, before: datetime) -> int:
        """Removes the slots that ended at or before a date and are neither locked nor booked; returns how many.

        Raises InvalidArgument, StoreUnavailable.
        """
        before_ms = arguments.milliseconds(before, "before")
        total = skip = 0
        while True:
            pruned, kept, more = await self._one(prune_slots, (before_ms, skip, CHUNK), alone=True)
            total += pruned
            skip += kept
            if not more:
                return total

    async def _register(self, slot: NewSlot | None, slot_id: str) -> bool:
        """Registers what the host's ``load_slot`` returned for an id; whether it was a slot."""
        if slot is None:
            return False
        if slot.id != slot_id:
            raise InvalidArgument("load_slot", f"must return a slot with the id asked for, {slot_id!r}")
        with contextlib.suppress(SlotExists):  # somebody else was first
            await self.create_slot(slot)
        return True


def _create_request(slot: NewSlot) -> CreateRequest:
    if not isinstance(slot, NewSlot):
        raise InvalidArgument("slots", "must be NewSlot objects")
    return CreateRequest(
        slot.id,
        slot.resource_id,
        "NL"[slot.lockable],
        {"active": "A", "disabled": "D"}[slot.status],
        str(slot.capacity),
        arguments.milliseconds(slot.start_date, "start_date"),
        arguments.milliseconds(slot.end_date, "end_date"),
        given_date(slot.start_date),
        given_date(slot.end_date),
        arguments.metadata(slot.metadata),
    )


class GetRequest(NamedTuple):
    slot_id: str
    lock_key: str = ""


class CreateRequest(NamedTuple):
    slot_id: str
    resource_id: str
    lockable: str
    status: str
    capacity: str
    start_ms: int
    end_ms: int
    start_date: str
    end_date: str
    metadata: str


class UpdateRequest(NamedTuple):
    """What is to change; an empty text leaves a field as it is."""

    slot_id: str
    lockable: str = ""
    status: str = ""
    capacity: str = ""
    start_ms: str = ""
    end_ms: str = ""
    start_date: str = ""
    end_date: str = ""
    metadata: str = ""


class ListRequest(NamedTuple):
    resource_id: str
    from_ms: str
    to_ms: str
    available: str
    lock_key: str
    cursor: int
    chunk: int
    skip: int
    limit: int


def create_slots(settings: Settings, requests: Sequence[CreateRequest]) -> Call[Slot]:
    keys = settings.keys.of_slots(slots_of(requests))
    return Call(scripts.CREATE_SLOTS, keys, fields(requests), partial(_views, slots_of(requests)))


def get_slots(settings: Settings, requests: Sequence[GetRequest]) -> Call[Slot]:
    keys = settings.keys.of_locks(slots_of(requests))
    return Call(scripts.GET_SLOTS, keys, fields(requests), partial(_views, slots_of(requests)))


def update_slot(settings: Settings, requests: Sequence[UpdateRequest]) -> Call[Slot]:
    keys = settings.keys.of_slots(slots_of(requests))
    return Call(scripts.UPDATE_SLOT, keys, fields(requests), partial(_views, slots_of(requests)))


def delete_slots(settings: Settings, requests: Sequence[str]) -> Call[bool | None]:
    """Takes ids; the outcome is True for a slot that this call removed, False for one that was not there, None if there
    is more to remove."""

    def parse(reply: Reply, _: float) -> list[bool | OverbookedError | None]:
        outcomes: list[bool | OverbookedError | None] = []
        for slot_id, tag in zip(requests, reply[1:], strict=True):
            refusal = {b"has_bookings": SlotHasBookings, b"corrupt": StoreCorrupt}.get(tag)
            outcomes.append(refusal(slot_id) if refusal else None if tag == b"more" else tag == b"deleted")
        return outcomes

    keys, args = settings.keys.of_removal(requests), [*settings.keys.naming, *requests]
    return Call(scripts.DELETE_SLOTS, keys, args, parse, own_removal)


def list_slots(settings: Settings, requests: Sequence[ListRequest]) -> Call[Listed[Slot]]:
    [request] = requests
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[Listed[Slot]]:
        slots = [
            Slot.from_record(slot_id.decode(), record, until_ms, available=bool(available))
            for slot_id, record, until_ms, available in rows(reply, 3)
        ]
        return [Listed(slots, matched=reply[2], next_cursor=reply[1])]

    return Call(scripts.LIST_SLOTS, keys.of_slots(()), [*keys.naming, *request], parse)


def prune_slots(settings: Settings, requests: Sequence[tuple[int, int, int]]) -> Call[tuple[int, int, bool]]:
    """Takes one (before_ms, skip, chunk); the outcome is (pruned, kept, whether there are more)."""
    keys = settings.keys
    args: list[str | int] = [*keys.naming, *requests[0]]
    return Call(scripts.PRUNE_SLOTS, keys.of_removal(), args, lambda reply, _: [(reply[1], reply[2], bool(reply[3]))])


def _views(ids: Sequence[str], reply: Reply, _: float) -> list[Slot | OverbookedError]:
    return [_view(slot_id, *row) for slot_id, row in zip(ids, rows(reply), strict=True)]


def _view(slot_id: str, tag: bytes, record: bytes, until_ms: int, available: int) -> Slot | OverbookedError:
    if tag in (b"found", b"created", b"updated"):
        try:
            return Slot.from_record(slot_id, record, until_ms, available=bool(available))
        except StoreCorrupt as error:
            return error
    if tag == b"start_not_before_end":
        return InvalidArgument("start_date", "must be before end_date", code="E023", status=422)
    kinds: dict[bytes, type[SlotNotFound | SlotExists | StoreCorrupt | CapacityTooSmall]]
    kinds = {
        b"not_found": SlotNotFound,
        b"exists": SlotExists,
        b"corrupt": StoreCorrupt,
        b"capacity_too_small": CapacityTooSmall,
    }
    return kinds[tag](slot_id)
