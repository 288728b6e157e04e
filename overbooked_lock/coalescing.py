"""The executor of the async engine: merges what the callers of one event loop ask for into few calls for many slots.

Runs wait in a queue. Two batches of them are under way, each on a connection of its own: requests
that run the same script share a call, and the calls of a batch are sent together. Nobody waits for company: a run
that comes while a connection is free is sent at the end of the loop's turn, and runs gather only while all are busy.

redis-py connects: TLS, passwords and Sentinel are its business. From then on the connection's transport belongs to
:class:`_Wire`, a protocol without streams and tasks.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, islice
from math import ceil
from operator import itemgetter
from threading import get_ident
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ResponseError

from overbooked_lock import store
from overbooked_lock.calls import Builder, Call, Settings
from overbooked_lock.errors import StoreUnavailable
from overbooked_lock.stream import sweep

_IN_FLIGHT = 2
"""While the server works on one batch, we pack and parse another. More would be smaller, and each run cost more."""

_MAX_BATCH = 128
"""Slots in a batch: beyond it the gain per slot is gone, and the server is held longer."""

_TOO_LATE = "its turn did not come in time"


_Run = tuple[Builder[Any], Sequence[Any], bool, "asyncio.Future[Any]", float, store.Attempts | None]
"""What a caller asked for: the builder, its requests, whether they go alone, the future that the caller awaits, the
deadline, and the tries once one has failed. A plain tuple is made and taken apart in a quarter of an object's time."""

_Batch = dict[object, list[_Run]]
"""Runs that are sent together: those in one list share a call."""


