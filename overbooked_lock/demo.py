"""The demo: hundreds of contenders race for a few slots, then one that holds a slot is killed.

It checks itself. Each contender notes when a slot was its own: from when the engine's answer came in until just
before it asked to unlock, or until the lock's life was over. The monotonic clock is one for all processes of a
machine, so these times compare; two that overlap on one slot are a double lock.
"""

# ruff: noqa: S311 - chance decides here who goes where, and keeps no secret

from __future__ import annotations

import asyncio
import math
import multiprocessing
import queue
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overbooked_lock.aio import AsyncLockEngine
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.engine import LockEngine
from overbooked_lock.errors import LockKeyInvalid, SlotLocked
from overbooked_lock.models import Lock, NewSlot

_NAMESPACE = "overbooked-lock-demo"  # whatever else is in a Redis is left alone
_LOCK_FOR = timedelta(milliseconds=250)
_THINKING = 0.002, 0.04  # seconds from lock to unlock
_FORGOTTEN = 0.05  # of the locks, nobody unlocks
_RETRY = 0.04, 0.16  # seconds until one who was refused tries again
_CRASH = 2.5  # seconds that the killed one's lock lasts, or less if the race is shorter
_SEATS_IN_ROW = 36
_TICK = 0.1  # seconds between two looks at what goes on
_PATIENCE = 60.0  # seconds that a process waits for the others

_spawned = multiprocessing.get_context("spawn")


class Attempt(NamedTuple):
    """One try to lock a slot. Times are monotonic, in seconds; the last two fields are 0 if it was refused."""

    contender: str
    slot_id: str
    asked_at: float
    answered_at: float
    held_until: float = 0.0
    fencing_token: int = 0

    @property
    def granted(self) -> bool:
        """Whether the slot was locked."""
        return self.fencing_token > 0


@dataclass(frozen=True)
class Crash:
    """What became of a slot whose holder was killed.

    Attributes:
        slot_id: The slot.
        locked_for_s: How long the lock outlived its holder, in seconds.
        free_for_s: How long after the lock's end the next in line had the slot, in seconds.
        fencing_tokens: The holder's, and that of the next in line.
    """

    slot_id: str
    locked_for_s: float
    free_for_s: float
    fencing_tokens: tuple[int, int]


@dataclass(frozen=True)
class Figures:
    """What the demo found. ``double_locks`` and ``stale_tokens`` have a line for each thing that must not be."""

    attempts: int
    granted: int
    refused: int
    latency_ms: dict[str, float]
    slots: dict[str, dict[str, int]]
    crash: Crash
    double_locks: list[str]
    stale_tokens: list[str]

    @property
    def clean(self) -> bool:
        """There was nothing that must not be."""
        return not self.double_locks and not self.stale_tokens


def run(console: Console, *, seconds: float, contenders: int, slots: int, processes: int, url: str | None) -> Figures:
    """Runs the demo on the Redis at ``url`` or on a private server, and shows it on ``console``.

    Raises what the engine raises.
    """
    processes = min(processes, contenders)
    with (
        _store(url) as store,
        LockEngine.from_url(store, namespace=_NAMESPACE) as engine,
        _registered(engine, slots) as slot_ids,
    ):
        server = "a private server" if url is None else "your server"  # a URL may hold a password
        console.print(f"{contenders} contenders in {processes} processes race for {slots} slots on {server}.\n")
        race = _Race(store, slot_ids, seconds)
        attempts = _watch_race(console, engine, race, contenders, processes)
        latency_ms = _latency_ms(attempts)
        _show_race(console, attempts, latency_ms, seconds)
        crash, grants = _watch_crash(console, engine, race)
        attempts += grants
        double_locks, stale_tokens = judge(attempts)
        granted = sum(attempt.granted for attempt in attempts)
        figures = Figures(
            attempts=len(attempts),
            granted=granted,
            refused=len(attempts) - granted,
            latency_ms=latency_ms,
            slots=_winners(attempts),
            crash=crash,
            double_locks=double_locks,
            stale_tokens=stale_tokens,
        )
        _show_verdict(console, figures)
    return figures


