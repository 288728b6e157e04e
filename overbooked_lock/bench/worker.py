"""A process that gives load: it warms up, waits for the common start, keeps to its loop, and reports every second.

A closed loop has callers that each begin anew when they are done; they come one after the other before the start, since
all of them at once would be a rush that is no part of the load. An open loop has arrivals on a schedule that knows
nothing of the target; what an arrival asks for first is timed from when it was due, so time that it lost because the
target stalled, or because we did, is in the figures. (Leaving it out is known as coordinated omission.)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from overbooked_lock.bench.callers import Caller, Notes
from overbooked_lock.bench.grants import Grants
from overbooked_lock.bench.options import Options
from overbooked_lock.bench.results import new_histogram
from overbooked_lock.bench.scenarios import SCENARIOS, Scenario, Stage
from overbooked_lock.bench.targets import Target, Where

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

clock = time.monotonic

GRACE_S = 15.0
"""How long what is under way at the end may take; then it is cut off."""

_WARM_UP_CALLERS = 32
_SCHEDULES = 1 << 47
"""What the schedules of processes are drawn by: more than there are callers and arrivals."""


@dataclass(frozen=True)
class Job:
    """What a process must know.

    Attributes:
        options: The run's.
        where: The target.
        process: Which process this is, from 0.
        at_a_time: How many callers, or arrivals under way, all processes may have together.
        slot_ids: The run's slots.
        warm_up_ids: Slots that nothing is measured on.
        store_offset_s: What the store's clock shows, less our monotonic clock.
    """

    options: Options
    where: Where
    process: int
    at_a_time: int
    slot_ids: Sequence[str]
    warm_up_ids: Sequence[str]
    store_offset_s: float

    def share(self, of: int) -> int:
        """How many of so many are this process's."""
        return len(range(self.process, of, self.options.processes))


@dataclass(frozen=True)
class Ready:
    """A process has warmed up, and waits for the start."""


@dataclass(frozen=True)
class Tick:
    """What ended in a second of a process. Histograms are encoded; outcomes are done, refused, failed."""

    at_s: float
    seconds: float
    histograms: dict[str, bytes]
    outcomes: dict[str, list[int]]
    cpu_s: float
    in_flight: int
    dropped: int


@dataclass(frozen=True)
class Final:
    """What a process noted of the whole run; ``before`` are the outcomes from before the start."""

    before: dict[str, list[int]]
    spans: dict[str, bytes]
    grants: Grants
    counts: Counter[str]
    failures: Counter[str]
    attempts: list[int]
    wins: list[int]
    batches: Counter[int]
    arrivals: int
    lateness: bytes
    unfinished: int
    loop: str


Message = Ready | Tick | Final | BaseException


