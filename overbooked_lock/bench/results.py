"""What a run of the harness yields: one :class:`Run`, which ``--json`` prints and ``Run.model_validate_json`` reads.

Times are in the unit that a field's name ends in: ``_s`` seconds, ``_ms`` milliseconds. A share of CPU is of one core:
1.0 is a core that has nothing else to do. None stands for what could not be learned, never for zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal, Self

from hdrh.histogram import HdrHistogram
from pydantic import BaseModel, ConfigDict

from overbooked_lock.bench.verdicts import Verdict

Scalar = str | int | float | bool | None
Outcome = Literal["done", "refused", "failed"]
"""``done``: it took effect. ``refused``: an answer, too: another holds the slot, or it is full. ``failed``: no answer
in time, or an error."""

OUTCOMES: tuple[Outcome, ...] = ("done", "refused", "failed")

SHORTEST_US, LONGEST_US, DIGITS = 1, 600_000_000, 3


def new_histogram() -> HdrHistogram:
    """Counts microseconds, up to ten minutes, with three digits: the kind that all processes merge."""
    return HdrHistogram(SHORTEST_US, LONGEST_US, DIGITS)


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Fact):
    """How long something took, each time that it was done.

    Attributes:
        count: How often.
        mean_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms: Of all times. 0 if there is none.
        histogram: All of it, as every HdrHistogram reads it: base64 of its V2 encoding, in microseconds.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    histogram: str

    @classmethod
    def of(cls, histogram: HdrHistogram) -> Self:
        """Sums up a histogram of microseconds."""
        count = histogram.get_total_count()
        p50, p90, p99, p999 = (histogram.get_value_at_percentile(p) / 1000 for p in (50, 90, 99, 99.9))
        return cls(
            count=count,
            mean_ms=histogram.get_mean_value() / 1000,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            p999_ms=p999,
            max_ms=histogram.get_max_value() / 1000 if count else 0.0,
            histogram=histogram.encode().decode(),
        )

    def decoded(self) -> HdrHistogram:
        """The histogram, in microseconds: for any other percentile, and to merge it with others."""
        histogram = new_histogram()
        histogram.decode_and_add(self.histogram)
        return histogram

    def curve(self, points_per_halving: int = 5) -> Iterator[tuple[float, float]]:
        """Percentiles (0 to 100) and their milliseconds, closer together the nearer they are to 100.

        For a plot whose axis is the logarithm of ``1 / (1 - percentile / 100)``; the last point is (100, max_ms).
        """
        if self.count:
            for item in self.decoded().get_percentile_iterator(points_per_halving):
                yield item.percentile_level_iterated_to, item.value_iterated_to / 1000

    def slower_than(self, milliseconds: float) -> int:
        """How many took longer, to the histogram's three digits."""
        histogram = self.decoded()
        return sum(
            item.count_at_value_iterated_to
            for item in histogram.get_recorded_iterator()
            if item.value_iterated_to > milliseconds * 1000
        )


class Operation(_Fact):
    """What callers asked the target for, by its name: ``lock``, ``unlock``, ``book``, ``lock_many`` …

    Every attempt counts in ``latency``, whatever came of it. In an open loop the first one of an arrival is timed from
    when the arrival was due. ``rate``: answered a second, within the time of the load. ``waits``: the latency holds the
    wait for a slot, so no limit is put on it.
    """

    name: str
    waits: bool
    rate: float
    latency: Latency
    done: int
    refused: int
    failed: int

    @property
    def answered(self) -> int:
        """How many got an answer: done or refused."""
        return self.done + self.refused


class Span(_Fact):
    """How long something took that is no work of the target alone: a wait for a slot, how late an event came."""

    name: str
    meaning: str
    latency: Latency


class Second(_Fact):
    """One second of the run; the last ones may lie after its end, where what was under way is answered.

    Attributes:
        at_s: When it began, counted from the start.
        seconds: How long it really was: what is counted here divided by it is a rate.
        outcomes: How many operations ended in each way; waits and events are not in it.
        by_operation: The same for each operation: those that were answered.
        p50_ms, p99_ms, max_ms: Of all operations that ended in it; None if none did.
        in_flight: Callers or arrivals that were under way at its end.
        dropped: Arrivals that were not served, since too many were under way.
        harness_cpu: The share of a core of each process of ours.
        server_cpu: That of the server.
        machine_cpu: The share of all cores of our machine that were busy, whoever with.
    """

    at_s: float
    seconds: float
    outcomes: dict[Outcome, int]
    by_operation: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    in_flight: int
    dropped: int
    harness_cpu: list[float]
    server_cpu: float | None
    machine_cpu: float | None


class SlotContention(_Fact):
    """How often a slot was asked for, and what came of it."""

    slot: str
    attempts: int
    wins: int
    refusals: int


class ContentionBand(_Fact):
    """The slots that were asked for ``attempts_from`` to ``attempts_to`` times, and what came of all that."""

    attempts_from: int
    attempts_to: int
    slots: int
    attempts: int
    wins: int
    refusals: int


class Contention(_Fact):
    """Who wanted what.

    Attributes:
        slots: How many slots there were.
        busiest: Those that were asked for most, up to 50, the busiest first.
        bands: All slots, by how often they were asked for, in powers of two.
    """

    slots: int
    busiest: list[SlotContention]
    bands: list[ContentionBand]


