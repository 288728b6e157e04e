"""How many requests a second does one sidecar answer? Beside it, in the same run, what Redis pub/sub itself can do.

The peer is an echo: a process that hears a message on one channel and publishes it on another, with the same connection
code and loop. What a sidecar takes more than an echo is reading and checking a request, claiming it, working on it with
the engine, and keeping the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import hiredis
import uvloop
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import private_server, registered_slot
from overbooked_lock import LockEngine
from overbooked_lock.sidecar.requests import Channels

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
WARM_UP = 0.5  # seconds
ECHO, SIDECAR = "bench-echo", "bench"


class Line(asyncio.Protocol):
    """A connection to Redis that costs as little as can be: it is not what is measured."""

    def __init__(self, hear: Any) -> None:
        self._reader = hiredis.Reader()
        self._hear = hear

    @classmethod
    async def to(cls, url: str, hear: Any = lambda _: None) -> Self:
        """Connects; ``hear`` gets each message."""
        loop = asyncio.get_running_loop()
        if url.startswith("unix://"):
            _, line = await loop.create_unix_connection(lambda: cls(hear), url.removeprefix("unix://"))
        else:
            host, _, port = url.removeprefix("redis://").partition(":")
            _, line = await loop.create_connection(lambda: cls(hear), host, int(port))
        return line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, list) and reply[0] == b"message":
                self._hear(reply[2])

    def say(self, *words: str | bytes) -> None:
        """Sends a command."""
        self._transport.write(hiredis.pack_command(cast("Any", words)))

    def close(self) -> None:
        self._transport.abort()


class Clients:
    """Many callers that share two connections."""

    def __init__(self, name: str) -> None:
        self._channels = Channels(name)
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._count = 0

    async def connect(self, url: str) -> None:
        self._ears, self._mouth = await Line.to(url, self._hear), await Line.to(url)
        self._ears.say("SUBSCRIBE", self._channels.of("bench"))

    def close(self) -> None:
        self._ears.close()
        self._mouth.close()

    def _hear(self, message: bytes) -> None:
        # Ids are of one length, so it is known where one stands: in a request that is echoed, and in an answer.
        waiting = self._waiting.pop(message[8:16], None)
        if waiting is not None:
            waiting.set_result(message)

    async def ask(self, rest: str) -> bytes:
        """A request, and its answer."""
        self._count += 1
        request_id = f"{self._count:08d}"
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id.encode()] = answer
        self._mouth.say("PUBLISH", self._channels.requests, f'{{"id": "{request_id}", "client": "bench", {rest}')
        return await answer

    async def pair(self, slot_id: str) -> None:
        """A lock and its unlock."""
        named = f'"slot_id": "{slot_id}", "lock_key": "key-of-{slot_id}"}}'
        locked = await self.ask(f'"op": "lock", "lock_for_ms": 30000, {named}')
        assert b'"error"' not in locked, locked
        await self.ask(f'"op": "unlock", {named}')

    def measure(self, runner: asyncio.Runner, callers: int, seconds: float) -> float:
        """Requests a second."""

        async def call(slot_id: str, end: float) -> int:
            pairs = 0
            while time.perf_counter() < end:
                await self.pair(slot_id)
                pairs += 1
            return pairs

        async def run() -> float:
            began = time.perf_counter()
            pairs = await asyncio.gather(*(call(f"slot-{number}", began + seconds) for number in range(callers)))
            return 2 * sum(pairs) / (time.perf_counter() - began)

        return runner.run(run())


async def echo(url: str) -> None:
    """The peer: publishes what it hears."""
    channels = Channels(ECHO)
    mouth = await Line.to(url)
    ears = await Line.to(url, lambda message: mouth.say("PUBLISH", channels.of("bench"), message))
    ears.say("SUBSCRIBE", channels.requests)
    print("hears", flush=True)
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Result:
    """Medians over the rounds; ``ratio`` is the median of the rounds' own."""

    callers: int
    sidecar: float
    echo: float
    ratio: float
    range: tuple[float, float]


@contextmanager
def running(*command: str) -> Iterator[None]:
    """A process that says when it is there."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert b"hears" in process.stdout.readline()
            yield
        finally:
            process.terminate()


def run(url: str, callers: list[int], seconds: float, rounds: int) -> Iterator[Result]:
    """Measures both sides in turns."""
    with LockEngine.from_url(url) as engine:
        slots = [f"slot-{number}" for number in range(max(callers))]
        for first in range(0, len(slots), 500):
            engine.create_slots(map(registered_slot, slots[first : first + 500]))
    with (
        running(PROGRAM, "sidecar", "--name", SIDECAR, "--url", url, "--keep-answers", "10s"),
        running(sys.executable, "-m", "benchmarks.sidecar", "--echo", url),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        sides = {name: Clients(name) for name in (SIDECAR, ECHO)}
        for side in sides.values():
            runner.run(side.connect(url))
        for count in callers:
            figures: dict[str, list[float]] = {name: [] for name in sides}
            for side in sides.values():
                side.measure(runner, count, WARM_UP)
            for number in range(rounds):
                for name in list(sides)[:: 1 if number % 2 else -1]:
                    figures[name].append(sides[name].measure(runner, count, seconds))
            ratios = sorted(ours / theirs for ours, theirs in zip(figures[SIDECAR], figures[ECHO], strict=True))
            yield Result(
                count,
                statistics.median(figures[SIDECAR]),
                statistics.median(figures[ECHO]),
                statistics.median(ratios),
                (ratios[0], ratios[-1]),
            )
        for side in sides.values():
            side.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sidecar", description="Requests a second of a sidecar.")
    parser.add_argument("--seconds", type=float, default=1, help="per measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 20, 200], help="how many ask at the same time")
    parser.add_argument("--transport", choices=["tcp", "unix"], default="tcp", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--echo", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.echo:
        uvloop.run(echo(options.echo))
        return 0
    if options.seconds <= 0 or options.rounds < 1 or min(options.clients) < 1:
        parser.error("--seconds must be above 0, --rounds and --clients 1 or more")
    with private_server(options.transport) as (url, circumstances):
        results = list(run(url, options.clients, options.seconds, options.rounds))
    circumstances |= {"seconds": options.seconds, "rounds": options.rounds}
    if options.json:
        print(json.dumps({"results": [asdict(result) for result in results], "circumstances": circumstances}, indent=2))
        return 0
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("clients", "sidecar, requests/s", "echo, messages/s", "ratio", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        low, high = result.range
        table.add_row(
            str(result.callers), f"{result.sidecar:,.0f}", f"{result.echo:,.0f}", f"{result.ratio:.2f}",
            f"{low:.2f}-{high:.2f}",
        )  # fmt: skip
    Console(highlight=False, width=100).print(table)
    print(", ".join(f"{name} {value}" for name, value in circumstances.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
