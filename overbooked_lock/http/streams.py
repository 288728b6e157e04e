"""Streams of events: server-sent events, as ``EventSource`` in a browser reads them.

Rules. All streams of a process share one subscription. A stream holds no more than a bounded queue, and what it has not
taken from that it reads from the store's stream later; so a slow reader costs nobody anything. Where a reader is, it
is told with every event and every heartbeat: it can go on from there after any break, on any server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Literal

from overbooked_lock import AsyncLockEngine
from overbooked_lock.errors import EventsMissed, OverbookedError, StoreUnavailable
from overbooked_lock.events import Event, Reader
from overbooked_lock.http.envelopes import ApiKeyInvalid
from overbooked_lock.http.inputs import EventsQuery
from overbooked_lock.http.metrics import Metrics
from overbooked_lock.http.request import Request, Send

log = logging.getLogger("overbooked_lock.http")

CONTENT_TYPE = b"text/event-stream"

RETRY_MS = 2000
"""How long a browser is to wait before it connects again."""

WRITE_PATIENCE = 15.0
"""Seconds that a reader may leave what was sent to it lying: then it is cut off."""

End = Literal["gone", "slow", "revoked", "stopped"]
"""Why a stream ended: the reader went, it did not read, its key was revoked, or the server ends."""

_AT_ONCE = 100  # events that are written together: some 30 KB
_FRAMES = 1000
_FAREWELL_PATIENCE = 0.5


class TooManyStreams(OverbookedError):
    """More streams at a time than one address may have under a public key."""

    code, status = "E062", 429
    reason = "streams"

    def __init__(self, most: int) -> None:
        super().__init__(f"more than {most} streams at a time")


class Streams:
    """The open streams of an application.

    Args:
        engine: Whose events.
        metrics: What counts them.
        most: How many one holder may have at a time; None: any number.
        heartbeat: Seconds of silence after which a stream shows that it lives.
    """

    def __init__(self, engine: AsyncLockEngine, metrics: Metrics, most: int | None, heartbeat: float) -> None:
        self.engine, self.metrics, self.heartbeat = engine, metrics, heartbeat
        self.ending = asyncio.Event()
        self._most = most
        self._open = Counter[str]()
        self._frames: dict[str, bytes] = {}

    async def open(
        self, request: Request, query: EventsQuery, holder: str | None, identify: Callable[[], Awaitable[object]]
    ) -> Stream:
        """Begins a stream, for a holder if streams are counted; it must be closed.

        ``identify`` raises ApiKeyInvalid once the key was revoked.

        Raises InvalidArgument, TooManyStreams, StoreUnavailable.
        """
        if holder is not None and self._most is not None and self._open[holder] >= self._most:
            raise TooManyStreams(self._most)
        stream = Stream(self, request, query, holder, identify)
        self.count(holder, 1)
        try:
            await stream.begin()
        except BaseException:
            await stream.close()
            raise
        return stream

    def count(self, holder: str | None, more: int) -> None:
        """Counts a stream that begins or ends."""
        self.metrics.streams.inc(more)
        if holder is not None:
            self._open[holder] += more
            if not self._open[holder]:
                del self._open[holder]

    def frame(self, event: Event) -> bytes:
        """An event as it is written; once for all readers that get it at about the same time."""
        frame = self._frames.get(event.id)
        if frame is None:
            if len(self._frames) >= _FRAMES:
                self._frames.clear()
            frame = f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()
            self._frames[event.id] = frame
        return frame


class Stream:
    """One reader's."""

    def __init__(
        self,
        streams: Streams,
        request: Request,
        query: EventsQuery,
        holder: str | None,
        identify: Callable[[], Awaitable[object]],
    ) -> None:
        self._streams, self._request, self._holder, self._identify = streams, request, holder, identify
        self._wants = (query.slot_id, query.resource_id)
        # On connecting again a browser says where it was, and its URL still says where it began.
        self._since = request.header(b"last-event-id") or query.since
        self._reader: Reader | None = None
        self._pieces = self._follow()
        self._first = b""
        self._sent, self._began = 0, time.monotonic()

    async def begin(self) -> None:
        """Listens. Raises InvalidArgument, StoreUnavailable."""
        try:
            async with asyncio.timeout(self._streams.engine._timeout):  # noqa: SLF001 - our own
                self._first = await anext(self._pieces)
        except TimeoutError:
            raise StoreUnavailable("not_applied", "it can't be listened to") from None

    async def run(self, send: Send) -> None:
        """Writes until the reader goes, does not read, or the server ends."""
        ends = self._streams.ending
        writing = asyncio.ensure_future(self._write(send))
        gone, ending = asyncio.ensure_future(self._request.gone()), asyncio.ensure_future(ends.wait())
        revoked = asyncio.ensure_future(self._revoked())
        tasks = {writing, gone, ending, revoked}
        end: End = "stopped"
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                end = "gone"
            elif writing.done() and isinstance(writing.exception(), TimeoutError):
                end = "slow"
            elif revoked.done():
                end = "revoked"
        finally:
            for task in (writing, ending, revoked):
                task.cancel()
            await asyncio.wait({writing})
            self._tell(end)
            if end == "slow" or (end != "gone" and not await self._say_farewell(send, end)):
                self._request.abort()
                # By then the server knows, and does not wonder at half an answer.
                await asyncio.wait({gone}, timeout=_FAREWELL_PATIENCE)
            gone.cancel()

    async def _revoked(self) -> None:
        """Returns when the key was revoked."""
        while True:
            await asyncio.sleep(self._streams.heartbeat)
            try:
                await self._identify()
            except ApiKeyInvalid:
                return
            except StoreUnavailable:
                continue

    async def _say_farewell(self, send: Send, end: End) -> bool:
        why = b": the API key was revoked\n\n" if end == "revoked" else b": the server ends: come again\n\n"
        try:
            async with asyncio.timeout(_FAREWELL_PATIENCE):
                await send({"type": "http.response.body", "body": why})
        except TimeoutError:
            return False
        if self._streams.ending.is_set():
            # The transport may still hold what the reader does not read, and the server waits for it to close.
            asyncio.get_running_loop().call_later(_FAREWELL_PATIENCE, self._request.abort)
        return True

    async def close(self) -> None:
        """Listens no longer."""
        await self._pieces.aclose()
        self._streams.count(self._holder, -1)

    async def _write(self, send: Send) -> None:
        async def write(piece: bytes) -> None:
            async with asyncio.timeout(WRITE_PATIENCE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})

        await write(self._first)
        while True:
            following = asyncio.ensure_future(anext(self._pieces, None))
            try:
                while not (await asyncio.wait({following}, timeout=self._streams.heartbeat))[0]:
                    # Who wants few events must not fall behind what is kept: hence the position.
                    await write(f": \nid: {self._reader.event_id if self._reader else ''}\n\n".encode())
            except BaseException:
                following.cancel()
                await asyncio.wait({following})
                raise
            piece = following.result()
            if piece is None:  # the engine was closed
                return
            await write(piece)

    async def _follow(self) -> AsyncGenerator[bytes]:
        head, since = f"retry: {RETRY_MS}\n", self._since
        while True:
            self._reader = Reader(since, *self._wants)
            batches = self._streams.engine._follow(self._reader)  # noqa: SLF001 - our own
            async with contextlib.aclosing(batches):
                try:
                    async for events in batches:
                        if head:
                            # Where the reader is, if nothing comes before that.
                            yield (head + ("\n" if events else f"id: {self._reader.event_id}\n\n")).encode()
                            head = ""
                        for at in range(0, len(events), _AT_ONCE):
                            yield self._piece(events[at : at + _AT_ONCE])
                except EventsMissed as missed:
                    # The reader is told, and goes on: what it reads of slots after this is as new as what follows.
                    head += f"event: missed\ndata: {json.dumps({'since': missed.since})}\n"
                    since = None
                else:
                    return

    def _piece(self, events: Sequence[Event]) -> bytes:
        self._sent += len(events)
        self._streams.metrics.events_sent.inc(len(events))
        return b"".join(map(self._streams.frame, events))

    def _tell(self, end: End) -> None:
        self._streams.metrics.streams_ended.labels(end).inc()
        facts = {
            "request_id": self._request.id,
            "end": end,
            "events": self._sent,
            "seconds": round(time.monotonic() - self._began, 1),
        }
        log.info("stream ended", extra={"facts": facts})
