"""How fast is a lock over HTTP, against a server that a good engineer would write without us?

Both run one worker on the same store. A process of its own keeps 32 connections busy: each locks a slot of its own,
unlocks it, and so on. Sides take turns, and what counts is the median of the rounds. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import cast

import redis
import uvloop
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Spread, in_turns
from overbooked_lock import EmbeddedServer, LockEngine, NewSlot

CONNECTIONS = 32
ROOT = Path(__file__).parent.parent
TARGET = 4.0


class Caller(asyncio.Protocol):
    """A connection that locks its slot and unlocks it, over and over, and notes how long each lock took."""

    def __init__(self, lock: bytes, unlock: bytes, end: float, done: asyncio.Future[list[float]]) -> None:
        self.requests = (lock, unlock)
        self.end, self.done = end, done
        self.at, self.buffer, self.sent_at = 0, b"", 0.0
        self.seconds: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server closed the connection"))

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        self.transport.write(self.requests[self.at])

    def data_received(self, data: bytes) -> None:
        # By hand, since what this process spends it takes from the servers it measures.
        self.buffer = data = self.buffer + data if self.buffer else data
        body = data.find(b"\r\n\r\n") + 4
        length = data.find(b"ontent-length: ")
        if body < 4 or length < 0 or len(data) < body + int(data[length + 15 : data.index(b"\r", length)]):
            return
        if not data.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(repr(data[:300])))
            self.transport.close()
            return
        now = time.perf_counter()
        if self.at == 0:
            self.seconds.append(now - self.sent_at)
        self.buffer, self.at = b"", 1 - self.at
        if self.at == 0 and now >= self.end:
            self.transport.close()
            self.done.set_result(self.seconds)
        else:
            self.send()


def request(path: str, key: str, body: dict[str, str]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def load(port: int, key: str, slot_ids: list[str], seconds: float) -> tuple[float, list[float]]:
    """Locks a second, and how long each took."""
    loop = asyncio.get_running_loop()
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    start = time.perf_counter()
    futures = []
    for slot_id in slot_ids:
        done: asyncio.Future[list[float]] = loop.create_future()
        lock_key = uuid.uuid4().hex
        lock = request(f"/slots/{slot_id}/lock", key, {"lock_until": until, "lock_key": lock_key})
        unlock = request(f"/slots/{slot_id}/unlock", key, {"lock_key": lock_key})
        await loop.create_connection(
            lambda lock=lock, unlock=unlock, done=done: Caller(lock, unlock, start + seconds, done),  # type: ignore[misc]  # mypy can't infer defaults of a lambda
            "127.0.0.1",
            port,
        )
        futures.append(done)
    locked = [took for one in await asyncio.gather(*futures) for took in one]
    return len(locked) / (time.perf_counter() - start), locked


@dataclass(frozen=True)
class Side:
    name: str
    port: int
    key: str


@dataclass(frozen=True)
class Figures:
    """Medians over the rounds."""

    name: str
    locks_per_second: float
    p50_ms: float
    p99_ms: float


@contextlib.contextmanager
def process(command: list[str], stdout: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=stdout, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def ours(url: str, key: str) -> Iterator[Side]:
    program = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
    command = [program, "serve", "--url", url, "--port", "0"]
    with process(command, subprocess.PIPE) as server:
        assert server.stdout is not None
        listening = re.search(r":(\d+)\s*$", server.stdout.readline())
        assert listening is not None
        yield Side("overbooked-lock", int(listening[1]), key)


@contextlib.contextmanager
def reference(url: str) -> Iterator[Side]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.reference_app:app", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools"]  # and its access log: ours writes one, too
    with process(command, subprocess.DEVNULL, REDIS_URL=url):
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "the reference app does not start"
        yield Side("reference app", port, "none")


def measure(side: Side, slot_ids: list[str], seconds: float) -> tuple[float, float, float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rate, latencies = runner.run(load(side.port, side.key, slot_ids, seconds))
    percentiles = statistics.quantiles(latencies, n=100, method="inclusive")
    return rate, percentiles[49] * 1000, percentiles[98] * 1000


def compare(seconds: float, rounds: int, fsync: str) -> tuple[list[Figures], Spread, str]:
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(folder, fsync="always" if fsync == "always" else "everysec") as store,
        LockEngine.from_url(store.url) as engine,
        redis.Redis.from_url(store.url) as admin,
    ):
        if fsync == "none":
            admin.config_set("appendonly", "no")
        start = datetime.now(UTC) + timedelta(days=1)
        slots = engine.create_slots(
            NewSlot(resource_id="court", start_date=start, end_date=start + timedelta(hours=1))
            for _ in range(CONNECTIONS)
        )
        ids = [slot.id for slot in slots]
        for slot in slots:
            admin.set(f"slot:{slot.id}", slot.model_dump_json())  # where the reference app looks
        key = engine.create_api_key("secret", name="benchmark").key
        with ours(store.url, key) as mine, reference(store.url) as theirs:
            sides = (mine, theirs)
            for side in sides:
                measure(side, ids, 0.5)
            found = in_turns(sides, lambda side: measure(side, ids, seconds), rounds)
        figures = [
            Figures(side.name, *(statistics.median(column) for column in zip(*found[side], strict=True)))
            for side in sides
        ]
        ratio = Spread.of_ratios(*([rate for rate, *_ in found[side]] for side in sides))
        return figures, ratio, f"valkey {store.version}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fsync", choices=("none", "everysec", "always"), default="none", help="of the store")
    parser.add_argument("--json", action="store_true", help="print figures for a program")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    figures, ratio, server = compare(options.seconds, options.rounds, options.fsync)
    mine, theirs = figures
    faster, sooner = ratio.median >= TARGET, mine.p99_ms < theirs.p99_ms
    if options.json:
        print(
            json.dumps({"figures": [asdict(one) for one in figures], "ratio": ratio.median, "met": faster and sooner})
        )
    else:
        table = Table(box=SIMPLE, title_justify="left")
        for head in ("lock over HTTP", "locks/s", "p50 ms", "p99 ms"):
            table.add_column(head, justify="left" if head == "lock over HTTP" else "right")
        for one in figures:
            table.add_row(one.name, f"{one.locks_per_second:,.0f}", f"{one.p50_ms:.2f}", f"{one.p99_ms:.2f}")
        console = Console()
        console.print(table)
        console.print(
            f"ratio {ratio.median:.2f} (wanted ≥ {TARGET:g}: {'ok' if faster else 'missed'}), "
            f"p99 lower: {'ok' if sooner else 'missed'}"
        )
        console.print(
            f"{CONNECTIONS} connections, one worker each, each lock followed by its unlock; python "
            f"{platform.python_version()}, uvicorn {version('uvicorn')}, fastapi {version('fastapi')}, "
            f"server {server}, fsync {options.fsync}, cores {os.cpu_count()}, {options.rounds} rounds of "
            f"{options.seconds:g} s",
            highlight=False,
        )
    sys.exit(1 if options.check and not (faster and sooner) else 0)


if __name__ == "__main__":
    main()
