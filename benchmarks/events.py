"""How soon does a waiter have what another process unlocked, and how soon is the end of a lock told of?

Two processes hand slots to each other, in turns with our engine and with redis-py's ``Lock(blocking=True)``. Both note
their dates by the clock that all processes of a machine share. See README.md in this folder for how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import multiprocessing
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import redis
import redis.asyncio
import uvloop
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Circumstances, private_server, registered_slot
from benchmarks.sidecar import PROGRAM
from overbooked_lock import AsyncLockEngine, LockEngine

LOCK_FOR = timedelta(seconds=30)
WARM_UP = 0.3  # seconds of each turn that don't count
LEAST = 2  # wake-ups in a turn: with fewer it is taken again
SWEEPERS = 3

ABOVE_TWO_TRIPS_MS, P99_MS = 1.0, 10.0
WAVE_P99_MS, IDLE_P99_MS = 1000.0, 150.0


class Turn(NamedTuple):
    """What both parties do at the same time: lock each slot or wait for it, hold it, unlock it, rest, and again.

    ``hold`` and ``rest`` are seconds. Without ``hold``, all slots are held until the same moment.
    """

    side: str
    slots: int
    hold: tuple[float, float] | None
    rest: float
    ends_at: float


class Note(NamedTuple):
    """When a party asked for a slot, got it, and unlocked it."""

    slot: str
    asked: float
    locked: float
    unlocked: float


# The parties


class Side(Protocol):
    async def lock(self, slot: str) -> Any: ...
    async def unlock(self, held: Any) -> Any: ...


class Ours:
    def __init__(self, url: str) -> None:
        self._engine = AsyncLockEngine.from_url(url)
        self.unlock = self._engine.unlock

    async def lock(self, slot: str) -> Any:
        return await self._engine.lock(slot, lock_for=LOCK_FOR, wait=LOCK_FOR)


class Theirs:
    def __init__(self, url: str) -> None:
        # A connection for each caller: none waits for another's.
        self._client = redis.asyncio.Redis.from_url(url, max_connections=1000)

    async def lock(self, slot: str) -> Any:
        lock = self._client.lock(f"redis-py:{slot}", timeout=LOCK_FOR.total_seconds(), thread_local=False)
        assert await lock.acquire()
        return lock

    async def unlock(self, held: Any) -> None:
        await held.release()


def be_party(url: str, commands: Connection) -> None:
    """A process: carries out turns until it is told to end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sides: dict[str, Side] = {"ours": Ours(url), "redis-py": Theirs(url)}
        while (turn := commands.recv()) is not None:
            commands.send(runner.run(_take_turn(sides[turn.side], turn)))


async def _take_turn(side: Side, turn: Turn) -> list[Note]:
    notes: list[Note] = []

    async def use(slot: str) -> None:
        while (asked := time.monotonic()) < turn.ends_at:
            held = await side.lock(slot)
            locked = time.monotonic()
            if turn.hold is None:
                await asyncio.sleep(0.5 - locked % 0.5)
            else:
                await asyncio.sleep(random.uniform(*turn.hold))
            unlocked = time.monotonic()
            await side.unlock(held)
            notes.append(Note(slot, asked, locked, unlocked))
            await asyncio.sleep(turn.rest)

    await asyncio.gather(*(use(f"slot-{number}") for number in range(turn.slots)))
    return notes


def wake_ups(notes: Sequence[list[Note]], since: float) -> Iterator[float]:
    """Milliseconds from an unlock to the lock of the other party, wherever that one had been waiting already."""
    slots: dict[str, list[tuple[float, int, Note]]] = {}
    for party, its_notes in enumerate(notes):
        for note in its_notes:
            slots.setdefault(note.slot, []).append((note.locked, party, note))
    for uses in slots.values():
        uses.sort()
        for (_, party, before), (_, other, after) in itertools.pairwise(uses):
            if party != other and after.asked < before.unlocked and before.unlocked > since:
                yield (after.locked - before.unlocked) * 1000


