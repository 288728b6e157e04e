"""A run, from its first slot to the last trace that is removed.

The process that calls :func:`run` prepares the slots, starts the others, listens to them and to the server's INFO, and
counts again in the store at the end. It gives no load itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import platform
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from hdrh.histogram import HdrHistogram

from overbooked_lock import __version__
from overbooked_lock.bench import verdicts, words
from overbooked_lock.bench.callers import WAITING
from overbooked_lock.bench.grants import Grants
from overbooked_lock.bench.observing import Look, Server, machine
from overbooked_lock.bench.options import Options
from overbooked_lock.bench.results import (
    BatchSize,
    Latency,
    Operation,
    Run,
    Second,
    Span,
    TargetFacts,
    contention_of,
    new_histogram,
)
from overbooked_lock.bench.scenarios import SCENARIOS
from overbooked_lock.bench.succession import succession
from overbooked_lock.bench.targets import Kind, Where
from overbooked_lock.bench.targets.reaching import reach
from overbooked_lock.bench.verdicts import Evidence, Recount
from overbooked_lock.bench.worker import Final, Job, Message, Ready, Tick, work
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import InvalidArgument, OverbookedError

_spawned = multiprocessing.get_context("spawn")
_START_IN_S = 0.1
_OUTCOMES = ("done", "refused", "failed")


class Watcher(Protocol):
    """Who is told how a run goes."""

    def phase(self, text: str) -> None:
        """What is done now."""

    def second(self, second: Second) -> None:
        """A second of the run is over."""


class _Nobody:
    def phase(self, text: str) -> None:
        pass

    def second(self, second: Second) -> None:
        pass


def run(options: Options, watcher: Watcher | None = None) -> Run:
    """Runs a scenario, and removes what it made, also when it is interrupted.

    Its processes are spawned, so a script that calls it does that under ``if __name__ == "__main__":``.

    Raises InvalidArgument if the target lacks what the scenario needs, StoreUnavailable if it can't be used.
    """
    watcher = watcher or _Nobody()
    with _target(options) as where, asyncio.Runner() as runner:
        where.check(options.scenario, SCENARIOS[options.scenario])
        plan = _Plan(options, where)
        watcher.phase("asking whether the target is there")
        offset_s = runner.run(reach(where))
        left = ""
        try:
            watcher.phase(f"registering {plan.slots:,} slots")
            jobs = runner.run(plan.prepare(offset_s))
            with _running(jobs) as processes:
                listener = _Listener(options, where, watcher, processes)
                listener.listen()
            watcher.phase("counting again in the store")
            recount = runner.run(plan.recount())
        finally:
            watcher.phase("removing what the run made")
            try:
                runner.run(plan.remove())
            except OverbookedError as error:  # what was found, or went wrong before, is what counts
                left = f"Not removed: what the run made, if anything. {where.marker} is in all its names. ({error})"
                watcher.phase(left)
        return listener.sum_up(plan, recount, left)


@contextlib.contextmanager
def _target(options: Options) -> Iterator[Where]:
    run_id = secrets.token_hex(4)
    namespace = f"{options.namespace}-{run_id}"
    if options.url is not None:
        kind: Kind = "sidecar" if options.sidecar else "http" if options.url.startswith("http") else "redis"
        yield Where(kind, options.url, options.key or "", options.sidecar or "", run_id, namespace)
        return
    # A service's own Redis mostly writes its log every second; a disk is not what is compared here.
    with (
        tempfile.TemporaryDirectory(prefix="overbooked-lock-bench-") as folder,
        EmbeddedServer(folder, fsync="everysec") as server,
    ):
        yield Where("embedded", server.url, "", "", run_id, namespace)


class _Plan:
    """What a run needs in the target."""

    def __init__(self, options: Options, where: Where) -> None:
        scenario = SCENARIOS[options.scenario]
        self.options, self.where, self.scenario = options, where, scenario
        callers = options.callers or scenario.callers
        self.at_a_time = max(options.processes, callers) if options.rate is None else options.backlog
        self.slots = options.slots or scenario.slots(self.at_a_time)
        if scenario.own_slots and self.slots < self.at_a_time:
            raise InvalidArgument(
                "slots", f"must be at least {self.at_a_time:,}: in this scenario each caller has its own"
            )
        self._warm_up = f"{where.marker}-warm-up"

    async def prepare(self, offset_s: float) -> list[Job]:
        """Registers the slots; gives each process its job. ``offset_s``: of the store's clock."""
        async with self.where.open(-1, 32) as target:
            warm_up_ids = await target.create_slots(self._warm_up, 64)
            slot_ids = await target.create_slots(self.where.marker, self.slots)
        return [
            Job(self.options, self.where, process, self.at_a_time, slot_ids, warm_up_ids, offset_s)
            for process in range(self.options.processes)
        ]

    async def recount(self) -> Recount:
        """What stands in the store of the run's slots."""
        async with self.where.open(-1, 32) as target:
            return await target.recount(self.where.marker)

    async def remove(self) -> None:
        """Removes all that the run made."""
        async with self.where.open(-1, 32) as target:
            await target.remove([self.where.marker, self._warm_up])


