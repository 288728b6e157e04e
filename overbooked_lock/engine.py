"""The sync engine. Its verbs are those of ``verbs.py``; here stands what they await, and all of it blocks.

The executor makes each call on a connection that no other thread uses meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, cast

import hiredis
import redis
from redis.connection import AbstractConnection
from redis.exceptions import ResponseError

from overbooked_lock import arguments, store
from overbooked_lock.calls import Builder, Settings
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import OverbookedError, StoreUnavailable
from overbooked_lock.events import SWEEP_EVERY_SECONDS, Event, Listener, Reader, Waiter
from overbooked_lock.holding import Hold
from overbooked_lock.keys import Keys
from overbooked_lock.models import NewSlot
from overbooked_lock.operations import Means, Operation
from overbooked_lock.verbs import Verbs

P = ParamSpec("P")
T = TypeVar("T")

_GLANCE = 0.002  # seconds


def _blocking(verb: Callable[Concatenate[Verbs, P], Operation[T]]) -> Callable[Concatenate[LockEngine, P], T]:
    """The sync engine's verb: what the operation awaits here blocks, so one ``send`` takes it to its end."""

    @wraps(verb)
    def blocking(engine: LockEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _end(verb(engine._verbs, *args, **kwargs))  # noqa: SLF001 - our own

    blocking.__module__, blocking.__qualname__ = __name__, f"LockEngine.{verb.__name__}"
    return blocking


def _end(operation: Operation[T]) -> T:
    try:
        operation.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # StopIteration is not generic
    raise AssertionError("an operation of the sync engine was suspended")


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
        self._listener = Listener(self._pool, self._settings.keys.events, self._timeout, self._sweep_in_time)
        load = None if load_slot is None else self._load
        means = Means(self._run, self._pause, self._listener.waiter, self._wait, load, self._in_background)
        self._verbs = Verbs(self._settings, self._timeout, means)
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

        Raises InvalidArgument if the URL is not one of these, or says what redis-py can't use.
        """
        return cls(store.client_of_url(url, redis.Redis), **options)

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

    lock = _blocking(Verbs.lock)
    lock_many = _blocking(Verbs.lock_many)
    unlock = _blocking(Verbs.unlock)
    unlock_many = _blocking(Verbs.unlock_many)
    force_unlock = _blocking(Verbs.force_unlock)
    extend = _blocking(Verbs.extend)
    extend_many = _blocking(Verbs.extend_many)
    check = _blocking(Verbs.check)
    list_locks = _blocking(Verbs.list_locks)

    create_slot = _blocking(Verbs.create_slot)
    create_slots = _blocking(Verbs.create_slots)
    get_slot = _blocking(Verbs.get_slot)
    update_slot = _blocking(Verbs.update_slot)
    enable_slot = _blocking(Verbs.enable_slot)
    disable_slot = _blocking(Verbs.disable_slot)
    delete_slot = _blocking(Verbs.delete_slot)
    list_slots = _blocking(Verbs.list_slots)
    prune_slots = _blocking(Verbs.prune_slots)

    book = _blocking(Verbs.book)
    book_many = _blocking(Verbs.book_many)
    get_booking = _blocking(Verbs.get_booking)
    update_booking = _blocking(Verbs.update_booking)
    cancel_booking = _blocking(Verbs.cancel_booking)
    enable_booking = _blocking(Verbs.enable_booking)
    reschedule_booking = _blocking(Verbs.reschedule_booking)
    delete_booking = _blocking(Verbs.delete_booking)
    list_bookings = _blocking(Verbs.list_bookings)

    create_api_key = _blocking(Verbs.create_api_key)
    list_api_keys = _blocking(Verbs.list_api_keys)
    find_api_key = _blocking(Verbs.find_api_key)
    revoke_api_key = _blocking(Verbs.revoke_api_key)

    keep_answer = _blocking(Verbs.keep_answer)
    get_answer = _blocking(Verbs.get_answer)

    sweep = _blocking(Verbs.sweep)

    # For what stands below, and for holds
    _extend_within = _blocking(Verbs._extend_within)  # noqa: SLF001
    _sweep_in_time = _blocking(Verbs._sweep_in_time)  # noqa: SLF001
    _catch_up = _blocking(Verbs._catch_up)  # noqa: SLF001

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
            raise StoreUnavailable("not_applied", store.CLOSED)
        with self._listener.reading() as batches:
            while not self._closing.is_set():  # or nobody would wake who came just after the rest were woken
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
                        found, more = self._catch_up(reader)
                    except StoreUnavailable:
                        if self._closing.wait(SWEEP_EVERY_SECONDS):
                            return
                        continue
                    yield found

    def close(self) -> None:
        """Closes the connections, and stops the embedded server if this was its last user."""
        deadline = time.monotonic() + min(1.0, self._timeout)
        self._dismissed = True
        # Those who wait in line leave it. Who asks for the first time just now does not listen yet.
        while (self._listener.dismiss() or self._verbs._in_line) and time.monotonic() < deadline:  # noqa: SLF001 - our own
            time.sleep(_GLANCE)
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

    # What operations await. All of it blocks, and nothing suspends.

    async def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise StoreUnavailable("not_applied", store.CLOSED)

    async def _wait(self, waiter: Waiter[threading.Event], seconds: float) -> None:
        waiter.bell.wait(seconds)
        waiter.bell.clear()
        if self._dismissed:
            raise StoreUnavailable("not_applied", store.CLOSED)

    def _in_background(self, operation: Callable[[], Operation[None]]) -> None:
        def work() -> None:
            try:
                with contextlib.suppress(StoreUnavailable):  # the engine was closed
                    _end(operation())
            finally:
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
            there_is_one = await self._verbs._register(self._load_slot(slot_id), slot_id)  # noqa: SLF001 - our own
            future.set_result(there_is_one)
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._mutex:
                del self._loading[slot_id]
        return there_is_one

    # The executor

    async def _run(
        self,
        build: Builder[T],
        requests: Sequence[Any],
        *,
        alone: bool = False,  # noqa: ARG002 - here each is
        within: float | None = None,
    ) -> Sequence[T | OverbookedError]:
        call = build(self._settings, requests)
        timeout = self._timeout if within is None else min(self._timeout, within)
        attempts = store.Attempts(timeout, time.monotonic() + timeout)
        while True:
            wire, sent = None, False
            sent_at = time.monotonic()
            try:
                wire = self._take_wire(attempts)
                sent = True
                # A thread that is alone can spin; among others it would keep the interpreter from them.
                no_others = len(self._wires) == len(self._idle) + 1
                reply = wire.exchange(call.evalsha(), attempts.time_for_next(), spin=no_others)
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
                if self._closing.is_set():
                    self._drop_idle()  # whoever closed the engine meanwhile has not seen this one
                outcomes = call.parse(reply, sent_at)
                return call.after_lost_reply(requests, outcomes) if attempts.maybe_applied else outcomes

    def _take_wire(self, attempts: store.Attempts) -> _Wire:
        if self._closing.is_set():
            raise attempts.gave_up(store.CLOSED, sent=False)
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
