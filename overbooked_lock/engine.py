"""The sync engine: the verbs, and the executor that carries out their steps on this thread's own connection."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import hiredis
import redis
from redis.connection import AbstractConnection
from redis.exceptions import ResponseError

from overbooked_lock import arguments, calls, store
from overbooked_lock.calls import Settings
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import InvalidArgument, SlotExists, StoreUnavailable
from overbooked_lock.events import SWEEP_EVERY_SECONDS, Event, Listener, Reader, Waiter, pause_until
from overbooked_lock.holding import Hold
from overbooked_lock.keys import Keys
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
    Status,
    Unlocked,
)
from overbooked_lock.operations import Means, Operation, Operations, Run

T = TypeVar("T")

_CLOSED = "this engine is closed"
_GLANCE = 0.002  # seconds


class LockEngine:
    """Locks slots on Redis or Valkey. Thread-safe; give each process one and share it among its threads.

    Args:
        client: A ``redis.Redis`` that says how to connect, whatever its ``decode_responses``; the engine keeps
            connections of its own. With Sentinel: what ``Sentinel.master_for()`` gives.
        namespace: Goes before every key, so that several engines can share a Redis. Letters, digits, ``_.-``.
        timeout: Within this every call ends, tries and pauses between them included.
        max_lock: The longest lock, counted from Redis' now.
        unregistered: ``"refuse"``: only registered slots can be locked. ``"allow"``: any id can; such a lock
            has no ``slot``.
        load_slot: Is asked for a slot that is not registered: returns a NewSlot with that id, which is then
            registered, or None. Asked once at a time for one id. Its own exceptions reach the caller.

    Raises:
        InvalidArgument: An argument is wrong.
    """

    def __init__(
        self,
        client: redis.Redis,
        *,
        namespace: str = "",
        timeout: timedelta = timedelta(seconds=5),
        max_lock: timedelta = timedelta(hours=24),
        unregistered: Literal["refuse", "allow"] = "refuse",
        load_slot: Callable[[str], NewSlot | None] | None = None,
    ) -> None:
        self._pool = store.client_of(client, redis.Redis).connection_pool
        self._settings = Settings(Keys(namespace), arguments.max_lock(max_lock), arguments.scope(unregistered))
        self._timeout = arguments.positive_milliseconds(timeout, "timeout") / 1000
        self._listener = Listener(self._pool, self._settings.keys.events, self._timeout, self._sweep)
        load = None if load_slot is None else self._load
        means = Means(self._run, self._pause, self._listener.waiter, self._wait, load, self._in_background)
        self._operations = Operations(self._settings, self._timeout, means)
        self._load_slot = load_slot
        self._loading: dict[str, Future[bool]] = {}
        self._mutex = threading.Lock()
        self._idle: deque[_Wire] = deque()
        self._wires: set[_Wire] = set()
        self._pid = os.getpid()
        self._examined = False
        self._closing = threading.Event()
        self._dismissed = False
        self._background: set[threading.Thread] = set()
        self._server: EmbeddedServer | None = None

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """An engine for ``redis://``, ``rediss://`` or ``unix://``; the options are those of the class.

        Raises InvalidArgument if the URL is not one of these.
        """
        try:
            client = redis.Redis.from_url(url)
        except ValueError as error:
            raise InvalidArgument("url", "must start with redis://, rediss:// or unix://") from error
        return cls(client, **options)

    @classmethod
    def embedded(
        cls, path: str | os.PathLike[str], *, fsync: Literal["always", "everysec"] = "always", **options: Any
    ) -> Self:
        """An engine on a private server that keeps its data in the folder ``path``.

        The first process to come starts the server, the last to close its engine stops it. With ``fsync="always"``
        no lock that was granted is lost, whatever crashes. Takes some tens of milliseconds where the server is to
        be started.

        Raises EmbeddedServerError if the folder can't be used, InvalidArgument if an option is wrong.
        """
        server = EmbeddedServer(path, fsync=fsync)
        try:
            engine = cls.from_url(server.url, **options)
        except BaseException:
            server.close()
            raise
        engine._server = server  # noqa: SLF001 - our own
        return engine

    # Locks

    def lock(
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
        return self._do(self._operations.lock(slot_id, lock_key, lock_until, lock_for, wait, quota, fair))

    def lock_many(
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
        return self._do(self._operations.lock_many(slot_ids, lock_key, lock_until, lock_for, wait, quota))

    def unlock(self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None) -> Unlocked:
        """Ends a lock, named by its value or by slot_id and lock_key.

        A lock that has ended already is no error: ``released`` tells. With a fencing token (a Lock carries its own)
        a late unlock leaves a newer lock of the same key alone.

        Raises:
            InvalidArgument: An argument is wrong.
            LockKeyInvalid: Another key holds the slot; nothing changed.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        return self._do(self._operations.unlock(lock, lock_key, fencing_token))

    def unlock_many(self, locks: Iterable[Lock | str], *, lock_key: str | None = None) -> list[Unlocked]:
        """Ends up to 512 locks in one step, each that is still the caller's.

        Raises what :meth:`unlock` raises; if another key holds one of the slots, after the rest were unlocked.
        """
        return self._do(self._operations.unlock_many(locks, lock_key))

    def force_unlock(self, slot_id: str) -> Unlocked:
        """Ends whatever lock is on a slot: for operators.

        Raises InvalidArgument, StoreUnavailable.
        """
        return self._do(self._operations.force_unlock(slot_id))

    def extend(
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
        return self._do(self._operations.extend(lock, lock_key, lock_until, lock_for, fencing_token))

    def extend_many(
        self,
        locks: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
    ) -> list[Lock]:
        """Extends up to 512 locks: all of them or none, in one step. Raises what :meth:`extend` raises."""
        return self._do(self._operations.extend_many(locks, lock_key, lock_until, lock_for))

    def check(self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None) -> Lock | None:
        """Is it still mine? The lock as it stands now, or None.

        Raises InvalidArgument, StoreUnavailable.
        """
        return self._do(self._operations.check(lock, lock_key, fencing_token))

    def hold(
        self,
        slot_id: str,
        *,
        lock_for: timedelta,
        lock_key: str | None = None,
        wait: timedelta | None = None,
        renew: bool = True,
        max_lifetime: timedelta | None = None,
        fair: bool = False,
    ) -> Hold:
        """Holds a slot for the body of a ``with``: locks it, renews the lock, unlocks it whatever happens.

        See :class:`~overbooked_lock.holding.Hold`, which tells the body when the lock was lost. Entering raises
        what :meth:`lock` raises.

        Args:
            slot_id: The slot.
            lock_for: How long the lock lasts when nobody renews it: what a crash costs the next in line.
            lock_key: The owner's secret; a random one by default.
            wait: How long to wait for a slot that another key holds.
            renew: Renew in the background, every third of ``lock_for``.
            max_lifetime: The lock is never renewed past this, counted from its start.
            fair: Wait in line, as :meth:`lock` does.
        """
        return Hold(self, slot_id, lock_for, lock_key, wait, renew, max_lifetime, fair)

    def list_locks(self) -> list[LiveLock]:
        """All live locks, by their end: for operators. Raises StoreUnavailable."""
        return self._do(self._operations.list_locks())

    # Slots

    def create_slot(self, slot: NewSlot) -> Slot:
        """Registers a slot. One that is there already and says the same is a success.

        Raises SlotExists if it says something else, StoreCorrupt, StoreUnavailable.
        """
        [created] = self.create_slots([slot])
        return created

    def create_slots(self, slots: Iterable[NewSlot]) -> list[Slot]:
        """Registers up to 512 slots in one step; those that can be are, before the error of one that can't is raised.

        Raises InvalidArgument, SlotExists, StoreCorrupt, StoreUnavailable.
        """
        return self._do(self._operations.create_slots(slots))

    def get_slot(self, slot_id: str, *, lock_key: str | None = None) -> Slot:
        """The slot as somebody else sees it, or as the holder does whose ``lock_key`` is given.

        Raises InvalidArgument, SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        return self._do(self._operations.get_slot(slot_id, lock_key))

    def update_slot(
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
        fields = (start_date, end_date, capacity, metadata, lockable)
        return self._do(self._operations.update_slot(slot_id, *fields, None))

    def enable_slot(self, slot_id: str) -> Slot:
        """Opens a slot for locks and bookings. Raises SlotNotFound, StoreCorrupt, StoreUnavailable."""
        return self._set_status(slot_id, "active")

    def disable_slot(self, slot_id: str) -> Slot:
        """Closes a slot for locks and bookings; a lock on it stays until its date.

        Raises SlotNotFound, StoreCorrupt, StoreUnavailable.
        """
        return self._set_status(slot_id, "disabled")

    def _extend_within(self, lock: Lock, end: datetime, limit: timedelta) -> Lock:
        """For a hold, whose body must learn in time that its lock could not be renewed."""
        return self._do(self._operations.extend(lock, None, end, None, None, within=limit.total_seconds()))

    def _set_status(self, slot_id: str, status: Status) -> Slot:
        return self._do(self._operations.update_slot(slot_id, None, None, None, None, None, status))

    def delete_slot(self, slot_id: str) -> bool:
        """Removes a slot and the lock on it. True if it was there.

        Raises SlotHasBookings if it has active ones, StoreCorrupt, StoreUnavailable.
        """
        return self._do(self._operations.delete_slot(slot_id))

    def list_slots(
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
        filters = (resource_id, start_date, end_date, available)
        return self._do(self._operations.list_slots(*filters, limit, page, lock_key))

    def prune_slots(self, before: datetime) -> int:
        """Removes the slots that ended at or before a date and are neither locked nor booked; returns how many.

        Raises InvalidArgument, StoreUnavailable.
        """
        return self._do(self._operations.prune_slots(before))

    # Bookings

    def book(
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
        return self._do(self._operations.book(slot, lock_key, fencing_token, metadata, booking_id))

    def book_many(
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
        return self._do(self._operations.book_many(slots, lock_key, metadata, booking_ids))

    def get_booking(self, booking_id: str) -> Booking:
        """A booking. Raises InvalidArgument, BookingNotFound, StoreCorrupt, StoreUnavailable."""
        return self._do(self._operations.get_booking(booking_id))

    def update_booking(self, booking_id: str, *, metadata: Mapping[str, Any]) -> Booking:
        """Puts other metadata in the place of a booking's. Raises what :meth:`get_booking` raises."""
        return self._do(self._operations.update_booking(booking_id, metadata))

    def cancel_booking(self, booking_id: str) -> Booking:
        """Cancels a booking: its place is free again. One that is cancelled stays so.

        Raises what :meth:`get_booking` raises.
        """
        return self._do(self._operations.cancel_booking(booking_id))

    def enable_booking(self, booking_id: str, *, lock_key: str | None = None) -> Booking:
        """Makes a cancelled booking active again, as if it were booked now. One that is active stays so.

        Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        return self._do(self._operations.enable_booking(booking_id, lock_key))

    def reschedule_booking(self, booking_id: str, target_slot_id: str, *, lock_key: str | None = None) -> Booking:
        """Moves a booking to another slot, as if it were booked there now; both slots count it in one step.

        A cancelled booking moves without a place. Raises what :meth:`get_booking` and :meth:`book` raise.
        """
        return self._do(self._operations.reschedule_booking(booking_id, target_slot_id, lock_key))

    def delete_booking(self, booking_id: str) -> bool:
        """Removes a booking. True if it was there. Raises InvalidArgument, StoreCorrupt, StoreUnavailable."""
        return self._do(self._operations.delete_booking(booking_id))

    def list_bookings(
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
        return self._do(self._operations.list_bookings(slot_id, resource_id, status, limit, page))

    # API keys

    def create_api_key(self, kind: KeyKind, *, name: str = "") -> ApiKey:
        """Makes an API key, and registers its hash.

        Redis keeps no key, so this answer is the only place that ever shows it.

        Args:
            kind: ``"public"`` may be seen by anybody, ``"secret"`` is for servers.
            name: What people call it, at most 100 characters; several keys may share one.

        Raises InvalidArgument, StoreUnavailable.
        """
        return self._do(self._operations.create_api_key(kind, name))

    def list_api_keys(self) -> list[ApiKeyInfo]:
        """All API keys, the oldest first. Raises StoreUnavailable."""
        return self._do(self._operations.list_api_keys())

    def find_api_key(self, key: str) -> ApiKeyInfo | None:
        """Which API key this is; None if there is none, or the text can't be one.

        Raises StoreUnavailable.
        """
        return self._do(self._operations.find_api_key(key))

    def revoke_api_key(self, key_id: str) -> bool:
        """Removes an API key, at once. True if it was there.

        Raises InvalidArgument if this is no id, StoreUnavailable.
        """
        return self._do(self._operations.revoke_api_key(key_id))

    # Answers

    def keep_answer(self, name: str, answer: str, *, keep_for: timedelta) -> str:
        """Keeps an answer under a name, unless there is one already; returns the one that is kept.

        So of several who do the same work at the same time, or again, all give the same answer. By Redis' clock it
        is forgotten after its time.

        Args:
            name: Any 1 to 255 characters.
            answer: Any text of at most 128 KiB.
            keep_for: How long, at least 1 ms; counted for the first answer alone.

        Raises InvalidArgument, StoreUnavailable.
        """
        return self._do(self._operations.keep_answer(name, answer, keep_for))

    def get_answer(self, name: str) -> str | None:
        """The answer that is kept under a name, None if there is none. Raises InvalidArgument, StoreUnavailable."""
        return self._do(self._operations.get_answer(name))

    # Events

    def events(
        self, *, since: str | None = None, slot_id: str | None = None, resource_id: str | None = None
    ) -> Generator[Event]:
        """What happens to slots, as it happens and in order: an iterator that ends when the engine is closed.

        While somebody iterates, the engine listens on one more connection, and sweeps: it looks for locks that ended
        by their date, so that their ``expired`` comes in time. After a break of the connection nothing is missing.

        Args:
            since: Begin after the event with this id; by default with what happens from now on.
            slot_id: Only this slot's events.
            resource_id: Only those of this resource's slots.

        Raises:
            InvalidArgument: An argument is wrong.
            EventsMissed: What came after ``since``, or after a long break, is no longer kept.
        """
        reader = Reader(since, slot_id, resource_id)
        with contextlib.closing(self._follow(reader)) as batches:
            for batch in batches:
                yield from batch

    def _follow(self, reader: Reader) -> Generator[list[Event]]:
        """What a reader is to get, as it comes; first, with nothing in it perhaps, where it surely listens.

        Ends when the engine is closed. Raises EventsMissed, StoreUnavailable on an engine that is closed already.
        """
        if self._closing.is_set():
            raise StoreUnavailable("not_applied", _CLOSED)
        with self._listener.reading() as batches:
            while True:
                batch = batches.get()
                if self._closing.is_set():
                    return
                if batch is not None:
                    if events := reader.take(batch):
                        yield events
                    continue
                more = True
                while more:
                    try:
                        found, more = self._do(self._operations.catch_up(reader))
                    except StoreUnavailable:
                        if self._closing.wait(SWEEP_EVERY_SECONDS):
                            return
                        continue
                    yield found

    def sweep(self) -> int:
        """Tells of locks that ended by their date and were not told of yet; returns how many.

        Needed only where nobody listens to :meth:`events` and the next ``lock`` may be long in coming: each lock looks
        for some that ended. Raises StoreUnavailable.
        """
        return self._do(self._operations.sweep()).locks

    def _sweep(self) -> float:
        """Sweeps; returns the seconds until it is to be done again."""
        try:
            return pause_until(self._do(self._operations.sweep()).until_next)
        except StoreUnavailable:
            return SWEEP_EVERY_SECONDS

    # The executor

    def close(self) -> None:
        """Closes the connections, and stops the embedded server if this was its last user."""
        deadline = time.monotonic() + min(1.0, self._timeout)
        self._dismissed = True
        while self._listener.dismiss() and time.monotonic() < deadline:
            time.sleep(_GLANCE)  # those who wait in line leave it
        for thread in list(self._background):
            # A lock of unknown outcome is perhaps being undone.
            thread.join(max(0.0, deadline - time.monotonic()))
        self._closing.set()
        self._listener.close()
        self._drop_idle()
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, operation: Operation[T]) -> T:
        try:
            operation.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # StopIteration is not generic
        raise AssertionError("an operation of the sync engine was suspended")

    # What operations await. All of it blocks, and nothing suspends.

    async def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise StoreUnavailable("not_applied", _CLOSED)

    async def _wait(self, waiter: Waiter[threading.Event], seconds: float) -> None:
        waiter.bell.wait(seconds)
        waiter.bell.clear()
        if self._dismissed:
            raise StoreUnavailable("not_applied", _CLOSED)

    async def _run(self, step: Run) -> list[Any]:
        call = step.build(self._settings, step.requests)
        attempts = store.Attempts(self._timeout if step.within is None else min(self._timeout, step.within))
        while True:
            wire, sent = None, False
            sent_at = time.monotonic()
            try:
                wire = self._take_wire(attempts)
                sent = True
                # A thread that is alone can spin; among others it would keep the interpreter from them.
                alone = len(self._wires) == len(self._idle) + 1
                reply = wire.exchange(call.evalsha(), attempts.time_for_next(), spin=alone)
                if store.is_forgotten_script(reply):
                    reply = wire.exchange(call.eval(), attempts.time_for_next())
                if isinstance(reply, ResponseError):
                    raise reply
            except store.FAILURES as error:
                self._discard(wire)
                self._closing.wait(attempts.failed(error, sent=sent))
            except BaseException:
                # Interrupted: the reply to this call must not be read as the answer to another.
                self._discard(wire)
                raise
            else:
                self._idle.append(wire)
                outcomes = call.parse(reply, sent_at)
                return calls.after_lost_reply(step.requests, outcomes) if attempts.maybe_applied else outcomes

    def _take_wire(self, attempts: store.Attempts) -> _Wire:
        if self._closing.is_set():
            raise attempts.gave_up(_CLOSED, sent=False)
        if self._pid != os.getpid():
            # A forked child must not talk on its parent's connections.
            self._idle, self._wires, self._pid = deque(), set(), os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect(attempts)

    def _connect(self, attempts: store.Attempts) -> _Wire:
        options = store.connection_options(self._pool.connection_kwargs, attempts.time_for_next())
        connection: AbstractConnection = self._pool.connection_class(**options)
        try:
            connection.connect()
            wire = _Wire(connection)
            if not self._examined:
                questions = store.questions(self._settings.keys.events)
                answers = [wire.exchange(question, attempts.time_for_next()) for question in questions]
                self._examined = store.examine(*answers)
        except BaseException:
            connection.disconnect()
            raise
        self._wires.add(wire)
        return wire

    def _discard(self, wire: _Wire | None) -> None:
        """Drops a broken connection, and the idle ones with it: what broke one has mostly broken all."""
        if wire is not None:
            self._close(wire)
        self._drop_idle()

    def _drop_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._close(self._idle.pop())

    def _close(self, wire: _Wire) -> None:
        self._wires.discard(wire)
        wire.close()

    def _in_background(self, operation: Callable[[], Operation[None]]) -> None:
        def work() -> None:
            with contextlib.suppress(StoreUnavailable):  # the engine was closed
                self._do(operation())
            self._background.discard(thread)

        thread = threading.Thread(target=work, name="overbooked-lock undo", daemon=True)
        self._background.add(thread)
        thread.start()

    async def _load(self, slot_id: str) -> bool:
        assert self._load_slot is not None  # noqa: S101 - operations load only where this is given
        with self._mutex:
            future = self._loading.get(slot_id)
            mine = future is None
            if future is None:
                future = self._loading[slot_id] = Future()
        if not mine:
            return future.result()
        try:
            slot = self._load_slot(slot_id)
            if slot is not None:
                if slot.id != slot_id:
                    raise InvalidArgument("load_slot", f"must return a slot with the id asked for, {slot_id!r}")
                with contextlib.suppress(SlotExists):  # somebody else was first
                    self.create_slot(slot)
            future.set_result(slot is not None)
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._mutex:
                del self._loading[slot_id]
        return slot is not None


class _Wire:
    """A connection that redis-py made. Its own read has a time limit for each packet, and none for a reply."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._socket = cast("socket.socket", connection._sock)  # noqa: SLF001 - there is no public way to it
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._limited_to = -1.0
        self._spin = store.Spin()

    def exchange(self, command: bytes, timeout: float, *, spin: bool = False) -> Any:
        """Sends a command and returns its reply within ``timeout`` seconds; an error reply is returned too.

        With ``spin`` it may look for the reply before it sleeps. Raises OSError, or a RedisError if what comes is none.
        """
        sent_at = time.monotonic()
        self._limit(timeout)
        self._socket.sendall(command)
        if spin and self._spin.is_due():
            self._look_for_reply(sent_at)
        while True:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the server closed the connection")
            self._reader.feed(data)
            reply = self._reader.gets()
            if reply is not False:
                break
            # The time limit is for the whole reply, and not for each of its packets.
            self._limit(max(sent_at + timeout - time.monotonic(), 0.001))
        if spin:
            self._spin.took(time.monotonic() - sent_at)
        return reply

    def _look_for_reply(self, sent_at: float) -> None:
        while not self._readable.poll(0) and time.monotonic() - sent_at < store.Spin.SECONDS:
            pass

    def close(self) -> None:
        self._connection.disconnect()

    def _limit(self, seconds: float) -> None:
        if seconds != self._limited_to:  # each setting is a system call
            self._socket.settimeout(seconds)
            self._limited_to = seconds
