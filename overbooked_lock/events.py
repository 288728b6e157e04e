"""What happened to slots, as whoever listens gets it.

Rules. A script tells of its change in the same step, so there is no event without a change and no change without an
event. Pub/sub brings events at once and forgets them; the stream keeps the newest. A reader takes what pub/sub brings,
and wherever that may have a gap (at the start, after a break, after falling behind) it goes on from the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import redis
import redis.asyncio
from pydantic import BaseModel, ConfigDict

from overbooked_lock import arguments, store
from overbooked_lock.errors import InvalidArgument
from overbooked_lock.models import UtcDate
from overbooked_lock.subscription import Subscription

EventType = Literal["locked", "extended", "unlocked", "expired", "booked", "cancelled", "slot_changed", "slot_deleted"]

SWEEP_EVERY_SECONDS = 0.1
"""How late an ``expired`` may come when locks end one by one; sooner where the next end is known."""

_QUIET_SECONDS = 10.0
_GLANCE_SECONDS = 0.1  # how soon a thread notices that it is no longer needed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_MOST_BEHIND = 1000
_ALL = 1_000_000  # more events than an entry ever has


class Event(BaseModel):
    """Something that happened to a slot.

    Attributes:
        id: Orders the events of a store; give it as ``since`` to go on after it.
        type: ``locked`` (a new lock, or the turn of the first in line), ``extended`` (or a turn was taken),
            ``unlocked``, ``expired`` (a lock ended by its date), ``booked``, ``cancelled`` (a place was given back),
            ``slot_changed`` (or created), ``slot_deleted``.
        slot_id: The slot.
        resource_id: What it belongs to; None if it is not registered.
        locked_until: Until when it is locked, or was to be.
        fencing_token: The lock's.
        at: When, by Redis' clock.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    type: EventType
    slot_id: str
    resource_id: str | None
    locked_until: UtcDate | None
    fencing_token: int | None
    at: UtcDate


def pause_until(next_end: float | None) -> float:
    """Seconds until the next sweep, from those until the next lock ends: it is told of a little after its date."""
    return SWEEP_EVERY_SECONDS if next_end is None else min(max(next_end, 0.002), SWEEP_EVERY_SECONDS)


