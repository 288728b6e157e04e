"""The async engine: the verbs, and what drives their steps. The calls themselves are ``coalescing.py``'s."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import redis.asyncio

from overbooked_lock import arguments, store
from overbooked_lock.calls import Settings
from overbooked_lock.coalescing import Coalescer
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import InvalidArgument, SlotExists, StoreUnavailable
from overbooked_lock.events import SWEEP_EVERY_SECONDS, AsyncListener, Event, Reader, Waiter, pause_until
from overbooked_lock.holding import AsyncHold
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
from overbooked_lock.operations import Means, Operation, Operations

T = TypeVar("T")

_GLANCE = 0.002  # seconds


class AsyncLockEngine:
    """Locks slots on Redis or Valkey from one event loop. The verbs are those of :class:`LockEngine`.

    Calls made at the same time are merged into few calls for many slots, which is most of this engine's speed.

    Args:
        client: A ``redis.asyncio.Redis`` that says how to connect, whatever its ``decode_responses``; the engine
            keeps connections of its own.
        namespace, timeout, max_lock, unregistered: As for :class:`LockEngine`.
        load_slot: As for :class:`LockEngine`, and async.

    Raises:
        InvalidArgument: An argument is wrong.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        namespace: str = "",
        timeout: timedelta = timedelta(seconds=5),
        max_lock: timedelta = timedelta(hours=24),
        unregistered: Literal["refuse", "allow"] = "refuse",
        load_slot: Callable[[str], Awaitable[NewSlot | None]] | None = None,
    ) -> None:
        pool = store.client_of(client, redis.asyncio.Redis).connection_pool
        settings = Settings(Keys(namespace), arguments.max_lock(max_lock), arguments.scope(unregistered))
        self._timeout = arguments.positive_milliseconds(timeout, "timeout") / 1000
        self._coalescer = Coalescer(pool, settings, self._timeout)
        self._listener = AsyncListener(pool, settings.keys.events, self._timeout, self._sweep)
        run, load = self._coalescer.enqueue, None if load_slot is None else self._load
        means = Means(run, asyncio.sleep, self._listener.waiter, self._wait, load, self._in_background)
        self._operations = Operations(settings, self._timeout, means)
        self._load_slot = load_slot
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._dismissed = False
        self._server: EmbeddedServer | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """An engine for ``redis://``, ``rediss://`` or ``unix://``; the options are those of the class."""
        try:
            client = redis.asyncio.Redis.from_url(url)
        except ValueError as error:
            raise InvalidArgument("url", "must start with redis://, rediss:// or unix://") from error
        return cls(client, **options)

    @classmethod
    def embedded(
        cls, path: str | os.PathLike[str], *, fsync: Literal["always", "everysec"] = "always", **options: Any
    ) -> Self:
        """An engine on a private server that keeps its data in the folder ``path``.

        Where the server is to be started, this blocks for some tens of milliseconds: call it before the loop has
        other work.
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
        """Locks a slot until a date, or for a duration from Redis' now."""
        return await self._operations.lock(slot_id, lock_key, lock_until, lock_for, wait, quota, fair)

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
        """Locks up to 512 slots with one key: all of them or none, in one step."""
        return await self._operations.lock_many(slot_ids, lock_key, lock_until, lock_for, wait, quota)

    async def unlock(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Unlocked:
        """Ends a lock, named by its value or by slot_id and lock_key."""
        return await self._operations.unlock(lock, lock_key, fencing_token)

    async def unlock_many(self, locks: Iterable[Lock | str], *, lock_key: str | None = None) -> list[Unlocked]:
        """Ends up to 512 locks in one step, each that is still the caller's."""
        return await self._operations.unlock_many(locks, lock_key)

    async def force_unlock(self, slot_id: str) -> Unlocked:
        """Ends whatever lock is on a slot: for operators."""
        return await self._operations.force_unlock(slot_id)

    async def extend(
        self,
        lock: Lock | str,
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        fencing_token: int | None = None,
    ) -> Lock:
        """Moves the end of a live lock to a later date, or to a duration from Redis' now; never to an earlier one."""
        return await self._operations.extend(lock, lock_key, lock_until, lock_for, fencing_token)

    async def extend_many(
        self,
        locks: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
    ) -> list[Lock]:
        """Extends up to 512 locks: all of them or none, in one step. Raises what :meth:`extend` raises."""
        return await self._operations.extend_many(locks, lock_key, lock_until, lock_for)

    async def check(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Lock | None:
        """Is it still mine? The lock as it stands now, or None."""
        return await self._operations.check(lock, lock_key, fencing_token)

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
    ) -> AsyncHold:
        """Holds a slot for the body of a ``with``: locks it, renews the lock, unlocks it whatever happens."""
        return AsyncHold(self, slot_id, lock_for, lock_key, wait, renew, max_lifetime, fair)

    async def list_locks(self) -> list[LiveLock]:
        """All live locks, by their end: for operators. Raises StoreUnavailable."""
        return await self._operations.list_locks()

    # Slots

    async def create_slot(self, slot: NewSlot) -> Slot:
        """Registers a slot. One that is there already and says the same is a success."""
        [created] = await self.create_slots([slot])
        return created

    async def create_slots(self, slots: Iterable[NewSlot]) -> list[Slot]:
        """Registers up to 512 slots in one step."""
        return await self._operations.create_slots(slots)

    async def get_slot(self, slot_id: str, *, lock_key: str | None = None) -> Slot:
        """The slot as somebody else sees it, or as the holder does whose ``lock_key`` is given."""
        return await self._operations.get_slot(slot_id, lock_key)

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
        """Changes what is given and leaves the rest."""
        fields = (start_date, end_date, capacity, metadata, lockable)
        return await self._operations.update_slot(slot_id, *fields, None)

    async def enable_slot(self, slot_id: str) -> Slot:
        """Opens a slot for locks and bookings. Raises SlotNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._set_status(slot_id, "active")

    async def disable_slot(self, slot_id: str) -> Slot:
        """Closes a slot for locks and bookings; a lock on it stays until its date."""
        return await self._set_status(slot_id, "disabled")

    async def _set_status(self, slot_id: str, status: Status) -> Slot:
        return await self._operations.update_slot(slot_id, None, None, None, None, None, status)

    async def delete_slot(self, slot_id: str) -> bool:
        """Removes a slot and the lock on it. True if it was there."""
        return await self._operations.delete_slot(slot_id)

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
        """A page of slots in the order of their start, as :meth:`get_slot` shows them."""
        filters = (resource_id, start_date, end_date, available)
        return await self._operations.list_slots(*filters, limit, page, lock_key)

    async def prune_slots(self, before: datetime) -> int:
        """Removes the slots that ended at or before a date and are neither locked nor booked; returns how many."""
        return await self._operations.prune_slots(before)

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
        """Books a place in a slot, named by its id or by the Lock that holds it."""
        return await self._operations.book(slot, lock_key, fencing_token, metadata, booking_id)

    async def book_many(
        self,
        slots: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        booking_ids: Iterable[str] | None = None,
    ) -> list[Booking]:
        """Books a place in each of up to 512 slots: all of them or none, in one step."""
        return await self._operations.book_many(slots, lock_key, metadata, booking_ids)

    async def get_booking(self, booking_id: str) -> Booking:
        """A booking. Raises InvalidArgument, BookingNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._operations.get_booking(booking_id)

    async def update_booking(self, booking_id: str, *, metadata: Mapping[str, Any]) -> Booking:
        """Puts other metadata in the place of a booking's. Raises what :meth:`get_booking` raises."""
        return await self._operations.update_booking(booking_id, metadata)

    async def cancel_booking(self, booking_id: str) -> Booking:
        """Cancels a booking: its place is free again. One that is cancelled stays so."""
        return await self._operations.cancel_booking(booking_id)

    async def enable_booking(self, booking_id: str, *, lock_key: str | None = None) -> Booking:
        """Makes a cancelled booking active again, as if it were booked now. One that is active stays so."""
        return await self._operations.enable_booking(booking_id, lock_key)

    async def reschedule_booking(self, booking_id: str, target_slot_id: str, *, lock_key: str | None = None) -> Booking:
        """Moves a booking to another slot, as if it were booked there now; both slots count it in one step."""
        return await self._operations.reschedule_booking(booking_id, target_slot_id, lock_key)

    async def delete_booking(self, booking_id: str) -> bool:
        """Removes a booking. True if it was there. Raises InvalidArgument, StoreCorrupt, StoreUnavailable."""
        return await self._operations.delete_booking(booking_id)

    async def list_bookings(
        self,
        *,
        slot_id: str | None = None,
        resource_id: str | None = None,
        status: BookingStatus | None = None,
        limit: int = 50,
        page: int = 1,
    ) -> BookingPage:
        """A page of bookings in the order they were made: all, a slot's, a resource's, with one status."""
        return await self._operations.list_bookings(slot_id, resource_id, status, limit, page)

    # API keys

    async def create_api_key(self, kind: KeyKind, *, name: str = "") -> ApiKey:
        """Makes an API key, and registers its hash."""
        return await self._operations.create_api_key(kind, name)

    async def list_api_keys(self) -> list[ApiKeyInfo]:
        """All API keys, the oldest first. Raises StoreUnavailable."""
        return await self._operations.list_api_keys()

    async def find_api_key(self, key: str) -> ApiKeyInfo | None:
        """Which API key this is; None if there is none, or the text can't be one."""
        return await self._operations.find_api_key(key)

    async def revoke_api_key(self, key_id: str) -> bool:
        """Removes an API key, at once. True if it was there."""
        return await self._operations.revoke_api_key(key_id)

    # Answers

    async def keep_answer(self, name: str, answer: str, *, keep_for: timedelta) -> str:
        """Keeps an answer under a name, unless there is one already; returns the one that is kept."""
        return await self._operations.keep_answer(name, answer, keep_for)

    async def get_answer(self, name: str) -> str | None:
        """The answer that is kept under a name, None if there is none."""
        return await self._operations.get_answer(name)

    # Events

    async def events(
        self, *, since: str | None = None, slot_id: str | None = None, resource_id: str | None = None
    ) -> AsyncGenerator[Event]:
        """What happens to slots, as it happens and in order: an iterator that ends when the engine is closed."""
        reader = Reader(since, slot_id, resource_id)
        async with contextlib.aclosing(self._follow(reader)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def _follow(self, reader: Reader) -> AsyncGenerator[list[Event]]:
        """What a reader is to get, as it comes; first, with nothing in it perhaps, where it surely listens.

        Ends when the engine is closed. Raises EventsMissed, StoreUnavailable on an engine that is closed already.
        """
        if self._closed:
            raise StoreUnavailable("not_applied", "this engine is closed")
        with self._listener.reading() as batches:
            while True:
                batch = await batches.get()
                if self._closed:
                    return
                # All that is there at once: with many readers that is much less work.
                events: list[Event] = []
                while batch is not None:
                    events += reader.take(batch)
                    if batches.empty():
                        break
                    batch = batches.get_nowait()
                if events:
                    yield events
                if batch is not None:
                    continue
                more = True
                while more:
                    try:
                        found, more = await self._operations.catch_up(reader)
                    except StoreUnavailable:
                        if self._closed:
                            return
                        await asyncio.sleep(SWEEP_EVERY_SECONDS)
                        continue
                    yield found

    async def sweep(self) -> int:
        """Tells of locks that ended by their date and were not told of yet; returns how many."""
        return (await self._operations.sweep()).locks

    async def _sweep(self) -> float:
        """Sweeps; returns the seconds until it is to be done again."""
        try:
            return pause_until((await self._operations.sweep()).until_next)
        except StoreUnavailable:
            return SWEEP_EVERY_SECONDS

    # What drives the steps

    async def close(self) -> None:
        """Closes the connections, and stops the embedded server if this was its last user."""
        self._dismissed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(1.0, self._timeout)):
                while self._listener.dismiss():  # noqa: ASYNC110 - those who wait in line leave it
                    await asyncio.sleep(_GLANCE)
        if self._background:
            # A cancelled lock is perhaps being undone.
            await asyncio.wait(self._background, timeout=min(1.0, self._timeout))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._closed = True
        await self._listener.close()
        await self._coalescer.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What operations await

    async def _wait(self, waiter: Waiter[asyncio.Event], seconds: float) -> None:
        # Not wait_for, which makes a task: whoever waits is to wake at once.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiter.bell.wait()
        waiter.bell.clear()
        if self._dismissed:
            raise StoreUnavailable("not_applied", "this engine is closed")

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _in_background(self, operation: Callable[[], Operation[None]]) -> None:
        self._spawn(self._do_afterwards(operation))

    async def _do_afterwards(self, operation: Callable[[], Operation[None]]) -> None:
        # It undoes what a cancelled call did, which may be on its way still, and must not be overtaken.
        await self._coalescer.landed()
        await operation()

    async def _load(self, slot_id: str) -> bool:
        task = self._loading.get(slot_id)
        if task is None:
            task = self._loading[slot_id] = self._spawn(self._load_and_register(slot_id))
            task.add_done_callback(lambda _: self._loading.pop(slot_id))
        # Others may wait for the same slot: one that is cancelled must not take it from them.
        return await asyncio.shield(task)

    async def _load_and_register(self, slot_id: str) -> bool:
        assert self._load_slot is not None  # noqa: S101 - operations load only where this is given
        slot = await self._load_slot(slot_id)
        if slot is None:
            return False
        if slot.id != slot_id:
            raise InvalidArgument("load_slot", f"must return a slot with the id asked for, {slot_id!r}")
        with contextlib.suppress(SlotExists):  # somebody else was first
            await self.create_slot(slot)
        return True
