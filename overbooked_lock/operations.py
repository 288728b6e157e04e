"""The verbs, written once for both engines and without I/O.

An operation is a coroutine that awaits nothing but what its engine lends it (:class:`Means`). The async engine awaits
it. For the sync engine these block and never suspend, so one ``send`` takes the operation to its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

from overbooked_lock import arguments, calls
from overbooked_lock.errors import (
    EventsMissed,
    InvalidArgument,
    OverbookedError,
    SlotExists,
    SlotLocked,
    SlotNotFound,
    StoreUnavailable,
)
from overbooked_lock.events import SWEEP_EVERY_SECONDS, Batch, Event, Reader, Waiter, pause_until
from overbooked_lock.models import (
    ApiKey,
    ApiKeyInfo,
    Booking,
    BookingPage,
    BookingStatus,
    KeyKind,
    LiveLock,
    Lock,
    NewSlot,
    Quota,
    Slot,
    SlotPage,
    Unlocked,
    given_date,
)

T = TypeVar("T")

RENEW_TICKET_EVERY = 1.0
"""Seconds after which a fair waiter renews its ticket, which lives for three: see ``lua/lock_fair.lua``."""

CHUNK = 512
"""How many slots a script looks at in one call of a longer piece of work."""


@dataclass(slots=True)
class Run:
    """Call a script: gives one outcome for each request.

    Runs of one builder may be merged into one call, unless they are to stay ``alone``. ``within`` is a deadline in
    seconds where the engine's own would be too late; who awaits need not give it, and can stop waiting.
    """

    build: Callable[[calls.Settings, Any], calls.Call]
    requests: Sequence[Any]
    alone: bool = False
    within: float | None = None


Operation = Coroutine[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Means:
    """What an engine lends its operations.

    Attributes:
        run: Calls a script.
        pause: Waits so many seconds.
        listen: Tells from now on when a slot may be free: the waiter is to be closed. One with a ticket is also told
            when it gets the slot, and not when another does.
        wait: Until a waiter's bell rings, but no longer than so many seconds.
        load: Asks the host for a slot and registers it; whether it has one. None if the host offers none.
        in_background: Carries out another operation, and goes on at once.
    """

    run: Callable[[Run], Awaitable[list[Any]]]
    pause: Callable[[float], Awaitable[None]]
    listen: Callable[[str, str], Waiter[Any]]
    wait: Callable[[Waiter[Any], float], Awaitable[None]]
    load: Callable[[str], Awaitable[bool]] | None
    in_background: Callable[[Callable[[], Operation[None]]], None]


class Swept(NamedTuple):
    """How many locks had ended by their date, and the seconds in which no other will; None if there is none."""

    locks: int
    until_next: float | None


class CaughtUp(NamedTuple):
    """Events from the stream, and whether there are more."""

    events: list[Event]
    more: bool


class Operations:
    """The verbs of both engines: what is awaited here, those of the sync engine return.

    ``timeout`` is in seconds.
    """

    def __init__(self, settings: calls.Settings, timeout: float, means: Means) -> None:
        self._settings = settings
        self._timeout = timeout
        self._means = means
        self._run = means.run
        self._in_line: set[str] = set()
        """The tickets of those who wait fairly, or are about to: they leave the line before the engine closes."""

    # Locks

    async def lock(
        self,
        slot_id: str,
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        wait: timedelta | None = None,
        quota: Quota | None = None,
        fair: bool = False,
    ) -> Lock:
        """Locks a slot until a date, or for a duration from Redis' now.

        The key that holds the slot already is given its lock again, with the same fencing token; its date becomes
        the later of the two. So a call whose answer was lost can be made again with the same key.

        Args:
            slot_id: The slot.
            lock_key: The owner's secret, 1 to 255 characters. Without it a random one is made, and a lock whose
                outcome stays unknown is undone in the background.
            lock_until: The end of the lock, with a time zone; or else
            lock_for: its duration.
            wait: How long to wait for a slot that another key holds.
            quota: How many live locks one holder may have, this one included. A lock that the key has already
                costs nothing. Not waited for.
            fair: Wait in line: who came first gets the slot first, by Redis' clock and across processes, and nobody
                who does not wait in line gets it before. A waiter that died delays the next by up to 3 seconds.

        Raises:
            InvalidArgument: An argument is wrong, or the date is past or beyond ``max_lock``; or ``fair`` without
                ``wait``.
            SlotNotFound: No such slot.
            SlotNotLockable: It is not lockable, disabled, or full.
            SlotLocked: Another key holds it (still, after ``wait``), or somebody waits in line for it.
            TooManyLocks: The slot is free, and the quota's holder has as many live locks as it may.
            StoreCorrupt: The slot's keys hold something else.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        key = arguments.new_lock_key() if lock_key is None else arguments.lock_key(lock_key)
        quota = _quota(quota)
        request = calls.LockRequest(arguments.slot_id(slot_id), key, until, "", lock_key is None, quota)
        if arguments.flag(fair, "fair"):
            if wait is None:
                raise InvalidArgument("fair", "needs wait: only who waits has a place in the line")
            request = request._replace(ticket=secrets.token_hex(8))
        run = Run(calls.lock_fair if fair else calls.lock, [request])
        [lock] = await (self._attempt(run) if wait is None else self._wait_for(run, wait))
        return lock

    async def lock_many(
        self,
        slot_ids: Iterable[str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        wait: timedelta | None = None,
        quota: Quota | None = None,
    ) -> list[Lock]:
        """Locks up to 512 slots with one key: all of them or none, in one step; under a quota, each counts.

        There is no line for several slots: who waits here waits unfairly, behind those who wait in line for one.

        Raises what :meth:`lock` raises; the error is that of the first slot in the way, and names it.
        """
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        key = arguments.new_lock_key() if lock_key is None else arguments.lock_key(lock_key)
        quota = _quota(quota)
        requests = [
            calls.LockRequest(slot_id, key, until, key_is_new=lock_key is None, quota=quota)
            for slot_id in arguments.slot_ids(slot_ids)
        ]
        run = Run(calls.lock_many, requests, alone=True)
        return await (self._attempt(run) if wait is None else self._wait_for(run, wait))

    async def _wait_for(self, run: Run, wait: timedelta) -> list[Lock]:
        give_up_at = time.monotonic() + arguments.seconds(wait, "wait")
        waiter: Waiter[Any] | None = None
        if ticket := run.requests[0].ticket:
            self._in_line.add(ticket)
        try:
            while True:
                try:
                    return await self._attempt(run)
                except SlotLocked as taken:
                    left = give_up_at - time.monotonic()
                    if left <= 0:
                        raise
                    if waiter is not None and waiter.slot_id == taken.slot_id:
                        # A message that was lost costs no more than what is left of the lock. Who waits in line gets
                        # the slot at its date without asking, and only renews its ticket.
                        free_in = taken.retry_after.total_seconds() + 0.001
                        await self._means.wait(waiter, min(left, RENEW_TICKET_EVERY if ticket else free_in))
                    else:
                        # Listen, and then try again: what came free in between told nobody who listened.
                        if waiter is not None:
                            waiter.close()
                        waiter = self._means.listen(taken.slot_id, ticket)
        except GeneratorExit:
            raise  # nobody awaits it any more, and its loop may be gone: nothing can be carried out
        except BaseException:
            if ticket:
                self._means.in_background(partial(self._leave_queue, run.requests[0]))
            raise
        finally:
            self._in_line.discard(ticket)
            if waiter is not None:
                waiter.close()

    async def _leave_queue(self, request: calls.LockRequest) -> None:
        """Leaves the line, so that the next need not wait until the ticket has died."""
        with contextlib.suppress(StoreUnavailable):
            await self._run(
                Run(calls.leave_queue, [calls.LeaveRequest(request.slot_id, request.lock_key, request.ticket)])
            )

    async def unlock(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Unlocked:
        """Ends a lock, named by its value or by slot_id and lock_key.

        A lock that has ended already is no error: ``released`` tells. With a fencing token (a Lock carries its own)
        a late unlock leaves a newer lock of the same key alone.

        Raises:
            InvalidArgument: An argument is wrong.
            LockKeyInvalid: Another key holds the slot; nothing changed.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        return _one(await self._run(Run(calls.unlock, [_claim(lock, lock_key, fencing_token)])))

    async def unlock_many(self, locks: Iterable[Lock | str], *, lock_key: str | None = None) -> list[Unlocked]:
        """Ends up to 512 locks in one step, each that is still the caller's.

        Raises what :meth:`unlock` raises; if another key holds one of the slots, after the rest were unlocked.
        """
        return _all(await self._run(Run(calls.unlock, _claims(locks, lock_key))))

    async def force_unlock(self, slot_id: str) -> Unlocked:
        """Ends whatever lock is on a slot: for operators.

        Raises InvalidArgument, StoreUnavailable.
        """
        return _one(await self._run(Run(calls.force_unlock, [calls.ClaimRequest(arguments.slot_id(slot_id), "")])))

    async def extend(
        self,
        lock: Lock | str,
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        fencing_token: int | None = None,
    ) -> Lock:
        """Moves the end of a live lock to a later date, or to a duration from Redis' now; never to an earlier one.

        Raises:
            InvalidArgument: An argument is wrong, or the date is past or beyond ``max_lock``.
            LockLost: The lock has ended; it is not made anew.
            SlotNotFound, SlotNotLockable: The slot went, or was disabled, meanwhile; the lock stays until its date.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        [request] = self._extend_requests([_claim(lock, lock_key, fencing_token)], lock_until, lock_for)
        return _one(await self._run(Run(calls.extend, [request])))

    async def _extend_within(self, lock: Lock, end: datetime, limit: timedelta) -> Lock:
        """Extends a lock, but gives up after ``limit``, where that is sooner than the engine's own deadline."""
        [request] = self._extend_requests([_claim(lock, None)], end, None)
        return _one(await self._run(Run(calls.extend, [request], within=limit.total_seconds())))

    async def extend_many(
        self,
        locks: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
    ) -> list[Lock]:
        """Extends up to 512 locks: all of them or none, in one step. Raises what :meth:`extend` raises."""
        requests = self._extend_requests(_claims(locks, lock_key), lock_until, lock_for)
        return _all(await self._run(Run(calls.extend_many, requests, alone=True)))

    def _extend_requests(
        self, claims: Sequence[calls.ClaimRequest], lock_until: datetime | None, lock_for: timedelta | None
    ) -> list[calls.LockRequest]:
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        return [calls.LockRequest(claim.slot_id, claim.lock_key, until, claim.fencing_token) for claim in claims]

    async def check(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Lock | None:
        """Is it still mine? The lock as it stands now, or None.

        Raises InvalidArgument, StoreUnavailable.
        """
        return _one(await self._run(Run(calls.check, [_claim(lock, lock_key, fencing_token)])))

    async def list_locks(self) -> list[LiveLock]:
        """All live locks, by their end: for operators. Raises StoreUnavailable."""
        locks: dict[str, LiveLock] = {}
        cursor = 0
        while True:
            [(found, cursor)] = await self._run(Run(calls.list_locks, [(cursor, CHUNK)], alone=True))
            locks.update((lock.slot_id, lock) for lock in found)
            if not cursor:
                return sorted(locks.values(), key=lambda lock: lock.locked_until)

    # Slots

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
        return _all(await self._run(Run(calls.create_slots, requests)))

    async def get_slot(self, slot_id: str, *, lock_key: str | None = None) -> Slot:
        """The slot as somebody else sees it, or as the holder does whose ``lock_key`` is given.

        Raises InvalidArgument, SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        request = calls.GetRequest(arguments.slot_id(slot_id), _key_or_none(lock_key))
        [slot] = await self._attempt(Run(calls.get_slots, [request]))
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
        request = calls.UpdateRequest(
            arguments.slot_id(slot_id),
            lockable="" if lockable is None else "NL"[arguments.flag(lockable, "lockable")],
            capacity="" if capacity is None else arguments.capacity(capacity),
            start_ms="" if start_date is None else str(arguments.milliseconds(start_date, "start_date")),
            end_ms="" if end_date is None else str(arguments.milliseconds(end_date, "end_date")),
            start_date="" if start_date is None else given_date(start_date),
            end_date="" if end_date is None else given_date(end_date),
            metadata="" if metadata is None else arguments.metadata(metadata),
        )
        return _one(await self._run(Run(calls.update_slot, [request])))

    async def enable_slot(self, slot_id: str) -> Slot:
        """Opens a slot for locks and bookings. Raises SlotNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._set_status(slot_id, "A")

    async def disable_slot(self, slot_id: str) -> Slot:
        """Closes a slot for locks and bookings; a lock on it stays until its date.

        Raises SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        return await self._set_status(slot_id, "D")

    async def _set_status(self, slot_id: str, status: str) -> Slot:
        return _one(
            await self._run(Run(calls.update_slot, [calls.UpdateRequest(arguments.slot_id(slot_id), status=status)]))
        )

    async def delete_slot(self, slot_id: str) -> bool:
        """Removes a slot and the lock on it. True if it was there.

        Raises SlotHasBookings if it has active ones, StoreCorrupt, StoreUnavailable.
        """
        request = calls.DeleteRequest(arguments.slot_id(slot_id))
        deleted = None
        while deleted is None:
            deleted = _one(await self._run(Run(calls.delete_slots, [request])))
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
        request = calls.ListRequest(
            resource_id="" if resource_id is None else arguments.slot_id(resource_id, "resource_id"),
            from_ms="" if start_date is None else str(arguments.milliseconds(start_date, "start_date")),
            to_ms="" if end_date is None else str(arguments.milliseconds(end_date, "end_date")),
            available="" if available is None else "01"[arguments.flag(available, "available")],
            lock_key=_key_or_none(lock_key),
            cursor=0,
            chunk=CHUNK,
            skip=skip,
            limit=limit,
        )
        slots, total = list[Slot](), 0
        while True:
            [listed] = await self._run(Run(calls.list_slots, [request], alone=True))
            slots += listed.found
            total += listed.matched
            if not listed.next_cursor:
                return SlotPage(tuple(slots), total, limit, page)
            request = request._replace(cursor=listed.next_cursor, skip=max(0, skip - total), limit=limit - len(slots))

    async def prune_slots(self, before: datetime) -> int:
        """Removes the slots that ended at or before a date and are neither locked nor booked; returns how many.

        Raises InvalidArgument, StoreUnavailable.
        """
        before_ms = arguments.milliseconds(before, "before")
        total = skip = 0
        while True:
            [(pruned, kept, more)] = await self._run(Run(calls.prune_slots, [(before_ms, skip, CHUNK)], alone=True))
            total += pruned
            skip += kept
            if not more:
                return total

    # Bookings

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
        [booking] = await self._attempt(Run(calls.book, [request]))
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
        return await self._attempt(Run(calls.book_many, requests, alone=True))

    async def get_booking(self, booking_id: str) -> Booking:
        """A booking. Raises InvalidArgument, BookingNotFound, StoreCorrupt, StoreUnavailable."""
        return _one(await self._run(Run(calls.get_bookings, [_booking_request(booking_id)])))

    async def update_booking(self, booking_id: str, *, metadata: Mapping[str, Any]) -> Booking:
        """Puts other metadata in the place of a booking's. Raises what :meth:`get_booking` raises."""
        request = _booking_request(booking_id, arguments.metadata(metadata))
        return _one(await self._run(Run(calls.update_booking, [request])))

    async def cancel_booking(self, booking_id: str) -> Booking:
        """Cancels a booking: its place is free again. One that is cancelled stays so.

        Raises what :meth:`get_booking` raises.
        """
        return _one(await self._run(Run(calls.cancel_booking, [_booking_request(booking_id)])))

    async def enable_booking(self, booking_id: str, *, lock_key: str | None = None) -> Booking:
        """Makes a cancelled booking active again, as if it were booked now. One that is active stays so.

        Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        return _one(await self._run(Run(calls.enable_booking, [_booking_request(booking_id, _key_or_none(lock_key))])))

    async def reschedule_booking(self, booking_id: str, target_slot_id: str, *, lock_key: str | None = None) -> Booking:
        """Moves a booking to another slot, as if it were booked there now; both slots count it in one step.

        A cancelled booking moves without a place. Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        target = arguments.slot_id(target_slot_id, "target_slot_id")
        request = _booking_request(booking_id, target, _key_or_none(lock_key))
        [booking] = await self._attempt(Run(calls.reschedule_booking, [request]))
        return booking

    async def delete_booking(self, booking_id: str) -> bool:
        """Removes a booking. True if it was there. Raises InvalidArgument, StoreCorrupt, StoreUnavailable."""
        request = calls.DeleteBookingRequest(arguments.slot_id(booking_id, "booking_id"))
        return _one(await self._run(Run(calls.delete_bookings, [request])))

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
        request = calls.ListBookingsRequest(
            slot_id="" if slot_id is None else arguments.slot_id(slot_id),
            resource_id="" if resource_id is None else arguments.slot_id(resource_id, "resource_id"),
            status="" if status is None else {"active": "A", "cancelled": "C"}[status],
            cursor=0,
            chunk=CHUNK,
            skip=skip,
            limit=limit,
        )
        bookings, total = list[Booking](), 0
        while True:
            [listed] = await self._run(Run(calls.list_bookings, [request], alone=True))
            bookings += listed.found
            total += listed.matched
            if not listed.next_cursor:
                return BookingPage(tuple(bookings), total, limit, page)
            request = request._replace(
                cursor=listed.next_cursor, skip=max(0, skip - total), limit=limit - len(bookings)
            )

    # API keys

    async def create_api_key(self, kind: KeyKind, *, name: str = "") -> ApiKey:
        """Makes an API key, and registers its hash.

        Redis keeps no key, so this answer is the only place that ever shows it.

        Args:
            kind: ``"public"`` may be seen by anybody, ``"secret"`` is for servers.
            name: What people call it, at most 100 characters; several keys may share one.

        Raises InvalidArgument, StoreUnavailable.
        """
        request_kind = arguments.kind_of_key(kind)
        # Made before it is sent: however often that is, it is one key.
        key = arguments.new_api_key(request_kind)
        request = calls.KeyRequest(_key_hash(key), request_kind, arguments.name(name))
        info = _one(await self._run(Run(calls.create_api_key, [request])))
        return ApiKey(info.id, info.kind, info.name, info.created_at, key)

    async def find_api_key(self, key: str) -> ApiKeyInfo | None:
        """Which API key this is; None if there is none, or the text can't be one.

        Raises StoreUnavailable.
        """
        if not arguments.is_api_key(key):
            return None
        return _one(await self._run(Run(calls.find_api_key, [_key_hash(key)])))

    async def list_api_keys(self) -> list[ApiKeyInfo]:
        """All API keys, the oldest first. Raises StoreUnavailable."""
        infos: dict[str, ApiKeyInfo] = {}
        cursor = 0
        while True:
            [(found, cursor)] = await self._run(Run(calls.list_api_keys, [(cursor, CHUNK)], alone=True))
            infos.update((info.id, info) for info in found)
            if not cursor:
                return sorted(infos.values(), key=lambda info: (info.created_at, info.id))

    async def revoke_api_key(self, key_id: str) -> bool:
        """Removes an API key, at once. True if it was there.

        Raises InvalidArgument if this is no id, StoreUnavailable.
        """
        return _one(await self._run(Run(calls.revoke_api_key, [calls.RevokeRequest(arguments.api_key_id(key_id))])))

    # Answers

    async def keep_answer(self, name: str, answer: str, *, keep_for: timedelta) -> str:
        """Keeps an answer under a name, unless there is one already; returns the one that is kept.

        So of several who do the same work at the same time, or again, all give the same answer. By Redis' clock it
        is forgotten after its time.

        Args:
            name: Any 1 to 255 characters.
            answer: Any text of at most 128 KiB.
            keep_for: How long, at least 1 ms; counted for the first answer alone.

        Raises InvalidArgument, StoreUnavailable.
        """
        keep_ms = arguments.positive_milliseconds(keep_for, "keep_for")
        request = calls.AnswerRequest(arguments.answer_name(name), arguments.answer(answer), keep_ms)
        return _one(await self._run(Run(calls.keep_answer, [request])))

    async def get_answer(self, name: str) -> str | None:
        """The answer that is kept under a name, None if there is none. Raises InvalidArgument, StoreUnavailable."""
        return _one(await self._run(Run(calls.get_answer, [arguments.answer_name(name)])))

    # Events

    async def sweep(self) -> int:
        """Tells of locks that ended by their date and were not told of yet; returns how many.

        Needed only where nobody listens to :meth:`events` and the next ``lock`` may be long in coming: each lock looks
        for some that ended. Raises StoreUnavailable.
        """
        return (await self._sweep()).locks

    async def _sweep(self) -> Swept:
        total = 0
        while True:
            [(ended, until_next)] = await self._run(Run(calls.sweep, [CHUNK], alone=True))
            total += ended
            if until_next is None or until_next > -0.001:  # what is due is due from the next millisecond on
                return Swept(total, until_next)

    async def _sweep_in_time(self) -> float:
        """Sweeps; returns the seconds until it is to be done again."""
        try:
            return pause_until((await self._sweep()).until_next)
        except StoreUnavailable:
            return SWEEP_EVERY_SECONDS

    async def _catch_up(self, reader: Reader) -> CaughtUp:
        """The next events of the stream for a reader, of a chunk of entries.

        Raises EventsMissed.
        """
        [(kept, entries)] = await self._run(Run(calls.read_events, [(reader.from_id, CHUNK)], alone=True))
        if not kept:
            raise EventsMissed(reader.from_id)
        if not reader.from_id:
            reader.starts_at(entries[0][0])
            return CaughtUp([], more=False)
        return CaughtUp(
            [event for entry in entries for event in reader.take(Batch(*entry))], more=len(entries) == CHUNK
        )

    # What several verbs share

    async def _register(self, slot: NewSlot | None, slot_id: str) -> bool:
        """Registers what the host's ``load_slot`` returned for an id; whether it was a slot."""
        if slot is None:
            return False
        if slot.id != slot_id:
            raise InvalidArgument("load_slot", f"must return a slot with the id asked for, {slot_id!r}")
        with contextlib.suppress(SlotExists):  # somebody else was first
            await self.create_slot(slot)
        return True

    async def _attempt(self, run: Run) -> Any:
        """The outcomes of a run. Slots that it lacks are asked of the host; what nobody could end later is undone."""
        asked: set[str] = set()
        while True:
            answer = self._run(run)  # if it can't be asked at all, nothing was applied
            try:
                outcomes = await answer
            except GeneratorExit:
                raise  # as in _wait_for
            except BaseException as error:
                applied = not isinstance(error, StoreUnavailable) or error.outcome == "unknown"
                if applied and (undoing := _undoing(run.requests)):
                    self._means.in_background(partial(self._undo, undoing))
                raise
            problem = _first_error(outcomes)
            if problem is None:
                return outcomes
            load = self._means.load
            if load is None or not isinstance(problem, SlotNotFound) or problem.slot_id in asked:
                raise problem
            asked.add(problem.slot_id)
            if not await load(problem.slot_id):
                raise problem

    async def _undo(self, undoing: Run) -> None:
        """Ends what a call of unknown outcome may have made, or may yet make.

        A request that hangs on its way can arrive after the first try; hence the second look.
        """
        give_up_at = time.monotonic() + self._settings.max_lock_ms / 1000
        looks = 0
        while looks < 2 and time.monotonic() < give_up_at:
            try:
                outcomes = await self._run(undoing)
            except StoreUnavailable:
                outcomes = []
            if outcomes:
                looks += 1
                if all(outcome is True or (isinstance(outcome, Unlocked) and outcome.released) for outcome in outcomes):
                    return
            await self._means.pause(self._timeout)


def _key_hash(key: str) -> str:
    # The store keeps this, and looks keys up by it: what leaks from the store opens nothing, and how long a look-up
    # takes tells of the hash and not of the key. A key of 256 random bits needs no slower hash.
    return hashlib.sha256(key.encode()).hexdigest()


def _undoing(requests: Sequence[Any]) -> Run | None:
    """What ends a lock or a booking that these requests may have made; None if that is the caller's own business.

    Nobody knows a key or an id that was made for a call, so nobody could unlock or cancel what came of it. With one of
    the caller's own, the lock or the booking may be an earlier one of theirs.
    """
    if isinstance(requests[0], calls.LockRequest) and requests[0].key_is_new:
        return Run(calls.unlock, [calls.ClaimRequest(request.slot_id, request.lock_key) for request in requests])
    if isinstance(requests[0], calls.BookRequest) and requests[0].id_is_new:
        return Run(calls.delete_bookings, [calls.DeleteBookingRequest(request.booking_id) for request in requests])
    return None


def _first_error(outcomes: Iterable[Any]) -> OverbookedError | None:
    for outcome in outcomes:
        if isinstance(outcome, OverbookedError):
            return outcome
    return None


def _all(outcomes: Sequence[Any]) -> Any:
    if problem := _first_error(outcomes):
        raise problem
    return outcomes


def _one(outcomes: Sequence[Any]) -> Any:
    [outcome] = outcomes
    if isinstance(outcome, OverbookedError):
        raise outcome
    return outcome


def _quota(quota: Quota | None) -> Quota | None:
    if quota is None or isinstance(quota, Quota):
        return quota
    raise InvalidArgument("quota", "must be a Quota, or None")


def _claim(lock: Lock | str, lock_key: str | None, fencing_token: int | None = None) -> calls.ClaimRequest:
    if isinstance(lock, Lock):
        if lock_key is not None or fencing_token is not None:
            raise InvalidArgument("lock", "carries its lock_key and fencing_token: they can't be given beside it")
        return calls.ClaimRequest(lock.slot_id, lock.lock_key, str(lock.fencing_token))
    if lock_key is None:
        raise InvalidArgument("lock_key", "must be given with a slot_id (a Lock carries its own)")
    return calls.ClaimRequest(
        arguments.slot_id(lock), arguments.lock_key(lock_key), arguments.fencing_token(fencing_token)
    )


def _claims(locks: Iterable[Lock | str], lock_key: str | None) -> list[calls.ClaimRequest]:
    claims = [_claim(lock, None if isinstance(lock, Lock) else lock_key) for lock in arguments.many(locks, "locks")]
    arguments.slot_ids([claim.slot_id for claim in claims])
    return claims


def _book_request(
    slot: Lock | str,
    lock_key: str | None,
    fencing_token: int | None,
    metadata: Mapping[str, Any] | None,
    booking_id: str | None,
) -> calls.BookRequest:
    if isinstance(slot, Lock) or lock_key is not None or fencing_token is not None:
        claim = _claim(slot, lock_key, fencing_token)
    else:
        claim = calls.ClaimRequest(arguments.slot_id(slot), "")
    return calls.BookRequest(
        claim.slot_id,
        arguments.booking_id(booking_id),
        claim.lock_key,
        claim.fencing_token,
        arguments.metadata({} if metadata is None else metadata),
        booking_id is None,
    )


def _booking_request(booking_id: str, *own: str) -> calls.BookingRequest:
    return calls.BookingRequest(arguments.slot_id(booking_id, "booking_id"), own)


def _key_or_none(lock_key: str | None) -> str:
    return "" if lock_key is None else arguments.lock_key(lock_key)


def _create_request(slot: NewSlot) -> calls.CreateRequest:
    if not isinstance(slot, NewSlot):
        raise InvalidArgument("slots", "must be NewSlot objects")
    return calls.CreateRequest(
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
