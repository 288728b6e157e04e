"""The async engine: the verbs, and the executor that merges the calls of one event loop.

Callers put their requests in a queue. As long as something is in it, up to ``_LANES`` tasks take what is there, merge
requests for the same script into one call, send the calls together and hand out the answers. Nobody waits for
company: a lane starts at once, and requests only gather while the lanes are busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import redis.asyncio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from overbooked_lock import arguments, store
from overbooked_lock.calls import Call, Settings, after_lost_reply
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import InvalidArgument, SlotExists, StoreUnavailable
from overbooked_lock.holding import AsyncHold
from overbooked_lock.keys import Keys
from overbooked_lock.models import LiveLock, Lock, NewSlot, Slot, SlotPage, Status, Unlocked
from overbooked_lock.operations import InBackground, Load, Operation, Operations, Pause, Run, Step

T = TypeVar("T")

_LANES = 2
"""Calls in flight: while the server works on one batch, we pack and parse another."""

_MAX_BATCH = 128
"""Slots in one merged call: beyond it the gain per slot is gone, and the server is held longer."""


_CLOSED = "this engine is closed"
_TOO_LATE = "its turn did not come in time"


class _Item:
    """A step in the queue, and the future its caller awaits."""

    __slots__ = ("attempts", "future", "step")

    def __init__(self, step: Run, attempts: store.Attempts, future: asyncio.Future[Any]) -> None:
        self.step = step
        self.attempts = attempts
        self.future = future


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
        self._pool = store.client_of(client, redis.asyncio.Redis).connection_pool
        self._settings = Settings(Keys(namespace), arguments.max_lock(max_lock), arguments.scope(unregistered))
        self._timeout = arguments.positive_milliseconds(timeout, "timeout") / 1000
        self._operations = Operations(self._settings, self._timeout, can_load=load_slot is not None)
        self._load_slot = load_slot
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_Item] = deque()
        self._lanes = 0
        self._lane_is_starting = False
        self._idle: list[AbstractConnection] = []
        self._background: set[asyncio.Task[Any]] = set()
        self._examined = False
        self._closed = False
        self._server: EmbeddedServer | None = None

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
    ) -> Lock:
        """Locks a slot until a date, or for a duration from Redis' now."""
        return await self._do(self._operations.lock(slot_id, lock_key, lock_until, lock_for, wait))

    async def lock_many(
        self,
        slot_ids: Iterable[str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        wait: timedelta | None = None,
    ) -> list[Lock]:
        """Locks up to 512 slots with one key: all of them or none, in one step."""
        return await self._do(self._operations.lock_many(slot_ids, lock_key, lock_until, lock_for, wait))

    async def unlock(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Unlocked:
        """Ends a lock, named by its value or by slot_id and lock_key."""
        return await self._do(self._operations.unlock(lock, lock_key, fencing_token))

    async def unlock_many(self, locks: Iterable[Lock | str], *, lock_key: str | None = None) -> list[Unlocked]:
        """Ends up to 512 locks in one step, each that is still the caller's."""
        return await self._do(self._operations.unlock_many(locks, lock_key))

    async def force_unlock(self, slot_id: str) -> Unlocked:
        """Ends whatever lock is on a slot: for operators."""
        return await self._do(self._operations.force_unlock(slot_id))

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
        return await self._do(self._operations.extend(lock, lock_key, lock_until, lock_for, fencing_token))

    async def extend_many(
        self,
        locks: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
    ) -> list[Lock]:
        """Extends up to 512 locks: all of them or none, in one step. Raises what :meth:`extend` raises."""
        return await self._do(self._operations.extend_many(locks, lock_key, lock_until, lock_for))

    async def check(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Lock | None:
        """Is it still mine? The lock as it stands now, or None."""
        return await self._do(self._operations.check(lock, lock_key, fencing_token))

    def hold(
        self,
        slot_id: str,
        *,
        lock_for: timedelta,
        lock_key: str | None = None,
        wait: timedelta | None = None,
        renew: bool = True,
        max_lifetime: timedelta | None = None,
    ) -> AsyncHold:
        """Holds a slot for the body of a ``with``: locks it, renews the lock, unlocks it whatever happens."""
        return AsyncHold(self, slot_id, lock_for, lock_key, wait, renew, max_lifetime)

    async def list_locks(self) -> list[LiveLock]:
        """All live locks, by their end: for operators. Raises StoreUnavailable."""
        return await self._do(self._operations.list_locks())

    # Slots

    async def create_slot(self, slot: NewSlot) -> Slot:
        """Registers a slot. One that is there already and says the same is a success."""
        [created] = await self.create_slots([slot])
        return created

    async def create_slots(self, slots: Iterable[NewSlot]) -> list[Slot]:
        """Registers up to 512 slots in one step."""
        return await self._do(self._operations.create_slots(slots))

    async def get_slot(self, slot_id: str, *, lock_key: str | None = None) -> Slot:
        """The slot as somebody else sees it, or as the holder does whose ``lock_key`` is given."""
        return await self._do(self._operations.get_slot(slot_id, lock_key))

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
        return await self._do(self._operations.update_slot(slot_id, *fields, None))

    async def enable_slot(self, slot_id: str) -> Slot:
        """Opens a slot for locks and bookings. Raises SlotNotFound, StoreCorrupt, StoreUnavailable."""
        return await self._set_status(slot_id, "active")

    async def disable_slot(self, slot_id: str) -> Slot:
        """Closes a slot for locks and bookings; a lock on it stays until its date."""
        return await self._set_status(slot_id, "disabled")

    async def _set_status(self, slot_id: str, status: Status) -> Slot:
        return await self._do(self._operations.update_slot(slot_id, None, None, None, None, None, status))

    async def delete_slot(self, slot_id: str) -> bool:
        """Removes a slot and the lock on it. True if it was there."""
        return await self._do(self._operations.delete_slot(slot_id))

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
        return await self._do(self._operations.list_slots(*filters, limit, page, lock_key))

    async def prune_slots(self, before: datetime) -> int:
        """Removes the slots that ended at or before a date and are neither locked nor booked; returns how many."""
        return await self._do(self._operations.prune_slots(before))

    # The executor

    async def close(self) -> None:
        """Closes the connections, and stops the embedded server if this was its last user."""
        if self._background:
            # A cancelled lock is perhaps being undone.
            await asyncio.wait(self._background, timeout=min(1.0, self._timeout))
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for item in self._queue:
            _fail(item, item.attempts.gave_up(_CLOSED, sent=False))
        while self._idle:
            await self._idle.pop().disconnect()
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, operation: Operation[T]) -> T:
        try:
            step = next(operation)
            while True:
                try:
                    result = await self._perform(step)
                except BaseException as error:  # noqa: BLE001 - it goes into the operation, which raises it
                    step = operation.throw(error)
                else:
                    step = operation.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # StopIteration is not generic

    async def _perform(self, step: Step) -> Any:
        if isinstance(step, Run):
            return await self._enqueue(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Load):
            return await self._load(step.slot_id)
        return self._in_background(step)

    def _enqueue(self, step: Run) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise RuntimeError("an AsyncLockEngine belongs to the event loop of its first call")
            self._loop = loop
        if self._closed:
            raise StoreUnavailable("not_applied", _CLOSED)
        future = loop.create_future()
        self._queue.append(_Item(step, store.Attempts(self._timeout), future))
        self._start_lane()
        return future

    def _start_lane(self) -> None:
        # A lane that has not looked into the queue yet will take what comes in until then.
        if self._queue and not self._lane_is_starting and self._lanes < _LANES:
            self._lane_is_starting = True
            self._lanes += 1
            self._spawn(self._lane())

    async def _lane(self) -> None:
        self._lane_is_starting = False
        connection = None
        try:
            while batch := self._take():
                self._start_lane()
                connection, pause = await self._attempt(batch, connection)
                if pause:
                    await asyncio.sleep(pause)
        finally:
            self._lanes -= 1
            if connection is not None:
                self._idle.append(connection)

    def _take(self) -> list[_Item]:
        """The next items, of about as many slots as one call should have."""
        batch, slots = list[_Item](), 0
        while self._queue and slots < _MAX_BATCH:
            item = self._queue.popleft()
            if item.future.done():
                continue
            if item.attempts.time_left() <= 0:
                item.future.set_exception(item.attempts.gave_up(_TOO_LATE, sent=False))
                continue
            batch.append(item)
            slots += len(item.step.requests)
        return batch

    async def _attempt(
        self, batch: list[_Item], connection: AbstractConnection | None
    ) -> tuple[AbstractConnection | None, float]:
        """Sends a batch and hands out the answers; what failed for now goes back into the queue.

        Returns the connection if it can be used again, and the seconds to pause.
        """
        groups = _merge(batch)
        sent = False
        try:
            async with asyncio.timeout(min(item.attempts.time_for_next() for item in batch)):
                if connection is None:
                    connection = self._idle.pop() if self._idle else await self._connect()
                calls = [group[0].step.build(self._settings, _requests(group)) for group in groups]
                sent_at = time.monotonic()
                sent = True
                replies = await _exchange(connection, calls)
        except store.FAILURES as error:
            pause = self._failed(batch, error, sent=sent)
            if connection is not None:
                await connection.disconnect(nowait=True)
            await self._drop_idle()
            return None, pause
        except BaseException as error:
            # A server that we can't use, the end of this engine, or a fault of ours: no caller may be left waiting.
            for item in batch:
                _fail(item, error if isinstance(error, StoreUnavailable) else item.attempts.gave_up(_CLOSED, sent=sent))
            if connection is not None:
                await connection.disconnect(nowait=True)
            if isinstance(error, StoreUnavailable):
                return None, 0.0
            raise
        refused, pause = False, 0.0
        for group, call, reply in zip(groups, calls, replies, strict=True):
            if isinstance(reply, ResponseError):
                refused, pause = True, max(pause, self._failed(group, reply, sent=True))
            else:
                _hand_out(group, call, reply, sent_at)
        if refused:
            # A replica, perhaps, where there was a master: the next connection looks for it.
            await connection.disconnect(nowait=True)
            return None, pause
        return connection, 0.0

    def _failed(self, items: Sequence[_Item], error: BaseException, *, sent: bool) -> float:
        pause, again = 0.0, list[_Item]()
        for item in items:
            try:
                pause = max(pause, item.attempts.failed(error, sent=sent))
                again.append(item)
            except StoreUnavailable as unavailable:
                _fail(item, unavailable)
        self._queue.extendleft(reversed(again))
        return pause

    async def _connect(self) -> AbstractConnection:
        options = store.connection_options(self._pool.connection_kwargs, self._timeout)
        # The whole attempt has a time limit; a second one inside would only cost time.
        options["socket_timeout"] = None
        connection: AbstractConnection = self._pool.connection_class(**options)
        try:
            await connection.connect()
            if not self._examined:
                [info] = await _send(connection, [store.INFO])
                self._examined = store.examine(info)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def _drop_idle(self) -> None:
        """What broke one connection has mostly broken all."""
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _in_background(self, step: InBackground) -> None:
        self._spawn(self._do(step.operation))

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


def _merge(batch: Sequence[_Item]) -> list[list[_Item]]:
    """Items that can share a call, together."""
    groups: dict[object, list[_Item]] = {}
    for item in batch:
        groups.setdefault(item if item.step.alone else item.step.build, []).append(item)
    return list(groups.values())


def _requests(group: Sequence[_Item]) -> list[Any]:
    return [request for item in group for request in item.step.requests]


def _hand_out(group: Sequence[_Item], call: Call, reply: Any, sent_at: float) -> None:
    try:
        outcomes = call.parse(reply, sent_at)
    except Exception as error:  # noqa: BLE001 - a reply that we can't read must leave no caller waiting
        for item in group:
            _fail(item, error)
        return
    at = 0
    for item in group:
        own = outcomes[at : at + len(item.step.requests)]
        at += len(own)
        if not item.future.done():
            item.future.set_result(after_lost_reply(item.step.requests, own) if item.attempts.maybe_applied else own)


def _fail(item: _Item, error: BaseException) -> None:
    if not item.future.done():
        item.future.set_exception(error)


async def _exchange(connection: AbstractConnection, calls: Sequence[Call]) -> list[Any]:
    """Sends all calls at once; returns their replies, error replies among them."""
    replies = await _send(connection, [call.evalsha() for call in calls])
    forgotten = [at for at, reply in enumerate(replies) if store.is_forgotten_script(reply)]
    if forgotten:
        again = await _send(connection, [calls[at].eval() for at in forgotten])
        for at, reply in zip(forgotten, again, strict=True):
            replies[at] = reply
    return replies


async def _send(connection: AbstractConnection, commands: Sequence[bytes]) -> list[Any]:
    await connection.send_packed_command(commands, check_health=False)
    replies = []
    for _ in commands:
        try:
            replies.append(await connection.read_response(disable_decoding=True, disconnect_on_error=False))
        except ResponseError as error:
            replies.append(error)
    return replies
