"""One subscription that comes back by itself: on a connection of its own, which redis-py connects.

From then on its transport belongs to :class:`_Wire`: a message is handed on in the same turn of the loop in which it
came, without a task or a time limit for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, cast

import hiredis
import redis.asyncio
from redis.exceptions import ResponseError

from overbooked_lock import store

_QUIET_SECONDS = 2.5
"""A connection that was silent for so long is asked whether it lives, and has as long to answer."""

_STALLED_SECONDS = 5.0
"""Who did not run for so long does not take what came in the meantime: nobody waits for it any more, perhaps."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_MOST_PENDING = 8 * 1024 * 1024  # bytes of a message that is not whole: far more than any request or event may have


class Subscription:
    """Hears a channel for as long as it runs.

    Args:
        pool: Says how to connect.
        channel: Which channel.
        timeout: Seconds that connecting may take.
        hear: Takes each message, at once; what it raises would end the subscription.
        changed: Is told True when the channel is heard from now on, and False when it is not any more.
    """

    def __init__(
        self,
        pool: redis.asyncio.ConnectionPool,
        channel: str,
        timeout: float,
        hear: Callable[[bytes], None],
        changed: Callable[[bool], None],
    ) -> None:
        self._pool, self._channel, self._timeout, self.hear, self._changed = pool, channel, timeout, hear, changed
        self._wire: _Wire | None = None
        self._was_heard = False
        self.subscribed = False
        """Whether it is heard now."""

    async def run(self) -> None:
        """Listens until it is cancelled."""
        pause, told = _FIRST_PAUSE, ""
        while True:
            self._was_heard = False
            try:
                await self._listen()
            except store.FAILURES as error:
                if self._was_heard:
                    pause, told = _FIRST_PAUSE, ""
                why = store._cause(error)  # noqa: SLF001 - our own words for it
                if why != told:
                    store.log.warning("the subscription to %s broke: %s", self._channel, why)
                told = why
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def unsubscribe(self) -> None:
        """Hears no more: what was published before is still handed on, if the server is there to bring it."""
        if self._wire is not None and self.subscribed:
            self._wire.send("UNSUBSCRIBE", self._channel)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, self._timeout)):
                    await self._wire.unsubscribed.wait()

    def turn(self, subscribed: bool) -> None:
        """Notes whether the channel is heard, and tells of a change."""
        if subscribed != self.subscribed:
            self.subscribed = subscribed
            self._was_heard |= subscribed
            self._changed(subscribed)

    async def _listen(self) -> None:
        """Raises what ended it, one of ``store.FAILURES``."""
        options = store.connection_options(self._pool.connection_kwargs, self._timeout)
        # Silence is no failure here; the attempt to connect has a time limit as a whole.
        connection = self._pool.connection_class(**options | {"socket_timeout": None})
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()
            _raise_if_cancelled()
            wire = self._wire = _Wire(connection, self)
            wire.send("SUBSCRIBE", self._channel)
            asked = False
            while True:
                await asyncio.wait([wire.over], timeout=_QUIET_SECONDS)
                if wire.over.done():
                    raise wire.over.result()
                if wire.heard:
                    asked = False
                elif asked:
                    raise TimeoutError
                else:
                    asked = True
                    wire.send("PING")
                wire.heard = False
                wire.ran_at = time.monotonic()
        finally:
            self._wire = None
            self.turn(False)
            await connection.disconnect(nowait=True)


def _raise_if_cancelled() -> None:
    """While it connects, redis-py may swallow that its task was cancelled."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _Wire(asyncio.Protocol):
    """The connection of a subscription.

    ``over`` gets why it ended, ``heard`` tells whether anything came, and ``ran_at`` when this process surely ran.
    """

    def __init__(self, connection: Any, owner: Subscription) -> None:
        self._transport = cast("asyncio.Transport", connection._writer.transport)  # noqa: SLF001 - no public way
        self._owner = owner
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._pending = 0
        self.over: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.unsubscribed = asyncio.Event()
        self.heard = False
        self.ran_at = time.monotonic()
        self._transport.set_protocol(self)

    def send(self, *words: str) -> None:
        packed: bytes = hiredis.pack_command(cast("Any", words))
        self._transport.write(packed)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if now - self.ran_at > _STALLED_SECONDS:
            # What the server and the network still hold for us goes with the connection.
            self._end(ConnectionAbortedError("this process was stopped for a while"))
            return
        self.heard, self.ran_at = True, now
        self._pending += len(data)
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                self._pending = 0
                self._take(reply)
        except hiredis.HiredisError:
            self._end(ConnectionResetError("the server sent what is no reply"))
        if self._pending > _MOST_PENDING:
            # Who may publish could else fill our memory with a single message.
            self._end(ConnectionAbortedError("a message was far too long"))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            self._end(reply)
        elif reply[0] == b"message":
            self._owner.hear(reply[2])
        elif reply[0] == b"subscribe":
            self._owner.turn(True)
        elif reply[0] == b"unsubscribe":
            self._owner.turn(False)
            self.unsubscribed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error if isinstance(error, OSError) else ConnectionResetError("the server closed the connection"))

    def _end(self, why: Exception) -> None:
        if not self.over.done():
            self.over.set_result(why)
        self._transport.abort()