def judge(attempts: Iterable[Attempt]) -> tuple[list[str], list[str]]:
    """A line for each double lock among the attempts, and one for each fencing token that did not rise."""
    double_locks, stale_tokens = list[str](), list[str]()
    longest, last = dict[str, Attempt](), dict[str, Attempt]()
    for grant in sorted((attempt for attempt in attempts if attempt.granted), key=lambda grant: grant.answered_at):
        slot_id = grant.slot_id
        held, before = longest.get(slot_id), last.get(slot_id)
        if held and grant.answered_at < held.held_until:
            double_locks.append(f"{slot_id}: {held.contender} still held it when {grant.contender} got it")
        if before and grant.fencing_token <= before.fencing_token:
            stale_tokens.append(f"{slot_id}: fencing token {grant.fencing_token} came after {before.fencing_token}")
        last[slot_id] = grant
        longest[slot_id] = max(held or grant, grant, key=lambda grant: grant.held_until)
    return double_locks, stale_tokens


# Where it takes place


@contextmanager
def _store(url: str | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="overbooked-lock-") as folder, EmbeddedServer(folder) as server:
        yield server.url


@contextmanager
def _registered(engine: LockEngine, count: int) -> Iterator[list[str]]:
    begin = datetime(2030, 6, 1, 20, tzinfo=UTC)
    end = begin + timedelta(hours=2)
    seats = [f"seat-{number:0{len(str(count))}}" for number in range(1, count + 1)]
    engine.create_slots(NewSlot(id=seat, resource_id="stage", start_date=begin, end_date=end) for seat in seats)
    try:
        yield seats
    finally:
        for seat in seats:
            engine.delete_slot(seat)


# What processes do


Report = list[Attempt] | BaseException
"""What a process says: what its contenders did lately (nothing yet, when it is ready), or why it failed."""


@dataclass(frozen=True)
class _Race:
    """What a process must know to take part."""

    url: str
    slot_ids: Sequence[str]
    seconds: float


def _take_part(race: _Race, names: Sequence[str], in_tasks: bool, reports: Queue[Report], start: Event) -> None:
    _ignore_ctrl_c()
    attempts, over = deque[Attempt](), threading.Event()

    def report() -> None:
        last = False
        while not last:
            last = over.wait(_TICK)
            reports.put([attempts.popleft() for _ in range(len(attempts))])

    reports.put([])
    if not start.wait(_PATIENCE):
        return  # whoever was to start us is gone
    reporter = threading.Thread(target=report)
    reporter.start()
    stop_at = time.monotonic() + race.seconds
    try:
        if in_tasks:
            asyncio.run(_run_tasks(race, names, stop_at, attempts.append))
        else:
            _run_threads(race, names, stop_at, attempts.append)
    except Exception as error:  # noqa: BLE001 - it is raised again in the process that can show it
        reports.put(error)
    finally:
        over.set()
        reporter.join()


def _run_threads(race: _Race, names: Sequence[str], stop_at: float, note: Callable[[Attempt], None]) -> None:
    with LockEngine.from_url(race.url, namespace=_NAMESPACE) as engine, ThreadPoolExecutor(len(names)) as pool:
        for contender in [pool.submit(_contend, engine, race, name, stop_at, note) for name in names]:
            contender.result()


async def _run_tasks(race: _Race, names: Sequence[str], stop_at: float, note: Callable[[Attempt], None]) -> None:
    async with AsyncLockEngine.from_url(race.url, namespace=_NAMESPACE) as engine:
        await asyncio.gather(*(_contend_async(engine, race, name, stop_at, note) for name in names))


def _contend(engine: LockEngine, race: _Race, name: str, stop_at: float, note: Callable[[Attempt], None]) -> None:
    time.sleep(random.uniform(0, _RETRY[1]))
    while (asked_at := time.monotonic()) < stop_at:
        slot_id = random.choice(race.slot_ids)
        try:
            lock = engine.lock(slot_id, lock_for=_LOCK_FOR)
        except SlotLocked:
            note(Attempt(name, slot_id, asked_at, time.monotonic()))
            time.sleep(random.uniform(*_RETRY))
            continue
        answered_at = time.monotonic()
        if random.random() < _FORGOTTEN:
            note(_grant(name, lock, asked_at, answered_at))
            continue
        time.sleep(random.uniform(*_THINKING))
        note(_grant(name, lock, asked_at, answered_at, unlocked_at=time.monotonic()))
        # On a busy machine a lock can end, and be another's, before we come to this.
        with suppress(LockKeyInvalid):
            engine.unlock(lock)