class Position(NamedTuple):
    """A place in the stream: an entry, and how many of its events lie before it."""

    milliseconds: int
    sequence: int
    passed: int

    @property
    def entry_id(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"

    @property
    def event_id(self) -> str:
        """Like the id of the last event before it, whether or not there is one: to go on after."""
        return f"{self.entry_id}.{self.passed - 1}"

    @classmethod
    def after(cls, event_id: str) -> Position:
        """Raises InvalidArgument."""
        entry, _, number = event_id.partition(".")
        milliseconds, _, sequence = entry.partition("-")
        if all(part.isdecimal() and len(part) < 20 for part in (milliseconds, sequence, number)):
            return cls(int(milliseconds), int(sequence), int(number) + 1)
        raise InvalidArgument("since", "must be the id of an event like 1735689600000-0.0; 0-0.0 is before all")

    @classmethod
    def behind(cls, entry_id: str) -> Position:
        milliseconds, _, sequence = entry_id.partition("-")
        return cls(int(milliseconds), int(sequence), _ALL)


def events_of(entry_id: str, text: str) -> list[Event]:
    """The events of an entry of the stream, or of a message. Raises ValueError if that is none of ours."""
    at_ms = int(entry_id.partition("-")[0])
    events = []
    kind: EventType
    for number, line in enumerate(text.split("\n")):
        # What a later version adds stands at the right.
        kind, slot_id, resource_id, until_ms, token = line.split("\t")[:5]  # type: ignore[assignment]  # what the scripts write
        until = _date(until_ms)
        events.append(
            Event.model_construct(
                id=f"{entry_id}.{number}",
                type=kind,
                slot_id=slot_id,
                resource_id=resource_id or None,
                locked_until=until,
                fencing_token=int(token) or None,
                at=until if kind == "expired" and until else arguments.from_milliseconds(at_ms),
            )
        )
    return events


def _date(ms: str) -> datetime | None:
    return arguments.from_milliseconds(int(ms)) if ms != "0" else None


@dataclass
class Batch:
    """An entry of the stream: its id, and its text. All readers of an engine share it, so it is parsed once."""

    entry_id: str
    text: str

    @cached_property
    def events(self) -> list[Event]:
        """Its events; none if somebody else wrote it."""
        try:
            return events_of(self.entry_id, self.text)
        except ValueError:
            return []


_is_entry_id = re.compile(r"\d+-\d+", re.ASCII).fullmatch

_FREES = ("unlocked", "expired", "booked", "slot_changed", "slot_deleted")
"""After these a slot may be free that was locked."""


class Bell(Protocol):
    """An asyncio.Event or a threading.Event."""

    def set(self) -> None: ...


B = TypeVar("B", bound=Bell)


class Waiter(Generic[B]):
    """Who waits for a slot to come free. ``bell`` rings when it may be: a hint, so try again, and then wait again.

    ``ticket`` is its place in the slot's line, empty if it waits unfairly.
    """

    def __init__(self, slot_id: str, ticket: str, bell: B, close: Callable[[Waiter[B]], None]) -> None:
        self.slot_id, self.ticket, self.bell, self._close = slot_id, ticket, bell, close

    def close(self) -> None:
        """Waits no longer."""
        self._close(self)


class _Audience:
    """Who listens, and how batches reach them.

    A reader that falls far behind gets None: it goes on from the stream. Wherever there may be a gap, all waiters wake.
    Whoever iterates here may be interrupted by a reader that the garbage collector closes: hence the copies.
    """

    def __init__(self) -> None:
        self._queues: set[Any] = set()
        self._waiters: dict[str, set[Waiter[Any]]] = {}
        self.subscribed = False

    def __bool__(self) -> bool:
        return bool(self._queues or self._waiters)

    def add(self, reader: Any) -> None:
        self._queues.add(reader)
        if self.subscribed:
            reader.put_nowait(None)

    def discard(self, reader: Any) -> None:
        self._queues.discard(reader)

    def add_waiter(self, waiter: Waiter[Any]) -> None:
        self._waiters.setdefault(waiter.slot_id, set()).add(waiter)

    def discard_waiter(self, waiter: Waiter[Any]) -> None:
        waiters = self._waiters.get(waiter.slot_id, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiters.pop(waiter.slot_id, None)

    def has_waiters(self) -> bool:
        return bool(self._waiters)

    def hear(self, message: bytes) -> None:
        """Takes what was published."""
        entry_id, _, text = message.decode(errors="replace").partition("\n")
        if _is_entry_id(entry_id):  # else it only asks whether it may be sent, or is somebody else's
            self._give(Batch(entry_id, text))
            if self._waiters:
                self._wake(text)

    def turn(self, subscribed: bool) -> None:
        """Notes whether the channel is heard from now on."""
        self.subscribed = subscribed
        if subscribed:
            self.go_on_from_stream()

    def go_on_from_stream(self) -> None:
        """Tells all that something may be missing from here on."""
        self._give(None)
        self.wake_all()

    def wake_all(self) -> None:
        for waiters in tuple(self._waiters.values()):
            for waiter in tuple(waiters):
                waiter.bell.set()

    def _wake(self, text: str) -> None:
        awake: dict[str, str | None] = {}
        for line in text.split("\n"):
            columns = line.split("\t")
            if len(columns) < 5:
                continue  # somebody else's
            if columns[0] in _FREES:
                awake[columns[1]] = None
            elif len(columns) > 5:
                awake[columns[1]] = columns[5]  # it was given to the first in line: nobody else need ask
        for slot_id, only in awake.items():
            for waiter in tuple(self._waiters.get(slot_id, ())):
                if only in (None, waiter.ticket):
                    waiter.bell.set()

    def _give(self, batch: Batch | None) -> None:
        for reader in tuple(self._queues):
            if reader.qsize() < _MOST_BEHIND:
                reader.put_nowait(batch)
            elif reader.qsize() == _MOST_BEHIND:
                reader.put_nowait(None)


class AsyncListener:
    """One subscription for all readers of an engine. It is there as long as somebody reads."""

    def __init__(
        self, pool: redis.asyncio.ConnectionPool, channel: str, timeout: float, sweep: Callable[[], Awaitable[float]]
    ) -> None:
        self._pool, self._channel, self._timeout, self._sweep = pool, channel, timeout, sweep
        self._audience = _Audience()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def reading(self) -> Iterator[asyncio.Queue[Batch | None]]:
        """A queue of what comes from now on. None, which is the first, stands for: go on from the stream."""
        mine: asyncio.Queue[Batch | None] = asyncio.Queue()
        self._audience.add(mine)
        self._start()
        try:
            yield mine
        finally:
            self._audience.discard(mine)
            self._stop_if_alone()

    def waiter(self, slot_id: str, ticket: str) -> Waiter[asyncio.Event]:
        """Somebody who waits for a slot from now on, until it is closed."""
        waiter = Waiter(slot_id, ticket, asyncio.Event(), self._forget)
        self._audience.add_waiter(waiter)
        self._start()
        return waiter

    def _forget(self, waiter: Waiter[asyncio.Event]) -> None:
        self._audience.discard_waiter(waiter)
        self._stop_if_alone()

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="overbooked-lock events")

    def _stop_if_alone(self) -> None:
        if not self._audience:
            self._stop()

    def dismiss(self) -> bool:
        """Wakes who waits; returns whether somebody does."""
        self._audience.wake_all()
        return self._audience.has_waiters()

    async def close(self) -> None:
        """Ends the subscription, and wakes who reads and who waits."""
        self._stop()
        self._audience.go_on_from_stream()
        if self._ending is not None:
            await asyncio.wait([self._ending])

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._ending, self._task, self._audience.subscribed = self._task, None, False

    async def _run(self) -> None:
        audience = self._audience
        subscription = Subscription(self._pool, self._channel, self._timeout, audience.hear, audience.turn)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(subscription.run())
            tasks.create_task(self.keep_sweeping())

    async def keep_sweeping(self) -> None:
        """Sweeps until it is cancelled."""
        while True:  # noqa: ASYNC110 - there is no event for a date
            await asyncio.sleep(await self._sweep())


class Listener:
    """The same with a thread, for the sync engine."""

    def __init__(self, pool: redis.ConnectionPool, channel: str, timeout: float, sweep: Callable[[], float]) -> None:
        self._pool, self._channel, self._timeout, self._sweep = pool, channel, timeout, sweep
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._audience = _Audience()
        # The garbage collector may close a reader in the thread that is just giving out a batch.
        self._mutex = threading.RLock()
        self._stopping: threading.Event | None = None

    def _own(self) -> None:
        """A forked child has neither its parent's threads nor those who listened there."""
        if self._pid != os.getpid():
            self._reset()

    @contextlib.contextmanager
    def reading(self) -> Iterator[queue.SimpleQueue[Batch | None]]:
        """A queue of what comes from now on. None, which is the first, stands for: go on from the stream."""
        self._own()
        mine: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        with self._mutex:
            self._audience.add(mine)
            self._start()
        try:
            yield mine
        finally:
            self._own()
            with self._mutex:
                self._audience.discard(mine)
                self._stop_if_alone()

    def waiter(self, slot_id: str, ticket: str) -> Waiter[threading.Event]:
        """Somebody who waits for a slot from now on, until it is closed."""
        self._own()
        waiter = Waiter(slot_id, ticket, threading.Event(), self._forget)
        with self._mutex:
            self._audience.add_waiter(waiter)
            self._start()
        return waiter

    def dismiss(self) -> bool:
        """Wakes who waits; returns whether somebody does."""
        with self._mutex:
            self._audience.wake_all()
            return self._audience.has_waiters()

    def close(self) -> None:
        """Ends the subscription, and wakes who reads and who waits."""
        self._own()
        with self._mutex:
            self._stop()
            self._audience.go_on_from_stream()

    def _forget(self, waiter: Waiter[threading.Event]) -> None:
        self._own()
        with self._mutex:
            self._audience.discard_waiter(waiter)
            self._stop_if_alone()

    def _start(self) -> None:
        if self._stopping is None:
            self._stopping = threading.Event()
            for work in (self._listen, self._keep_sweeping):
                name = f"overbooked-lock events: {work.__name__}"
                threading.Thread(target=work, args=(self._stopping,), name=name, daemon=True).start()

    def _stop_if_alone(self) -> None:
        if not self._audience:
            self._stop()

    def _stop(self) -> None:
        if self._stopping is not None:
            self._stopping.set()
            self._stopping, self._audience.subscribed = None, False

    def _keep_sweeping(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._sweep()):
            pass

    def _listen(self, stopping: threading.Event) -> None:
        pause = _FIRST_PAUSE
        while not stopping.is_set():
            connection = None
            try:
                options = store.connection_options(self._pool.connection_kwargs, self._timeout)
                connection = self._pool.connection_class(**options)
                connection.connect()
                connection.send_command("SUBSCRIBE", self._channel, check_health=False)
                quiet_since = time.monotonic()
                while not stopping.is_set():
                    if connection.can_read(timeout=_GLANCE_SECONDS):
                        self._hear(connection.read_response(), stopping)
                        quiet_since, pause = time.monotonic(), _FIRST_PAUSE
                    elif time.monotonic() > quiet_since + _QUIET_SECONDS:
                        connection.send_command("PING", check_health=False)
                        self._hear(connection.read_response(), stopping)
                        quiet_since = time.monotonic()
            except store.FAILURES as error:
                store.log.info("the subscription to %s broke: %s", self._channel, type(error).__name__)
            finally:
                if connection is not None:
                    connection.disconnect()
            with self._mutex:
                if not stopping.is_set():
                    self._audience.subscribed = False
            stopping.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _hear(self, message: Any, stopping: threading.Event) -> None:
        with self._mutex:
            if stopping.is_set():
                return
            if message[0] == b"subscribe":
                self._audience.turn(True)
            elif message[0] == b"message":
                self._audience.hear(message[2])


class Reader:
    """Where one reader is, and which events are for it. It knows nothing of queues and connections.

    Args:
        since: The id of the last event that was seen; None: from now on.
        slot_id: Only this slot's.
        resource_id: Only this resource's.
    """

    def __init__(self, since: str | None, slot_id: str | None, resource_id: str | None) -> None:
        self._position = None if since is None else Position.after(since)
        self._slot_id = None if slot_id is None else arguments.slot_id(slot_id)
        self._resource_id = None if resource_id is None else arguments.slot_id(resource_id, "resource_id")

    @property
    def from_id(self) -> str:
        """The entry to go on from in the stream; empty for the one that is the last now."""
        return "" if self._position is None else self._position.entry_id

    @property
    def event_id(self) -> str:
        """What to give as ``since`` to go on where it is; empty before it began."""
        return "" if self._position is None else self._position.event_id

    def starts_at(self, entry_id: str) -> None:
        """Where it begins, if it was not told since when."""
        if self._position is None:
            self._position = Position.behind(entry_id)

    def take(self, batch: Batch) -> list[Event]:
        """What is new in a batch, and wanted."""
        milliseconds, _, sequence = batch.entry_id.partition("-")
        here = (int(milliseconds), int(sequence))
        position = self._position
        if position is not None and here < position[:2]:
            return []
        passed = position.passed if position is not None and here == position[:2] else 0
        self._position = Position(*here, _ALL)
        return [event for event in batch.events[passed:] if self._wants(event)]

    def _wants(self, event: Event) -> bool:
        return self._slot_id in (None, event.slot_id) and self._resource_id in (None, event.resource_id)