class Coalescer:
    """Carries out runs on the connections that a pool describes. ``timeout`` is each run's deadline in seconds."""

    def __init__(self, pool: ConnectionPool, settings: Settings, timeout: float) -> None:
        self._pool = pool
        self._settings = settings
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._queue: deque[_Run] = deque()
        self._flushes_due = 0
        self._in_flight = 0
        self._last_batch = 0
        self._idle: list[_Wire] = []
        self._wires: set[_Wire] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._examined = False
        self._closed = False
        self.on_batch: Callable[[int], object] | None = None
        """Is told of each batch that is sent, how many runs of callers it carries: for metrics."""

    def enqueue(
        self,
        build: Builder[Any],
        requests: Sequence[Any],
        *,
        alone: bool = False,
        within: float | None = None,  # noqa: ARG002 - who awaits can stop waiting
    ) -> asyncio.Future[Any]:
        """Calls a script; the future gives one outcome for each request, or StoreUnavailable.

        Raises StoreUnavailable if it is closed, RuntimeError on another event loop than that of the first call.
        """
        loop = self._loop
        # A thread runs one loop at a time. To ask which costs more than all else here (CPython 3.11 asks for the
        # process id each time), so it is asked only when the loop of the first call does not run, or not here.
        if loop is None or get_ident() != self._thread or not loop.is_running():
            loop = self._bind()
        if self._closed:
            raise StoreUnavailable("not_applied", store.CLOSED)
        future = loop.create_future()
        self._queue.append((build, requests, alone, future, time.monotonic() + self._timeout, None))
        if not self._flushes_due and self._in_flight < _IN_FLIGHT:
            self._flush_soon(loop)
        return future

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            raise RuntimeError("an AsyncLockEngine belongs to the event loop of its first call")
        self._loop, self._thread = loop, get_ident()
        return loop

    async def landed(self) -> None:
        """Returns when all that is under way now has its reply, or will get none."""
        if self._connecting:
            await asyncio.wait(self._connecting)
        await asyncio.gather(*(wire.landed() for wire in self._wires))

    async def close(self) -> None:
        """Closes the connections; what was under way or in the queue ends as StoreUnavailable."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for wire in list(self._wires):
            wire.close()
        while self._wires:  # noqa: ASYNC110 - each tells of its end in one of the loop's next turns
            await asyncio.sleep(0)
        self._give_up(self._queue, store.CLOSED)

    def _flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of this turn of the loop: what callers ask for in it goes along."""
        self._flushes_due += 1
        loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Sends what waits, in batches that are even.

        Of two batches of different size the larger would keep the server busy while we wait for it, and we the server
        after it.
        """
        self._flushes_due -= 1
        if self._flushes_due:
            return  # other callers have been answered since: the last one comes after all of them
        while self._queue and self._in_flight < _IN_FLIGHT and not self._closed:
            unanswered = len(self._queue) + self._in_flight * self._last_batch
            batch = self._take(ceil(unanswered / _IN_FLIGHT))
            if not batch:
                continue
            self._in_flight += 1
            self._last_batch = sum(map(len, batch.values()))
            if self._idle:
                self._send(self._idle.pop(), batch)
            else:
                task = asyncio.get_running_loop().create_task(self._connect_and_send(batch))
                self._connecting.add(task)
                task.add_done_callback(partial(self._connected, batch))

    def _take(self, share: int) -> _Batch:
        """The next runs, a share at most, without those that nobody awaits; with about as many slots as is good."""
        batch: _Batch = {}
        slots, now = 0, time.monotonic()
        for _ in range(min(share, len(self._queue))):
            run = self._queue.popleft()
            build, requests, alone, future, deadline, _ = run
            if future.done():
                continue
            if deadline <= now:
                self._give_up([run], _TOO_LATE)
                continue
            script = future if alone else build
            if script in batch:
                batch[script].append(run)
            else:
                batch[script] = [run]
            slots += len(requests)
            if slots >= _MAX_BATCH:
                break
        return batch

    async def _connect_and_send(self, batch: _Batch) -> None:
        try:
            async with asyncio.timeout(self._time_for(batch.values())):
                wire = await self._connect()
        except store.FAILURES as error:
            self._try_again(_runs(batch.values()), error, sent=False)
        except Exception as error:  # noqa: BLE001 - whatever it is must leave no caller waiting, nor the next
            _fail(_runs(batch.values()), error)
            self._release()
        else:
            self._send(wire, batch)

    def _connected(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step has run nothing that could tell its callers."""
        self._connecting.discard(task)
        if task.cancelled():
            self._give_up(_runs(batch.values()), store.CLOSED)

    async def _connect(self) -> _Wire:
        options = store.connection_options(self._pool.connection_kwargs, self._timeout)
        # The whole attempt has a time limit; a second one inside would only cost time.
        options["socket_timeout"] = None
        connection: AbstractConnection = self._pool.connection_class(**options)
        try:
            await connection.connect()
            wire = _Wire(connection, self._wires)
            if not self._examined:
                answer = asyncio.get_running_loop().create_future()
                wire.exchange(store.questions(self._settings.keys.events), self._timeout, answer.set_result)
                self._examined = store.examine(*_checked(await answer))
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return wire

    def _send(self, wire: _Wire, batch: _Batch) -> None:
        groups = list(batch.values())
        if self.on_batch is not None and (runs := sum(build is not sweep for build, *_ in _runs(groups))):
            self.on_batch(runs)
        calls = [_build(self._settings, group) for group in groups]
        answered = partial(self._answered, wire, groups, calls, time.monotonic())
        wire.exchange([call.evalsha() for call in calls], self._time_for(groups), answered)

    def _answered(
        self,
        wire: _Wire,
        groups: Sequence[list[_Run]],
        calls: Sequence[Call[Any]],
        sent_at: float,
        replies: list[Any] | OSError,
        *,
        in_full: bool = False,
    ) -> None:
        if isinstance(replies, OSError):
            while self._idle:  # what broke one connection has mostly broken all
                self._idle.pop().close()
            self._try_again(_runs(groups), replies, sent=True)
            return
        forgotten: list[tuple[list[_Run], Call[Any]]] = []
        refused: list[_Run] = []
        refusal: ResponseError | None = None
        for group, call, reply in zip(groups, calls, replies, strict=True):
            if store.is_forgotten_script(reply) and not in_full:
                forgotten.append((group, call))
            elif isinstance(reply, ResponseError):
                refused, refusal = refused + group, reply
            else:
                _hand_out(group, call, reply, sent_at)
        if forgotten:
            groups, calls = [group for group, _ in forgotten], [call for _, call in forgotten]
            self._queue.extendleft(refused)
            again = partial(self._answered, wire, groups, calls, sent_at, in_full=True)
            wire.exchange([call.eval() for call in calls], self._time_for(groups), again)
        elif refusal is not None:
            # A replica, perhaps, where there was a master: the next connection looks for it.
            wire.close()
            self._try_again(refused, refusal, sent=True)
        else:
            self._idle.append(wire)
            self._release()

    def _try_again(self, runs: Sequence[_Run], error: Exception, *, sent: bool) -> None:
        """What failed goes back into the queue, and its place in flight is free after a pause."""
        pause = 0.0
        for run in reversed(runs):
            build, requests, alone, future, deadline, attempts = run
            attempts = attempts or store.Attempts(self._timeout, deadline)
            try:
                pause = max(pause, attempts.failed(error, sent=sent))
                self._queue.appendleft((build, requests, alone, future, deadline, attempts))
            except StoreUnavailable as unavailable:
                _fail([run], unavailable)
        asyncio.get_running_loop().call_later(pause, self._release)

    def _give_up(self, runs: Iterable[_Run], why: str) -> None:
        for run in runs:
            _, _, _, _, deadline, attempts = run
            attempts = attempts or store.Attempts(self._timeout, deadline)
            _fail([run], attempts.gave_up(why, sent=False))

    def _time_for(self, groups: Iterable[list[_Run]]) -> float:
        """Seconds that an attempt may take: no longer than its most pressing run allows, which came first."""
        deadline = min(_deadline(group[0]) for group in groups)
        return store.time_for_try(deadline - time.monotonic(), self._timeout)

    def _release(self) -> None:
        self._in_flight -= 1
        # Not at once: who has just been answered may have more to ask, and comes before it.
        self._flush_soon(self._bind())