async def _contend_async(
    engine: AsyncLockEngine, race: _Race, name: str, stop_at: float, note: Callable[[Attempt], None]
) -> None:
    await asyncio.sleep(random.uniform(0, _RETRY[1]))
    while (asked_at := time.monotonic()) < stop_at:
        slot_id = random.choice(race.slot_ids)
        try:
            lock = await engine.lock(slot_id, lock_for=_LOCK_FOR)
        except SlotLocked:
            note(Attempt(name, slot_id, asked_at, time.monotonic()))
            await asyncio.sleep(random.uniform(*_RETRY))
            continue
        answered_at = time.monotonic()
        if random.random() < _FORGOTTEN:
            note(_grant(name, lock, asked_at, answered_at))
            continue
        await asyncio.sleep(random.uniform(*_THINKING))
        note(_grant(name, lock, asked_at, answered_at, unlocked_at=time.monotonic()))
        with suppress(LockKeyInvalid):
            await engine.unlock(lock)


def _grant(name: str, lock: Lock, asked_at: float, answered_at: float, unlocked_at: float = math.inf) -> Attempt:
    ends_at = time.monotonic() + lock.remaining().total_seconds()
    return Attempt(name, lock.slot_id, asked_at, answered_at, min(ends_at, unlocked_at), lock.fencing_token)


def _lock_and_hang(race: _Race, reports: Queue[Report]) -> None:
    _ignore_ctrl_c()
    with LockEngine.from_url(race.url, namespace=_NAMESPACE) as engine:
        asked_at = time.monotonic()
        lock_for = timedelta(seconds=min(_CRASH, race.seconds))
        lock = engine.lock(race.slot_ids[0], lock_for=lock_for, wait=timedelta(seconds=_PATIENCE))
        reports.put([_grant("the one that was killed", lock, asked_at, time.monotonic())])
        time.sleep(_PATIENCE)


def _ignore_ctrl_c() -> None:
    # At a terminal it reaches every process, and the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _running(processes: Sequence[BaseProcess]) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _hear(reports: Queue[Report], processes: Iterable[BaseProcess]) -> list[Attempt] | None:
    """The next report, or None if none has come for a while. Raises what went wrong in a process."""
    try:
        report = reports.get(timeout=_TICK)
    except queue.Empty:
        if any(process.exitcode for process in processes):
            raise RuntimeError("a process of the demo died") from None
        return None
    if isinstance(report, BaseException):
        raise report
    return report


# What is shown


def _watch_race(console: Console, engine: LockEngine, race: _Race, contenders: int, count: int) -> list[Attempt]:
    reports: Queue[Report] = _spawned.Queue()
    start = _spawned.Event()
    names = [f"contender {number}" for number in range(1, contenders + 1)]
    # Every second process has tasks instead of threads.
    processes = [
        _spawned.Process(target=_take_part, args=(race, names[at::count], at % 2 == 1, reports, start), daemon=True)
        for at in range(count)
    ]
    attempts, granted, ready = list[Attempt](), 0, 0
    with _running(processes), Live(console=console, transient=True) as live:
        while ready < count:
            live.update(f"{ready} of {count} processes are ready")
            ready += _hear(reports, processes) is not None
        start.set()
        started_at = time.monotonic()
        while True:
            running = any(process.is_alive() for process in processes)
            news = _hear(reports, processes)
            if news is None and not running:
                return attempts
            attempts += news or []
            granted += sum(attempt.granted for attempt in news or [])
            held = {lock.slot_id for lock in engine.list_locks()}
            live.update(_picture(race, held, granted, len(attempts), time.monotonic() - started_at))


def _picture(race: _Race, held: set[str], granted: int, attempts: int, seconds: float) -> Table:
    picture = Table.grid()
    picture.add_row(ProgressBar(race.seconds, min(seconds, race.seconds), width=2 * _SEATS_IN_ROW - 1))
    picture.add_row("")
    for at in range(0, len(race.slot_ids), _SEATS_IN_ROW):
        row = race.slot_ids[at : at + _SEATS_IN_ROW]
        picture.add_row(Text(" ").join(Text("■", "red" if slot_id in held else "green") for slot_id in row))
    picture.add_row("")
    picture.add_row(
        f"[red]{len(held)} held[/red]   [green]{len(race.slot_ids) - len(held)} free[/green]   "
        f"{granted / seconds:,.0f} locks/s   {attempts / seconds:,.0f} attempts/s"
    )
    return picture