class BatchSize(_Fact):
    """How many batches of so many operations went to the server together."""

    operations: int
    batches: int


class Machine(_Fact):
    """Where the harness ran. ``cores`` are those that it may use."""

    system: str
    cpu: str | None
    cores: int
    memory_bytes: int | None


class TargetFacts(_Fact):
    """What was measured.

    Attributes:
        kind: ``embedded``, ``redis``, ``http`` or ``sidecar``.
        address: Where it is, without user and password.
        server: The store's name and version; None if it can't be asked, as behind HTTP.
        same_machine: Whether it shares this machine's cores; None if that can't be told.
        namespace: What every key of the run began with; None where the target decides that.
        marker: The ``resource_id`` of the run's slots begins with it.
    """

    kind: Literal["embedded", "redis", "http", "sidecar"]
    address: str
    server: str | None
    same_machine: bool | None
    namespace: str | None
    marker: str


class Bottleneck(_Fact):
    """What kept the figures from being better: in ``said``, in words.

    ``harness``: our own processes had no CPU left, so the target can do more. ``machine``: the cores of our machine
    were all busy, with us, a server beside us, or something else. ``server``: it had no CPU left. ``load``: nobody was
    busy; more was not asked for.
    """

    kind: Literal["harness", "machine", "server", "load", "unknown"]
    said: str


class Run(_Fact):
    """A run of the harness.

    Attributes:
        format: The version of this document.
        id: Tells runs apart; the namespace and the marker end in it.
        scenario, scenario_summary: Its name, and what it plays.
        started_at: When the measured part began.
        measured_s: How long load was given, without the warm-up.
        options: What was asked for, by the names of :class:`~overbooked_lock.bench.Options`; no URL, no key.
        versions: Of overbooked-lock, python, redis-py, hiredis, the event loop …
        operations: Where there are any, the busiest first.
        spans: Waits and delays.
        seconds: The run, second by second.
        rate: Operations answered for each second of ``measured_s``.
        counts: The scenario's own: ``shoppers``, ``sold``, ``turned_away`` … in the order to be shown; from
            the first caller on, before the measured part, too.
        failures: How many operations failed, by why.
        arrivals: How many were due in an open loop; None in a closed one.
        dropped: How many of these were not served, since too many were under way.
        lateness: How late, after they were due, the harness itself began arrivals: part of the latencies.
        harness_cpu: The mean share of a core of each process of ours.
        server_cpu: That of the server.
        machine_cpu: The mean share of all cores of our machine that were busy, whoever with.
        server_cpu_us_per_operation: What an answer cost the server, in microseconds of its CPU.
        batches: What the async engine merged, smallest first; empty where another process does that.
        invariants, limits: What must be, and what the user asked for.
        conclusion: The answer in some sentences, for somebody who knows nothing of this.
    """

    format: Literal[1] = 1
    id: str
    scenario: str
    scenario_summary: str
    started_at: datetime
    measured_s: float
    options: dict[str, Scalar]
    machine: Machine
    versions: dict[str, str]
    target: TargetFacts
    operations: list[Operation]
    spans: list[Span]
    seconds: list[Second]
    rate: float
    counts: dict[str, int]
    failures: dict[str, int]
    arrivals: int | None
    dropped: int
    lateness: Latency | None
    harness_cpu: list[float]
    server_cpu: float | None
    machine_cpu: float | None
    server_cpu_us_per_operation: float | None
    contention: Contention
    batches: list[BatchSize]
    invariants: list[Verdict]
    limits: list[Verdict]
    bottleneck: Bottleneck
    conclusion: list[str]

    @property
    def latency(self) -> Latency | None:
        """Of all operations together, but those that wait for a slot; None if there is none."""
        together = new_histogram()
        for one in self.operations:
            if not one.waits:
                together.decode_and_add(one.latency.histogram)
        return Latency.of(together) if together.get_total_count() else None

    @property
    def passed(self) -> bool:
        """No invariant is broken and no limit missed: what ``--check`` asks."""
        return all(verdict.holds is not False for verdict in [*self.invariants, *self.limits])


def contention_of(slots: Sequence[str], attempts: Sequence[int], wins: Sequence[int]) -> Contention:
    """Sums up how often each slot was asked for, and how often with success."""
    order = sorted(range(len(slots)), key=lambda at: (-attempts[at], at))
    bands: dict[int, list[int]] = {}
    for at in order:
        bands.setdefault(attempts[at].bit_length(), []).append(at)
    return Contention(
        slots=len(slots),
        busiest=[
            SlotContention(slot=slots[at], attempts=attempts[at], wins=wins[at], refusals=attempts[at] - wins[at])
            for at in order[:50]
            if attempts[at]
        ],
        bands=[
            ContentionBand(
                attempts_from=(1 << bits) >> 1,
                attempts_to=(1 << bits) - 1,
                slots=len(band),
                attempts=sum(attempts[at] for at in band),
                wins=sum(wins[at] for at in band),
                refusals=sum(attempts[at] - wins[at] for at in band),
            )
            for bits, band in sorted(bands.items())
        ],
    )