class _Wire(asyncio.Protocol):
    """A connection: sends commands, and calls back with their replies in order, error replies among them."""

    def __init__(self, connection: AbstractConnection, open_wires: set[_Wire]) -> None:
        # There is no public way to the transport of a connection.
        self._transport = cast("asyncio.Transport", connection._writer.transport)  # type: ignore[union-attr]  # connected  # noqa: SLF001
        self._connection = connection
        self._open_wires = open_wires
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._expected = 0
        self._replies: list[Any] = []
        self._answered: Callable[[list[Any] | OSError], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._deadline = self._looks_at = 0.0
        self._spin = store.Spin()
        self._landings: list[asyncio.Future[None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._error: OSError = ConnectionResetError("the server closed the connection")
        self._transport.set_protocol(self)
        open_wires.add(self)

    def exchange(
        self, commands: Sequence[bytes], timeout: float, answered: Callable[[list[Any] | OSError], None]
    ) -> None:
        """Sends commands; ``answered`` gets their replies, or why there are none within ``timeout`` seconds."""
        self._expected, self._replies, self._answered = len(commands), [], answered
        self._sent_at = time.monotonic()
        self._deadline = self._sent_at + timeout
        self._watch(timeout)
        if self._transport.is_closing():
            # It broke while it was idle, and connection_lost has been: nobody else would tell.
            self._loop.call_soon(self.connection_lost, None)
        else:
            self._transport.write(b"".join(commands))
            if self._spin.is_due():
                self._loop.call_soon(self._stay_awake, self._sent_at)

    def _stay_awake(self, sent_at: float) -> None:
        """Keeps the loop from sleep, and from nothing else, while the exchange of that time lasts."""
        lasts = self._answered is not None and self._sent_at == sent_at
        if lasts and time.monotonic() - sent_at < store.Spin.SECONDS:
            self._loop.call_soon(self._stay_awake, sent_at)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._replies.append(reply)
        except hiredis.HiredisError as error:
            self._break(ConnectionResetError(f"the server sent what is no reply: {error}"))
            return
        if self._answered is None:
            self._break(ConnectionResetError("the server sent what nobody asked for"))
        elif len(self._replies) >= self._expected:
            self._spin.took(time.monotonic() - self._sent_at)
            self._end(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        # Else redis-py warns of a connection that was forgotten; its public way waits for streams that are not in use.
        self._connection._close()  # noqa: SLF001
        self._open_wires.discard(self)
        self._stop_timer()
        self._end(error if isinstance(error, OSError) else self._error)

    def landed(self) -> asyncio.Future[None]:
        """Is done when no exchange is under way, or the one that is has ended."""
        landing = self._loop.create_future()
        if self._answered is None:
            landing.set_result(None)
        else:
            self._landings.append(landing)
        return landing

    def _end(self, replies: list[Any] | OSError) -> None:
        # Nothing of this exchange may live on into the next, or the collector has it to walk through.
        answered, self._answered, self._replies = self._answered, None, []
        if answered is not None:
            answered(replies)
        if self._answered is None:  # else it went on with a script that the server had forgotten
            while self._landings:
                landing = self._landings.pop()
                if not landing.done():
                    landing.set_result(None)

    def close(self) -> None:
        self._break(ConnectionAbortedError(store.CLOSED))

    def _break(self, why: OSError) -> None:
        self._error = why
        self._transport.abort()

    def _watch(self, seconds: float) -> None:
        """Looks after the deadline by then. A timer outlives its exchange: one for each costs as much as to send."""
        if self._timer is None or self._deadline < self._looks_at:
            self._stop_timer()
            self._looks_at = self._deadline
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        left = self._deadline - time.monotonic()
        if self._answered is None:
            return
        if left > 0:
            self._watch(left)
        else:
            self._break(TimeoutError())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_requests, _deadline = itemgetter(1), itemgetter(4)


def _runs(groups: Iterable[list[_Run]]) -> list[_Run]:
    return list(chain.from_iterable(groups))


def _fail(runs: Iterable[_Run], error: BaseException) -> None:
    for _, _, _, future, _, _ in runs:
        if not future.done():
            future.set_exception(error)


def _build(settings: Settings, group: Sequence[_Run]) -> Call[Any]:
    build, *_ = group[0]
    return build(settings, list(chain.from_iterable(map(_requests, group))))


def _checked(replies: list[Any] | OSError) -> list[Any]:
    if isinstance(replies, OSError):
        raise replies
    return replies


def _hand_out(group: Sequence[_Run], call: Call[Any], reply: Any, sent_at: float) -> None:
    try:
        outcomes = call.parse(reply, sent_at)
    except Exception as error:  # noqa: BLE001 - a reply that we can't read must leave no caller waiting
        _fail(group, error)
        return
    if len(outcomes) == len(group):  # nearly always: each asked for one, and to cut it out takes longer
        shares = [[outcome] for outcome in outcomes]
    else:
        rest = iter(outcomes)
        shares = [list(islice(rest, len(requests))) for _, requests, *_ in group]
    for run, own in zip(group, shares, strict=True):
        _, requests, _, future, _, attempts = run
        if not future.done():
            is_again = attempts is not None and attempts.maybe_applied
            future.set_result(call.after_lost_reply(requests, own) if is_again else own)