def _show_race(console: Console, attempts: Sequence[Attempt], latency_ms: dict[str, float], seconds: float) -> None:
    granted = sum(attempt.granted for attempt in attempts)
    refused = len(attempts) - granted
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("attempts", f"{len(attempts):,}", f"{len(attempts) / seconds:,.0f} a second")
    table.add_row("locks", f"{granted:,}", f"{granted / seconds:,.0f} a second")
    table.add_row("refused", f"{refused:,}", f"{refused / max(1, len(attempts)):.0%}: another held the slot")
    table.add_row("latency", f"{latency_ms['p50']:.1f} ms", "from asking to the answer, p50")
    table.add_row("", f"{latency_ms['p99']:.1f} ms", "p99")
    console.print(table)
    console.print()
    console.print(_winners_table(_winners(attempts)))


def _winners_table(winners: dict[str, dict[str, int]]) -> Table:
    columns = min(3, len(winners))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for _ in range(columns):
        table.add_column("SLOT")
        table.add_column("LOCKS", justify="right")
        table.add_column("WINNERS ", justify="right")
    cells = [(slot_id, str(counts["locks"]), f"{counts['winners']} ") for slot_id, counts in winners.items()]
    height = math.ceil(len(cells) / max(1, columns))
    for row in range(height):
        table.add_row(*(text for cell in cells[row::height] for text in cell))
    return table


def _watch_crash(console: Console, engine: LockEngine, race: _Race) -> tuple[Crash, list[Attempt]]:
    slot_id = race.slot_ids[0]
    reports: Queue[Report] = _spawned.Queue()
    process = _spawned.Process(target=_lock_and_hang, args=(race, reports), daemon=True)
    with _running([process]):
        news = None
        while not news:
            news = _hear(reports, [process])
    # _running has killed it.
    killed_at = time.monotonic()
    [dead] = news
    console.print(
        f"\n{slot_id} is locked for {dead.held_until - dead.answered_at:.1f} s by a process that was killed (SIGKILL).",
        soft_wrap=True,
    )
    with ThreadPoolExecutor(1) as pool, Live(console=console, transient=True) as live:
        waiting = pool.submit(_wait_in_line, engine, slot_id)
        while wait([waiting], _TICK).not_done:
            state = "free" if engine.get_slot(slot_id).locked_until is None else "locked"
            live.update(
                f"{slot_id} is {state}, {dead.held_until - time.monotonic():.1f} s from its date. "
                "The next in line waits for it."
            )
    following = waiting.result()
    free_for = following.answered_at - dead.held_until
    console.print(
        f"It stayed locked for {dead.held_until - killed_at:.1f} s, until its date. "
        f"{1000 * free_for:.0f} ms later the next in line had it.\n"
        f"Fencing tokens: {dead.fencing_token}, then {following.fencing_token}.",
        soft_wrap=True,
    )
    tokens = dead.fencing_token, following.fencing_token
    crash = Crash(slot_id, round(dead.held_until - killed_at, 3), round(free_for, 3), tokens)
    return crash, [dead, following]


def _wait_in_line(engine: LockEngine, slot_id: str) -> Attempt:
    asked_at = time.monotonic()
    lock = engine.lock(slot_id, lock_for=_LOCK_FOR, wait=timedelta(seconds=_PATIENCE))
    return _grant("the next in line", lock, asked_at, time.monotonic())


def _show_verdict(console: Console, figures: Figures) -> None:
    lines = figures.double_locks + figures.stale_tokens
    for line in lines[:20]:
        console.print(line, style="red")
    tokens = (
        f"{len(figures.stale_tokens)} fencing tokens did not rise"
        if figures.stale_tokens
        else "all fencing tokens rose"
    )
    console.print(
        f"\n{len(figures.double_locks)} double locks in {figures.granted:,} grants, {tokens}.",
        style="bold green" if figures.clean else "bold red",
    )


def _latency_ms(attempts: Sequence[Attempt]) -> dict[str, float]:
    taken = [1000 * (attempt.answered_at - attempt.asked_at) for attempt in attempts]
    percentiles = statistics.quantiles(taken, n=100, method="inclusive")
    return {"p50": round(percentiles[49], 3), "p99": round(percentiles[98], 3)}


def _winners(attempts: Iterable[Attempt]) -> dict[str, dict[str, int]]:
    holders: dict[str, list[str]] = {}
    for attempt in attempts:
        if attempt.granted:
            holders.setdefault(attempt.slot_id, []).append(attempt.contender)
    return {slot_id: {"locks": len(names), "winners": len(set(names))} for slot_id, names in sorted(holders.items())}