@contextlib.contextmanager
def _running(jobs: Sequence[Job]) -> Iterator[dict[Connection, BaseProcess]]:
    processes: dict[Connection, BaseProcess] = {}
    try:
        for job in jobs:
            ours, theirs = _spawned.Pipe()
            process: BaseProcess = _spawned.Process(target=work, args=(job, theirs), daemon=True)
            process.start()
            theirs.close()
            processes[ours] = process
        yield processes
    finally:
        for pipe, process in processes.items():
            process.kill()
            process.join()
            pipe.close()


@dataclass
class _SecondOfAll:
    """The ticks of one second, by the process that reports it."""

    ticks: dict[Connection, Tick] = field(default_factory=dict)
    server_cpu: float | None = None
    machine_cpu: float | None = None


class _Listener:
    """Listens to the processes of a run, and sums up what they say."""

    def __init__(
        self, options: Options, where: Where, watcher: Watcher, processes: dict[Connection, BaseProcess]
    ) -> None:
        self._options, self._where, self._watcher, self._processes = options, where, watcher, processes
        self._histograms: dict[str, HdrHistogram] = {}
        self._outcomes: dict[str, list[int]] = {}
        self._ticks: dict[Connection, int] = dict.fromkeys(processes, 0)
        self._seconds: list[_SecondOfAll] = []
        self._told = 0
        self._shown: list[Second] = []
        self._finals: list[Final] = []
        self._started_at = datetime.now(UTC)
        self._server_name: str | None = None
        self._last = Look(0.0, None, 0.0, 0.0)

    def listen(self) -> None:
        """Starts all processes at one time, and listens until each has said its last."""
        self._watcher.phase(f"warming up for {self._options.warm_up.total_seconds():g} s")
        for pipe in self._processes:
            self._expect_ready(pipe)
        server = Server(self._where)
        self._server_name = server.name()
        start = time.monotonic() + _START_IN_S + self._options.ramp.total_seconds()
        for pipe in self._processes:
            pipe.send(start)
        try:
            self._follow(start, server)
        finally:
            server.close()

    def _expect_ready(self, pipe: Connection) -> None:
        message = self._receive(pipe)
        if not isinstance(message, Ready):
            raise TypeError(f"a process began with {message!r}")

    def _receive(self, pipe: Connection) -> Message:
        try:
            message: Message = pipe.recv()
        except EOFError:
            raise OverbookedError("a process of the harness died") from None
        if isinstance(message, BaseException):
            raise message
        return message

    def _follow(self, start: float, server: Server) -> None:
        speaking = set(self._processes)
        next_look, number = start, 0
        duration = self._options.duration.total_seconds()
        while speaking:
            if time.monotonic() >= next_look:
                if not number:
                    self._started_at = datetime.now(UTC)
                    self._watcher.phase("running")
                self._look(server, number)
                number += 1
                next_look = start + (min(number, duration) if number - 1 < duration else number)
            for pipe in wait(list(speaking), max(0.0, next_look - time.monotonic())):
                assert isinstance(pipe, Connection)  # noqa: S101 - for the type
                message = self._receive(pipe)
                if isinstance(message, Final):
                    speaking.discard(pipe)
                    self._finals.append(message)
                elif isinstance(message, Tick):
                    self._second(self._ticks[pipe]).ticks[pipe] = message
                    self._ticks[pipe] += 1
            # A second is over when all have told of it, the server too.
            self._show(until=min([max(0, number - 1), *(self._ticks[pipe] for pipe in speaking)]))
        self._look(server, number)
        self._show(until=len(self._seconds))

    def _second(self, number: int) -> _SecondOfAll:
        while len(self._seconds) <= number:
            self._seconds.append(_SecondOfAll())
        return self._seconds[number]

    def _look(self, server: Server, number: int) -> None:
        """Looks at how busy the server is, and this machine, when the second before ``number`` is over."""
        look = Look.now(server)
        if number:
            second = self._second(number - 1)
            second.server_cpu, second.machine_cpu = (
                look.server_cpu_since(self._last),
                look.machine_cpu_since(self._last),
            )
        self._last = look

    def _show(self, until: int) -> None:
        for second in self._seconds[self._told : until]:
            if second.ticks:  # else only the server was looked at
                self._shown.append(self._sum_up_second(second))
                self._watcher.second(self._shown[-1])
        self._told = max(self._told, until)

    def _sum_up_second(self, second: _SecondOfAll) -> Second:
        ticks = [second.ticks[pipe] for pipe in self._processes if pipe in second.ticks]
        all_of_it = new_histogram()
        outcomes, by_operation = [0, 0, 0], Counter[str]()
        for tick in ticks:
            for name, encoded in tick.histograms.items():
                self._histograms.setdefault(name, new_histogram()).decode_and_add(encoded)
                if name != WAITING:
                    all_of_it.decode_and_add(encoded)
            for name, ended in tick.outcomes.items():
                totals = self._outcomes.setdefault(name, [0, 0, 0])
                for at, count in enumerate(ended):
                    totals[at] += count
                    outcomes[at] += count
                by_operation[name] += ended[0] + ended[1]
        any_ended = all_of_it.get_total_count() > 0
        return Second(
            at_s=round(min(tick.at_s for tick in ticks), 3),
            seconds=max(tick.seconds for tick in ticks),
            outcomes=dict(zip(_OUTCOMES, outcomes, strict=True)),
            by_operation=dict(by_operation),
            p50_ms=all_of_it.get_value_at_percentile(50) / 1000 if any_ended else None,
            p99_ms=all_of_it.get_value_at_percentile(99) / 1000 if any_ended else None,
            max_ms=all_of_it.get_max_value() / 1000 if any_ended else None,
            in_flight=sum(tick.in_flight for tick in ticks),
            dropped=sum(tick.dropped for tick in ticks),
            harness_cpu=[tick.cpu_s / tick.seconds for tick in ticks if tick.seconds],
            server_cpu=second.server_cpu,
            machine_cpu=second.machine_cpu,
        )

    # At the end

    def sum_up(self, plan: _Plan, recount: Recount, left: str) -> Run:
        """All that was found; ``left`` says what could not be removed, if anything."""
        options, where, finals = self._options, self._where, self._finals
        grants = Grants()
        spans: dict[str, HdrHistogram] = {}
        lateness = new_histogram()
        counts, failures, batches = Counter[str](), Counter[str](), Counter[int]()
        attempts, wins = [0] * plan.slots, [0] * plan.slots
        outcomes = self._outcomes.copy()
        for final in finals:
            grants.merge(final.grants)
            for name, encoded in final.spans.items():
                spans.setdefault(name, new_histogram()).decode_and_add(encoded)
            lateness.decode_and_add(final.lateness)
            counts += final.counts
            failures += final.failures
            batches += final.batches
            for name, ended in final.before.items():
                outcomes[name] = [a + b for a, b in zip(outcomes.get(name, [0, 0, 0]), ended, strict=True)]
            attempts = [a + b for a, b in zip(attempts, final.attempts, strict=True)]
            wins = [a + b for a, b in zip(wins, final.wins, strict=True)]
        passed_on = succession(grants)
        if "handover" in plan.scenario.spans:
            spans["handover"] = handovers = new_histogram()
            for seconds in passed_on.handovers_s:
                handovers.record_value(max(1, int(seconds * 1e6)))
        evidence = Evidence(
            grants=len(grants) + grants.unkept,
            unkept=grants.unkept,
            succession=passed_on,
            recount=recount,
            counts=counts,
            outcomes={name: dict(zip(_OUTCOMES, ended, strict=True)) for name, ended in outcomes.items()},
            unfinished=sum(final.unfinished for final in finals),
        )
        during = [one for one in self._shown if one.at_s < options.duration.total_seconds() - 0.001]
        measured_s = sum(second.seconds for second in during)
        operations = self._operations(during, measured_s)
        answered = sum(second.outcomes["done"] + second.outcomes["refused"] for second in during)
        server_cpu_s = sum(one.server_cpu * one.seconds for one in during if one.server_cpu is not None)
        knows_server = any(one.server_cpu is not None for one in during)
        width = len(str(plan.slots - 1))
        rate = answered / measured_s if measured_s else 0.0
        whole = [one for one in during if len(one.harness_cpu) == options.processes]
        time_s = sum(one.seconds for one in whole)
        harness_cpu = [
            sum(one.harness_cpu[process] * one.seconds for one in whole) / time_s
            for process in range(options.processes if time_s else 0)
        ]
        server_cpu = server_cpu_s / measured_s if knows_server and measured_s else None
        known = [one.machine_cpu for one in during if one.machine_cpu is not None]
        machine_cpu = sum(known) / len(known) if known else None
        dropped = sum(second.dropped for second in self._shown)
        here = machine()
        target = TargetFacts(
            kind=where.kind,
            address="a private server, fsync every second" if where.kind == "embedded" else where.address,
            server=self._server_name,
            same_machine=where.on_this_machine,
            namespace=where.namespace if where.kind in ("embedded", "redis") else None,
            marker=where.marker,
        )
        run = Run(
            id=where.run_id,
            scenario=options.scenario,
            scenario_summary=plan.scenario.summary,
            started_at=self._started_at,
            measured_s=measured_s,
            options=options.facts()
            | {"callers": plan.at_a_time if options.rate is None else None, "slots": plan.slots},
            machine=here,
            versions=_versions(finals),
            target=target,
            operations=operations,
            spans=[
                Span(name=name, meaning=meaning, latency=Latency.of(spans[name]))
                for name, meaning in plan.scenario.spans.items()
                if name in spans and spans[name].get_total_count()
            ],
            seconds=self._shown,
            rate=rate,
            counts={name: counts[name] for name in plan.scenario.counted} | dict(plan.scenario.count_again(recount)),
            failures=dict(failures),
            arrivals=None if options.rate is None else sum(final.arrivals for final in finals),
            dropped=dropped,
            lateness=None if options.rate is None else Latency.of(lateness),
            harness_cpu=harness_cpu,
            server_cpu=server_cpu,
            machine_cpu=machine_cpu,
            server_cpu_us_per_operation=1e6 * server_cpu_s / answered if knows_server and answered else None,
            contention=contention_of([f"slot {at:0{width}}" for at in range(plan.slots)], attempts, wins),
            batches=[BatchSize(operations=size, batches=count) for size, count in sorted(batches.items())],
            invariants=[*verdicts.holders(evidence), *plan.scenario.judge(evidence)],
            limits=words.limits(options, operations, rate, dropped, failures.total(), evidence.unfinished),
            bottleneck=words.bottleneck(options, plan.at_a_time, target, here, harness_cpu, server_cpu, machine_cpu),
            conclusion=[],
        )
        said = words.conclusion(run, evidence.unfinished)
        return run.model_copy(update={"conclusion": [*said, left] if left else said})

    def _operations(self, during: Sequence[Second], measured_s: float) -> list[Operation]:
        found = [
            Operation(
                name=name,
                waits=name == WAITING,
                rate=sum(second.by_operation.get(name, 0) for second in during) / (measured_s or 1),
                latency=Latency.of(histogram),
                **dict(zip(_OUTCOMES, self._outcomes[name], strict=True)),
            )
            for name, histogram in self._histograms.items()
        ]
        return sorted(found, key=lambda operation: -operation.latency.count)


def _versions(finals: Sequence[Final]) -> dict[str, str]:
    found = {
        "overbooked-lock": __version__,
        "python": platform.python_version(),
        "redis-py": version("redis"),
        "hiredis": version("hiredis"),
    }
    if finals and finals[0].loop.startswith("uvloop"):
        found["uvloop"] = version("uvloop")
    return found
