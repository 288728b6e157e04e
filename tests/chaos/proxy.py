"""A proxy between an engine and its server that does to their talk what networks and servers do on a bad day.

It runs in a thread with a loop of its own, so that sync and async engines can be on its one side. On each connection
it passes a request on and waits for the reply before it takes the next, and so knows which reply answers what. It
understands RESP2 alone, and no subscriptions.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import hiredis

from overbooked_lock.scripts import Script

from .tools import LoopThread

Request = list[bytes]
Match = Callable[[Request], bool]
Kind = Literal["none", "cut_request", "hold_request", "lose_reply", "withhold_reply", "answer"]

ALWAYS = sys.maxsize
"""How many times: until ``heal()``."""


def runs(*scripts: Script) -> Match:
    """Matches the calls of some scripts, by their hash or in full."""
    words = {word.encode() for script in scripts for word in (script.sha, script.source)}
    return lambda request: request[0] in (b"EVALSHA", b"EVAL") and request[1] in words


@dataclass
class _Fault:
    match: Match
    kind: Kind
    times: int = 1
    reply: bytes = b""


class Proxy:
    """Listens on a port of its own for connections to the server whose socket is ``upstream``.

    Attributes:
        url: Where an engine finds it.
        upstream: The server that new connections are passed on to.
        delay: Seconds that each reply is held back.
        slices: Bytes of a reply that are passed on at a time, and the seconds between them; None for all at once.
        seen: Every request that came, also those that were not passed on.
        errors: How often each error was replied, by its first word.
        done: How often each kind of fault was done.
        late: How many requests that were held the server has answered at last.
    """

    def __init__(self, upstream: Path) -> None:
        self.upstream = upstream
        self.delay = 0.0
        self.slices: tuple[int, float] | None = None
        self.seen: list[Request] = []
        self.errors: Counter[str] = Counter()
        self.done: Counter[Kind] = Counter()
        self.late = 0
        self._faults: list[_Fault] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._healed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._loop = LoopThread("proxy")
        self._port = self._loop.run(self._listen(port=0))
        self.url = f"redis://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._close())
        self._loop.close()

    # Faults of single requests

    def cut_request(self, match: Match, times: int = 1) -> None:
        """Cuts the connection instead of passing the next such requests on."""
        self._faults.append(_Fault(match, "cut_request", times))

    def hold_request(self, match: Match, times: int = 1) -> None:
        """Keeps such requests until ``heal()`` passes them on, late, and whether or not somebody waits for them."""
        self._faults.append(_Fault(match, "hold_request", times))

    def lose_reply(self, match: Match, times: int = 1) -> None:
        """Cuts the connection when the server has acted on such a request (an error reply is no act)."""
        self._faults.append(_Fault(match, "lose_reply", times))

    def withhold_reply(self, match: Match, times: int = 1) -> None:
        """Keeps the reply when the server has acted, and the connection open: the reply never comes."""
        self._faults.append(_Fault(match, "withhold_reply", times))

    def answer(self, match: Match, reply: str, times: int = 1) -> None:
        """Replies this (``-OOM …``) instead of passing the next such requests on."""
        self._faults.append(_Fault(match, "answer", times, f"{reply}\r\n".encode()))

    # Faults of all connections

    def freeze(self) -> None:
        """Accepts all and passes nothing on, either way, until ``heal()`` lets it through late."""
        self._loop.run(self._freeze())

    def refuse(self) -> None:
        """Cuts what is connected, and refuses new connections until ``heal()``."""
        self._loop.run(self._refuse())

    def reset(self) -> None:
        """Resets every connection (RST, where a cut is FIN)."""
        self._loop.run(self._cut_all(reset=True))

    def heal(self) -> None:
        """From now on all goes through, whole and at once."""
        self._faults, self.delay, self.slices = [], 0.0, None
        self._loop.run(self._heal())

    def count(self, match: Match) -> int:
        """How many such requests came."""
        return sum(map(match, list(self.seen)))

    # In the proxy's own thread

    async def _listen(self, port: int) -> int:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._cut_all()

    async def _freeze(self) -> None:
        self._flows.clear()

    async def _heal(self) -> None:
        self._flows.set()
        self._healed.set()
        self._healed = asyncio.Event()
        await self._listen(self._port)

    async def _cut_all(self, *, reset: bool = False) -> None:
        for writer in self._writers:
            if reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _close(self) -> None:
        await self._heal()
        await self._refuse()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await self._cut_all()
            await asyncio.wait(others, timeout=0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        self._writers.add(writer)
        try:
            server_reader, server = await asyncio.open_unix_connection(self.upstream)
            sides.append(server)
            self._writers.add(server)
            while await self._pass_on(reader, writer, server_reader, server):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side hung up: so does the other
        finally:
            for side in sides:
                side.transport.abort()
                self._writers.discard(side)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server: asyncio.StreamWriter,
    ) -> bool:
        """Passes one request on, and its reply back. False if the connection is to be cut."""
        message = await _message(reader)
        request = _words(message)
        self.seen.append(request)
        await self._flows.wait()
        fault = self._fault_of(request)
        if fault.kind in ("cut_request", "hold_request", "answer"):
            self.done[fault.kind] += 1
        if fault.kind == "cut_request":
            return False
        if fault.kind == "answer":
            return await self._reply(writer, fault.reply)
        if fault.kind == "hold_request":
            await self._healed.wait()

        server.write(message)
        reply = await _message(server_reader)
        if fault.kind in ("lose_reply", "withhold_reply") and reply.startswith(b"-"):
            fault.times += 1  # the server did not act: the next such request, then
        elif fault.kind in ("lose_reply", "withhold_reply"):
            self.done[fault.kind] += 1
            if fault.kind == "withhold_reply":
                await reader.read()  # until the engine hangs up
            return False
        self.late += fault.kind == "hold_request"
        return await self._reply(writer, reply)

    def _fault_of(self, request: Request) -> _Fault:
        for fault in self._faults:
            if fault.times > 0 and fault.match(request):
                fault.times -= 1
                return fault
        return _Fault(runs(), "none")

    async def _reply(self, writer: asyncio.StreamWriter, reply: bytes) -> bool:
        if reply.startswith(b"-"):
            self.errors[reply[1:].split(maxsplit=1)[0].decode()] += 1
        await asyncio.sleep(self.delay)
        await self._flows.wait()
        size, pause = self.slices or (len(reply), 0.0)
        for at in range(0, len(reply), size):
            writer.write(reply[at : at + size])
            await writer.drain()
            await asyncio.sleep(pause)
        return True


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One request or reply, as it came."""
    head = await reader.readuntil(b"\r\n")
    kind, size = head[:1], head[1:-2]
    if kind == b"$" and size != b"-1":
        return head + await reader.readexactly(int(size) + 2)
    if kind == b"*" and size != b"-1":
        return head + b"".join([await _message(reader) for _ in range(int(size))])
    return head


def _words(message: bytes) -> Request:
    reader = hiredis.Reader()
    reader.feed(message)
    words: Request = reader.gets()
    return words