def work(job: Job, parent: Connection) -> None:
    """Runs a process, to its end. What it has to say goes to ``parent``, which says when it starts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at a terminal it reaches all; the first process ends the others
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            parent.send(runner.run(_Worker(job, parent).run()))
    except BrokenPipeError:
        pass  # nobody is left to report to
    except BaseException as error:  # noqa: BLE001 - it is raised again in the process that can show it
        with contextlib.suppress(OSError):
            parent.send(error)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  where there is none for the platform, the standard loop does
    except ImportError:
        return None
    return uvloop.Loop


def schedule(options: Options, process: int, start: float, end: float) -> Iterator[tuple[int, float]]:
    """The arrivals of a process of an open loop: their numbers, and when they are due. The same for the same seed."""
    assert options.rate is not None  # noqa: S101 - for the type
    mean_s = options.processes / options.rate
    rng = _random(options.seed, _SCHEDULES + process)
    poisson = options.arrivals == "poisson"
    # At a constant rate the processes take turns.
    due = start + (rng.expovariate(1 / mean_s) if poisson else process / options.rate)
    for number in itertools.count(process, options.processes):
        if due >= end:
            return
        yield number, due
        due += rng.expovariate(1 / mean_s) if poisson else mean_s


def entrances(options: Options, process: int, at_a_time: int, start: float) -> Iterator[tuple[int, float]]:
    """The callers of a process of a closed loop: their numbers, and when they come: all by the start."""
    ramp_s = options.ramp.total_seconds()
    for number in range(process, at_a_time, options.processes):
        yield number, start - ramp_s * (1 - number / at_a_time)


def _random(seed: int, number: int) -> random.Random:
    return random.Random(seed << 48 | number)  # noqa: S311 - no secret


class _Worker:
    def __init__(self, job: Job, parent: Connection) -> None:
        self._job, self._parent, self._options = job, parent, job.options
        self._notes = Notes(len(job.slot_ids))
        self._keys = itertools.count(job.process << 40)
        self._batches: Counter[int] = Counter()
        self._lateness: HdrHistogram = new_histogram()
        self._before: dict[str, list[int]] = {}
        self._in_flight = self._dropped = self._arrivals = self._unfinished = 0

    async def run(self) -> Final:
        options, job = self._options, self._job
        scenario = SCENARIOS[options.scenario](
            Stage(len(job.slot_ids), job.process, options.processes, options.seed, job.store_offset_s)
        )
        async with job.where.open(job.process, max(1, job.share(job.at_a_time))) as target:
            await self._warm_up(target)
            async with scenario.running(target):
                gc.collect()
                gc.freeze()  # what is there now stays: the collector need not look at it
                self._parent.send(Ready())
                start: float = await asyncio.to_thread(self._parent.recv)
                await asyncio.sleep(start - options.ramp.total_seconds() - clock())
                await self._load_and_tell(scenario, target, start)
        notes = self._notes
        return Final(
            before=self._before,
            spans={name: histogram.encode() for name, histogram in notes.spans.items()},
            grants=notes.grants,
            counts=scenario.counts,
            failures=notes.failures,
            attempts=notes.attempts,
            wins=notes.wins,
            batches=self._batches,
            arrivals=self._arrivals,
            lateness=self._lateness.encode(),
            unfinished=self._unfinished,
            loop=type(asyncio.get_running_loop()).__module__,
        )

    async def _load_and_tell(self, scenario: Scenario, target: Target, start: float) -> None:
        loading = asyncio.create_task(self._load(scenario, target, start))
        telling = asyncio.create_task(self._tick(target, start))
        await asyncio.wait([loading, telling], return_when=asyncio.FIRST_COMPLETED)
        # If nobody listens any more, nobody wants the load.
        for task in (loading, telling):
            task.cancel()
            await asyncio.wait([task])
        for task in (telling, loading):
            if not task.cancelled():
                task.result()

    # Load

    async def _warm_up(self, target: Target) -> None:
        """Connects, and has the server know the scripts: nothing that is done for the first time is measured."""
        job = self._job
        # What follows is the rest of the warm-up.
        until = clock() + (self._options.warm_up - self._options.ramp).total_seconds()
        notes, count = Notes(len(job.warm_up_ids)), min(_WARM_UP_CALLERS, max(1, job.share(job.at_a_time)))

        async def call(number: int) -> None:
            rng = random.Random(number)  # noqa: S311 - no secret
            caller = Caller(number, rng, target, job.warm_up_ids, notes, self._keys)
            while clock() < until:
                if held := await caller.lock(rng.randrange(len(job.warm_up_ids))):
                    await caller.unlock(held)

        await asyncio.gather(*(call(number) for number in range(count)))

    async def _load(self, scenario: Scenario, target: Target, start: float) -> None:
        end = start + self._options.duration.total_seconds()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(end - clock() + GRACE_S), asyncio.TaskGroup() as visits:
                if self._options.rate is None:
                    self._closed_loop(scenario, target, visits, start, end)
                else:
                    await self._open_loop(scenario, target, visits, start, end)
        self._unfinished, self._in_flight = self._in_flight, 0

    def _closed_loop(
        self, scenario: Scenario, target: Target, visits: asyncio.TaskGroup, start: float, end: float
    ) -> None:
        job = self._job

        async def call(number: int, comes: float) -> None:
            await asyncio.sleep(comes - clock())
            caller = Caller(number, self._rng(number), target, job.slot_ids, self._notes, self._keys)
            self._in_flight += 1
            while clock() < end:
                await scenario.visit(caller)
            self._in_flight -= 1

        for number, comes in entrances(self._options, job.process, job.at_a_time, start):
            visits.create_task(call(number, comes))

    async def _open_loop(
        self, scenario: Scenario, target: Target, visits: asyncio.TaskGroup, start: float, end: float
    ) -> None:
        job = self._job
        most = max(1, job.share(job.at_a_time))

        async def arrive(number: int, due: float) -> None:
            caller = Caller(number, self._rng(number), target, job.slot_ids, self._notes, self._keys, due)
            await scenario.visit(caller)
            self._in_flight -= 1

        # All who are due by now have come, in one go: more than there is room for are dropped, however late we are.
        now = clock()
        for number, due in schedule(self._options, job.process, start, end):
            if due > now:
                await asyncio.sleep(max(0.0, due - clock()))
                now = clock()
            self._arrivals += 1
            self._lateness.record_value(max(1, int((clock() - due) * 1e6)))
            if self._in_flight >= most:
                self._dropped += 1
                continue
            self._in_flight += 1
            visits.create_task(arrive(number, due))

    def _rng(self, number: int) -> random.Random:
        return _random(self._options.seed, number)

    # Reports

    async def _tick(self, target: Target, start: float) -> None:
        """Reports each second from the start on, and what is left of the last one when it is cancelled."""
        await asyncio.sleep(start - clock())
        self._before = self._notes.begin()
        target.watch_batches(lambda size: self._batches.update((size,)))
        duration = self._options.duration.total_seconds()
        began, cpu, dropped = start, time.process_time(), 0
        for number in itertools.count(1):
            over = False
            try:
                # The last second of the load ends with it, so that what is answered later is told apart.
                boundary = min(number, duration) if number - 1 < duration else number
                await asyncio.sleep(start + boundary - clock())
            except asyncio.CancelledError:
                over = True
            tally, now, cpu_now = self._notes.next_second(), clock(), time.process_time()
            if not over or tally.outcomes or self._dropped > dropped:
                self._parent.send(
                    Tick(
                        at_s=began - start,
                        seconds=now - began,
                        histograms={name: histogram.encode() for name, histogram in tally.histograms.items()},
                        outcomes=tally.outcomes,
                        cpu_s=cpu_now - cpu,
                        in_flight=self._in_flight,
                        dropped=self._dropped - dropped,
                    )
                )
            if over:
                return
            began, cpu, dropped = now, cpu_now, self._dropped
