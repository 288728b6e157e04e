"""Every invariant can be found broken: what must not be is told apart from what is in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from overbooked_lock.bench import SCENARIOS, Options
from overbooked_lock.bench.grants import Grants
from overbooked_lock.bench.results import Latency, Machine, Operation, TargetFacts, contention_of, new_histogram
from overbooked_lock.bench.succession import Succession, succession
from overbooked_lock.bench.verdicts import Evidence, Recount, Verdict, bookings, holders, nothing_left
from overbooked_lock.bench.words import bottleneck, limits

CLEAN = Evidence(
    grants=3,
    unkept=0,
    succession=Succession(overlaps=0, repeated=0, handovers_s=[]),
    recount=Recount(bookings={"a": 1, "b": 1}, counted={"a": 1, "b": 1}, locked=0),
    counts={"shoppers": 3, "sold": 2, "turned_away": 1, "locks_that_ended": 5, "booked": 3, "cancelled": 1},
    outcomes={"lock": {"done": 3, "refused": 0, "failed": 0}},
    unfinished=0,
)


def grants(*rows: tuple[int, int, float, float, float]) -> Grants:
    """Slot, token, asked, had since, held until."""
    noted = Grants()
    for row in rows:
        noted.add(*row)
    return noted


def test_holders_one_after_the_other_are_in_order() -> None:
    """Slots have nothing to do with each other, and the order of notes does not matter."""
    found = succession(grants((0, 8, 1.0, 2.1, 3.0), (1, 7, 0.0, 1.5, 9.0), (0, 7, 0.0, 1.0, 2.0)))
    assert (found.overlaps, found.repeated) == (0, 0)
    assert found.handovers_s == [pytest.approx(0.1)]


def test_two_holders_at_once_are_found() -> None:
    """However shortly, and wherever among the grants."""
    assert succession(grants((0, 7, 0, 1, 2), (0, 8, 1, 1.9, 3), (0, 9, 3, 4, 5))).overlaps == 1


def test_a_holder_that_outlasts_the_next_two_is_found() -> None:
    """One overlap is enough to know."""
    assert succession(grants((0, 7, 0, 1, 9), (0, 8, 2, 3, 4), (0, 9, 4, 5, 6))).overlaps > 0


def test_a_token_that_fell_is_found() -> None:
    """In the order of tokens, the earlier holder comes after the later one."""
    assert succession(grants((0, 9, 0, 1, 2), (0, 8, 3, 4, 5))).overlaps == 1


def test_a_token_given_twice_is_found() -> None:
    """Even if the holders did not meet."""
    assert succession(grants((0, 7, 0, 1, 2), (0, 7, 3, 4, 5))).repeated == 1


def test_a_lock_that_is_given_up_claims_nothing_more() -> None:
    """And never more than it had."""
    noted = Grants()
    number = noted.add(0, 7, 0.0, 1.0, 5.0)
    noted.end(number, 2.0)
    noted.end(number, 3.0)
    assert list(noted.until) == [2.0]


def states(verdicts: Iterator[Verdict]) -> set[bool | None]:
    """What they say."""
    return {verdict.holds for verdict in verdicts}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_clean_evidence_breaks_nothing(scenario: str) -> None:
    """In no scenario."""
    assert states(SCENARIOS[scenario].judge(CLEAN)) == {True}


@pytest.mark.parametrize(
    ("judge", "evidence"),
    [
        (holders, replace(CLEAN, succession=Succession(1, 0, []))),
        (holders, replace(CLEAN, succession=Succession(0, 1, []))),
        (nothing_left, replace(CLEAN, recount=replace(CLEAN.recount, locked=1))),
        (SCENARIOS["uncontended"].judge, replace(CLEAN, recount=replace(CLEAN.recount, locked=1))),
        (SCENARIOS["groups"].judge, replace(CLEAN, recount=replace(CLEAN.recount, locked=1))),
        (SCENARIOS["onsale"].judge, replace(CLEAN, recount=Recount({"a": 2}, {"a": 2}, 0))),
        (SCENARIOS["onsale"].judge, replace(CLEAN, recount=Recount({"a": 1}, {"a": 1}, 0))),
        (SCENARIOS["onsale"].judge, replace(CLEAN, recount=Recount({"a": 1, "b": 1}, {"a": 1}, 0))),
        (SCENARIOS["onsale"].judge, replace(CLEAN, counts={**CLEAN.counts, "shoppers": 4})),
        (SCENARIOS["mixed"].judge, replace(CLEAN, counts={**CLEAN.counts, "cancelled": 0})),
        (SCENARIOS["waiters"].judge, replace(CLEAN, outcomes={"lock (waiting)": {"refused": 1}})),
        (SCENARIOS["expiry"].judge, replace(CLEAN, counts={**CLEAN.counts, "not_told_of": 1})),
        (SCENARIOS["expiry"].judge, replace(CLEAN, counts={**CLEAN.counts, "told_of_again": 1})),
    ],
)
def test_what_must_not_be_is_found(judge: Callable[[Evidence], Iterator[Verdict]], evidence: Evidence) -> None:
    """One thing that is wrong, one verdict at least that says so."""
    assert False in states(judge(evidence))


def test_what_cannot_be_told_is_not_called_broken() -> None:
    """An operation without an answer may have done what differs, and no more than that."""
    unsure = replace(CLEAN, outcomes={"book": {"done": 1, "refused": 0, "failed": 1}})
    assert states(bookings(unsure, told=1)) == {True, None}
    assert False in states(bookings(unsure, told=0))
    assert states(nothing_left(replace(unsure, recount=replace(CLEAN.recount, locked=1)))) == {None}


def operation(name: str, p99_ms: float, *, waits: bool = False) -> Operation:
    """One whose every latency is this."""
    histogram = new_histogram()
    histogram.record_value(int(p99_ms * 1000))
    return Operation(name=name, waits=waits, rate=1.0, latency=Latency.of(histogram), done=1, refused=0, failed=0)


@pytest.mark.parametrize(
    ("options", "rate", "dropped", "failures", "missed"),
    [
        ({}, 100, 0, 0, []),
        ({}, 100, 0, 1, ["every operation is answered"]),
        ({"rate": 5.0}, 100, 2, 0, ["no arrival is dropped"]),
        ({"max_p99": timedelta(milliseconds=20)}, 100, 0, 0, []),
        ({"max_p99": timedelta(milliseconds=4)}, 100, 0, 0, ["p99 at most 4.00 ms"]),
        ({"min_rate": 100.0}, 100, 0, 0, []),
        ({"min_rate": 101.0}, 100, 0, 0, ["at least 101 operations/s"]),
    ],
)
def test_limits(options: dict[str, float], rate: float, dropped: int, failures: int, missed: list[str]) -> None:
    """Each operation has to keep the limit; one that waits for a slot has none."""
    asked = Options(scenario="mixed", **options)  # type: ignore[arg-type]  # each its own
    operations = [operation("lock", 2.0), operation("unlock", 5.0), operation("lock (waiting)", 900.0, waits=True)]
    found = limits(asked, operations, rate, dropped, failures, unfinished=0)
    assert [verdict.name for verdict in found if verdict.holds is False] == missed


def test_a_visit_that_was_cut_off_has_no_answer() -> None:
    """It counts as an operation that failed does."""
    [answered] = limits(Options(scenario="mixed"), [operation("lock", 2.0)], 100, 0, 0, unfinished=1)
    assert answered.holds is False
    assert "1 visits were cut off" in answered.said


@pytest.mark.parametrize(
    ("harness", "server", "machine", "kind"),
    [
        ([0.3, 0.97], 0.5, 0.6, "harness"),
        ([0.3], 0.95, 0.6, "server"),
        ([0.95], 0.95, 1.0, "server"),
        ([0.3], 0.4, 0.99, "machine"),
        ([0.3], 0.4, 0.5, "load"),
        ([0.3], 0.4, None, "load"),
        ([0.3], None, 0.5, "unknown"),
        ([0.95], None, 0.5, "harness"),
    ],
)
def test_the_bottleneck_is_who_had_no_time_left(
    harness: list[float], server: float | None, machine: float | None, kind: str
) -> None:
    """The server first, since it is what is measured; then the harness; then the machine they may share."""
    target = TargetFacts(
        kind="redis", address="redis://localhost", server=None, same_machine=True, namespace=None, marker="m"
    )
    here = Machine(system="Linux", cpu=None, cores=2, memory_bytes=None)
    found = bottleneck(Options(scenario="mixed"), 50, target, here, harness, server, machine)
    assert found.kind == kind
    assert found.said.startswith("The harness was not the bottleneck") is (kind in ("load", "unknown"))
    assert ("--callers 100 shows" in found.said) is (kind in ("load", "machine"))


def test_contention_is_counted_by_how_often_slots_are_asked_for() -> None:
    """The busiest first, and bands of powers of two that hold every slot."""
    found = contention_of(["a", "b", "c", "d"], [3, 0, 9, 2], [1, 0, 4, 2])
    assert [(one.slot, one.attempts, one.wins, one.refusals) for one in found.busiest] == [
        ("c", 9, 4, 5),
        ("a", 3, 1, 2),
        ("d", 2, 2, 0),
    ]
    assert [(band.attempts_from, band.attempts_to, band.slots) for band in found.bands] == [
        (0, 0, 1),
        (2, 3, 2),
        (8, 15, 1),
    ]


def test_a_latency_tells_how_many_were_slower() -> None:
    """And its curve ends at the slowest of all."""
    histogram = new_histogram()
    for number in range(1, 101):
        histogram.record_value(number * 1000)
    latency = Latency.of(histogram)
    assert latency.slower_than(90.5) == 10
    percentile, milliseconds = list(latency.curve())[-1]
    assert (percentile, milliseconds) == (100, latency.max_ms)
    assert latency.p50_ms == pytest.approx(50, rel=0.001)