class Parties:
    """Two processes, and a connection that measures what a round trip takes while they are busy."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for _ in range(2):
            mine, its = context.Pipe()
            process = context.Process(target=be_party, args=(url, its), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(mine.send, None)
            self._pipes.append(mine)
        self._line = stack.enter_context(_socket_to(url))

    def measure(self, turn: Turn) -> tuple[list[float], list[float]]:
        """The wake-ups of a turn, and round trips during it, in ms."""
        since = time.monotonic() + WARM_UP
        for pipe in self._pipes:
            pipe.send(turn)
        trips = []
        while not all(pipe.poll() for pipe in self._pipes):
            trips.append(self._round_trip())
            time.sleep(0.005)
        return list(wake_ups([pipe.recv() for pipe in self._pipes], since)), trips

    def _round_trip(self) -> float:
        began = time.perf_counter()
        self._line.sendall(b"PING\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            answer += self._line.recv(64)
        return (time.perf_counter() - began) * 1000


def _socket_to(url: str) -> socket.socket:
    if url.startswith("unix://"):
        line = socket.socket(socket.AF_UNIX)
        line.connect(url.removeprefix("unix://"))
        return line
    host, _, port = url.removeprefix("redis://").partition(":")
    line = socket.create_connection((host, int(port)))
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


# What is measured


@dataclass(frozen=True)
class Figures:
    """What was measured, in milliseconds."""

    median: float
    p99: float
    count: int

    @classmethod
    def of(cls, measured: list[float]) -> Figures:
        measured = sorted(measured)
        return cls(statistics.median(measured), measured[math.ceil(0.99 * len(measured)) - 1], len(measured))


@dataclass(frozen=True)
class Result:
    """A workload's figures, the peer's if it has one, and what was wanted. ``met`` is None where nothing was."""

    workload: str
    ours: Figures
    redis_py: Figures | None = None
    round_trip: float | None = None
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Workload:
    """``hold`` and ``rest`` of both sides, in seconds: who polls every 100 ms must rest for longer, to be beaten."""

    name: str
    slots: int
    ours: tuple[tuple[float, float] | None, float]
    theirs: tuple[tuple[float, float] | None, float]
    has_target: bool = True


ONE = Workload("1 waiter", 1, ((0.005, 0.015), 0.005), ((0.12, 0.2), 0.11))


def crowd(slots: int) -> Workload:
    return Workload(f"{slots} waiters on {slots} slots", slots, ((0.2, 0.5), 0.12), ((0.2, 0.5), 0.12))


def burst(slots: int) -> Workload:
    return Workload(f"{slots} slots at the same moment", slots, (None, 0.15), (None, 0.15), has_target=False)


def wake(parties: Parties, workload: Workload, seconds: float, rounds: int) -> Result:
    """Both sides in turns of so many seconds."""
    measured: dict[str, list[float]] = {"ours": [], "redis-py": []}
    trips: list[float] = []
    for number in range(rounds):
        for side in list(measured)[:: 1 if number % 2 else -1]:
            hold, rest = workload.ours if side == "ours" else workload.theirs
            least = len(measured[side]) + LEAST
            while len(measured[side]) < least:  # who polls wakes but a few times a second
                turn = Turn(side, workload.slots, hold, rest, time.monotonic() + WARM_UP + seconds)
                found, found_trips = parties.measure(turn)
                measured[side] += found
                if side == "ours":
                    trips += found_trips
    ours, theirs, round_trip = Figures.of(measured["ours"]), Figures.of(measured["redis-py"]), statistics.median(trips)
    if not workload.has_target:
        return Result(workload.name, ours, theirs, round_trip)
    most = 2 * round_trip + ABOVE_TWO_TRIPS_MS
    target, met = f"median ≤ {most:.2f}", ours.median <= most
    if workload.slots > 1:
        target, met = f"{target}, p99 ≤ {P99_MS:g}", met and ours.p99 <= P99_MS
    return Result(workload.name, ours, theirs, round_trip, target, met)


@asynccontextmanager
async def _listening(engine: AsyncLockEngine, lags: list[float]) -> AsyncIterator[asyncio.Task[None]]:
    """Notes how long after its date the end of each lock is heard, in ms. Redis runs on this machine, by its clock."""
    began = asyncio.Event()

    async def listen() -> None:
        async for event in engine.events():
            if event.type == "locked":
                began.set()
            elif event.type == "expired":
                lags.append((time.time() - event.at.timestamp()) * 1000)

    task = asyncio.create_task(listen())
    while not began.is_set():  # until it surely listens
        await engine.unlock(await engine.lock("slot-0", lock_for=LOCK_FOR))
        await asyncio.sleep(0.01)
    try:
        yield task
    finally:
        task.cancel()


async def wave(url: str, locks: int) -> Result:
    """Locks that all end within one second."""
    lags: list[float] = []
    async with AsyncLockEngine.from_url(url, unregistered="allow") as engine, _listening(engine, lags):
        row = 40
        begins = datetime.now(UTC) + timedelta(seconds=1 + locks / 8000)
        for first in range(0, locks, row):
            ends = begins + timedelta(seconds=random.random())
            await engine.lock_many((f"wave-{first + seat}" for seat in range(row)), lock_until=ends)
        assert datetime.now(UTC) < begins, "this machine is too slow to make them in time"
        while len(lags) < locks:  # noqa: ASYNC110 - it is no matter when this ends
            await asyncio.sleep(0.05)
    figures = Figures.of(lags)
    return Result(
        f"{locks:,} locks end within 1 s", figures, target=f"p99 ≤ {WAVE_P99_MS:g}", met=figures.p99 <= WAVE_P99_MS
    )


async def one_by_one(url: str, seconds: float) -> Result:
    """Locks that end now and then."""
    lags: list[float] = []
    async with AsyncLockEngine.from_url(url) as engine, _listening(engine, lags):

        async def lock(slot: str) -> None:
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                life = random.uniform(0.02, 0.5)
                await engine.lock(slot, lock_for=timedelta(seconds=life))
                await asyncio.sleep(life + random.uniform(0.1, 0.3))

        await asyncio.gather(*(lock(f"slot-{number}") for number in range(4)))
        await asyncio.sleep(0.5)
    figures = Figures.of(lags)
    return Result("locks end one by one", figures, target=f"p99 ≤ {IDLE_P99_MS:g}", met=figures.p99 <= IDLE_P99_MS)


@dataclass(frozen=True)
class Idle:
    """What one engine that looks for ends costs the server while nothing happens, a second."""

    calls: float
    server_microseconds: float


def idle(url: str, seconds: float) -> Idle:
    with redis.Redis.from_url(url) as admin:
        admin.config_resetstat()
        began = time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        info: Any = admin.info("commandstats")
    script = info.get("cmdstat_evalsha", {"calls": 0, "usec": 0})
    return Idle(script["calls"] / elapsed, script["usec"] / elapsed)


@contextmanager
def sweepers(url: str, count: int) -> Iterator[None]:
    """Processes that do nothing but look for locks that ended."""
    command = [PROGRAM, "sidecar", "--name", "bench-events", "--url", url]
    with ExitStack() as stack:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        for process in [subprocess.Popen(command, **pipes) for _ in range(count)]:
            stack.enter_context(process)
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert b"hears" in process.stdout.readline()
        yield


def run(url: str, seconds: float, rounds: int, slots: int, locks: int) -> Iterator[Result | Idle]:
    """All of them, one after the other."""
    with LockEngine.from_url(url) as engine:
        engine.create_slots(registered_slot(f"slot-{number}") for number in range(max(slots, 4)))
    with ExitStack() as stack:
        parties = Parties(url, stack)
        for workload in (ONE, crowd(slots), burst(slots)):
            yield wake(parties, workload, seconds, rounds)
    with sweepers(url, SWEEPERS), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.run(wave(url, locks))
    with sweepers(url, 1), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield idle(url, seconds)
        yield runner.run(one_by_one(url, seconds * rounds))


def show(results: list[Result], quiet: Idle, circumstances: Circumstances) -> None:
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("ms", "ours, median", "p99", "redis-py, median", "p99", "round trip", "target", ""):
        table.add_column(heading, justify="left" if heading in ("ms", "") else "right", no_wrap=True)
    for result in results:
        theirs = result.redis_py
        table.add_row(
            result.workload,
            f"{result.ours.median:.2f}",
            f"{result.ours.p99:.2f}",
            f"{theirs.median:.1f}" if theirs else "",
            f"{theirs.p99:.1f}" if theirs else "",
            f"{result.round_trip:.3f}" if result.round_trip else "",
            result.target,
            {True: "ok", False: "missed", None: ""}[result.met],
        )
    console = Console(highlight=False, width=140)
    console.print(table)
    console.print(
        f"An idle engine that looks for ends: {quiet.calls:.1f} calls a second, {quiet.server_microseconds:,.0f} µs of "
        "the server's time."
    )
    print(", ".join(f"{name} {value}" for name, value in circumstances.items()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.events", description="How soon waiters wake.")
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=200, help="with a waiter each (default: %(default)s)")
    parser.add_argument("--locks", type=int, default=20_000, help="that end within a second (default: %(default)s)")
    parser.add_argument("--transport", choices=["tcp", "unix"], default="tcp", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args(argv)
    if options.seconds < 0.5 or options.rounds < 1 or not 2 <= options.slots <= 500 or options.locks < 100:
        parser.error("--seconds must be 0.5 or more, --rounds 1 or more, --slots 2 to 500, --locks 100 or more")
    results: list[Result] = []
    quiet = Idle(0, 0)
    with private_server(options.transport) as (url, circumstances):
        for found in run(url, options.seconds, options.rounds, options.slots, options.locks):
            if isinstance(found, Idle):
                quiet = found
            else:
                results.append(found)
    circumstances |= {"seconds": options.seconds, "rounds": options.rounds}
    if options.json:
        facts = {"results": [asdict(result) for result in results], "idle": asdict(quiet)}
        print(json.dumps(facts | {"circumstances": circumstances}, indent=2))
    else:
        show(results, quiet, circumstances)
    return int(options.check and any(result.met is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
