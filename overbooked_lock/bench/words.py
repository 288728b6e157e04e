"""What a run says in words, for somebody who knows nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overbooked_lock.bench.options import Options
from overbooked_lock.bench.results import Bottleneck, Machine, Operation, Run, TargetFacts
from overbooked_lock.bench.scenarios import SCENARIOS
from overbooked_lock.bench.verdicts import Verdict

BUSY = 0.9
"""The share of a core from which on a process counts as having no time left."""

ALL_BUSY = 0.85
"""The share of all cores from which on a machine counts so: the rest is the system's own, which we don't see."""


def limits(
    options: Options, operations: Sequence[Operation], rate: float, dropped: int, failures: int, unfinished: int
) -> list[Verdict]:
    """What the user asked for, and what everybody does: that all arrivals are served and answered."""
    said = f"{failures:,} operations failed" + (f", {unfinished:,} visits were cut off" if unfinished else "")
    found = [Verdict("every operation is answered", not failures + unfinished, said)]
    if options.rate is not None:
        found.append(Verdict("no arrival is dropped", dropped == 0, f"{dropped:,} arrivals were dropped"))
    if options.max_p99 is not None:
        most_ms = options.max_p99.total_seconds() * 1000
        timed = [one for one in operations if not one.waits]
        slowest = max(timed, key=lambda one: one.latency.p99_ms, default=None)
        found.append(
            Verdict(
                f"p99 at most {ms(most_ms)}",
                slowest is not None and slowest.latency.p99_ms <= most_ms,
                "nothing was done that could be timed"
                if slowest is None
                else f"the slowest operation, {slowest.name}, has a p99 of {ms(slowest.latency.p99_ms)}",
            )
        )
    if options.min_rate is not None:
        found.append(
            Verdict(
                f"at least {options.min_rate:,.0f} operations/s",
                rate >= options.min_rate,
                f"{rate:,.0f} operations/s were answered",
            )
        )
    return found


def bottleneck(
    options: Options,
    callers: int,
    target: TargetFacts,
    machine: Machine,
    harness_cpu: Sequence[float],
    server_cpu: float | None,
    machine_cpu: float | None,
) -> Bottleneck:
    """What kept the figures from being better, with so many callers.

    Shares are of one core, ``machine_cpu`` of all of them.
    """
    busiest = max(harness_cpu, default=0.0)
    ours = f"its busiest process used {busiest:.0%} of a core"
    if server_cpu is not None and server_cpu >= BUSY:
        return Bottleneck(
            kind="server",
            said=f"The Redis server was the bottleneck: it used {server_cpu:.0%} of a core, so this is about the most "
            f"that it bears. As for the harness, {ours}.",
        )
    if busiest >= BUSY:
        return Bottleneck(
            kind="harness",
            said=f"The harness itself was the bottleneck: {ours}. The target may bear more than these figures say: "
            "give the harness more processes (--processes), on a machine that has free cores for them.",
        )
    if machine_cpu is not None and machine_cpu >= ALL_BUSY:
        parts = f"the harness took {sum(harness_cpu):.1f}"
        if target.same_machine and server_cpu is not None:
            parts += f", the Redis server {server_cpu:.1f}"
        return Bottleneck(
            kind="machine",
            said=f"The bottleneck may be this machine: its {machine.cores} cores were {machine_cpu:.0%} busy. Of "
            f"these {parts}, and what else runs here the rest. The latencies tell of that, too: where each has cores "
            f"of its own they are better. {_more(options, callers)}",
        )
    free = f"The harness was not the bottleneck: {ours}. "
    if server_cpu is None:
        return Bottleneck(
            kind="unknown",
            said=free + "How busy the target was can't be seen from here: look there.",
        )
    free += f"Nor was the Redis server: it used {server_cpu:.0%} of a core. "
    if target.kind == "sidecar":
        return Bottleneck(
            kind="unknown", said=free + "How busy the sidecar was can't be seen from here: look at its process."
        )
    return Bottleneck(
        kind="load",
        said=free + _more(options, callers),
    )


def _more(options: Options, callers: int) -> str:
    """What to try next."""
    if options.rate is not None:
        return f"More was not asked of it: --rate {2 * options.rate:g} shows whether it bears twice as much."
    return f"Callers think, or wait for their answers: --callers {2 * callers} shows whether it bears more than that."


def verdict(run: Run) -> tuple[bool | None, list[str]]:
    """Whether all is well, as far as that can be told, and why in a few sentences, the most important one first."""
    found = [*run.invariants, *run.limits]
    holds = False if not run.passed else None if any(one.holds is None for one in found) else True
    return holds, [*_promises(run), *_speed(run)]


def _promises(run: Run) -> Iterator[str]:
    broken, unsure = ([one.name for one in run.invariants if one.holds is wanted] for wanted in (False, None))
    if broken:
        yield f"What must never be has happened: BROKEN: {'; '.join(broken)}."
    elif unsure:
        yield f"Whether all that must hold did hold can't be told: {'; '.join(unsure)}."
    elif run.scenario == "onsale":
        sold, slots = run.counts["sold"], run.contention.slots
        seats = f"All {slots:,} seats were sold" if sold == slots else f"{sold:,} of {slots:,} seats were sold"
        yield f"{seats}, each of them once; nobody was sold a seat that another had."
    else:
        yield f"All that must hold did hold: {'; '.join(one.name for one in run.invariants)}."
    missed = [one.said for one in run.limits if one.holds is False]
    if missed:
        yield f"But a limit was missed: {'; '.join(missed)}."


def _speed(run: Run) -> Iterator[str]:
    if latency := run.latency:
        kind = " that did not have to wait for a slot" if any(one.waits for one in run.operations) else ""
        yield (
            f"Half of the requests{kind} were answered within {ms(latency.p50_ms)}, 99 in 100 within "
            f"{ms(latency.p99_ms)}."
        )
    if run.server_cpu is not None:
        yield f"The Redis server was {run.server_cpu:.0%} busy."


def load(run: Run) -> str:
    """How load was given, in a few words."""
    if run.arrivals is not None:
        return f"{run.options['rate']:,.0f} arrivals a second ({run.options['arrivals']})"
    return f"{run.options['callers']:,} callers"


def machine(machine: Machine) -> str:
    """Which machine it is, in a few words."""
    return f"{machine.cpu or machine.system}, cores: {machine.cores}"


def versions(run: Run) -> str:
    """What took part, and its versions."""
    return ", ".join(f"{name} {number}" for name, number in run.versions.items())


def counted(run: Run) -> Iterator[tuple[str, str, str]]:
    """What the scenario counted: its name, how many, and what that means."""
    meanings = {**SCENARIOS[run.scenario].counted, "double_bookings": "seats sold twice, counted again in the store"}
    for name, count in run.counts.items():
        yield name.replace("_", " "), f"{count:,}", meanings[name]


def conclusion(run: Run, unfinished: int) -> list[str]:
    """The answer in some sentences."""
    loop = (
        f"{run.arrivals:,} arrivals on a schedule, {run.options['rate']:,.0f} a second"
        if run.arrivals is not None
        else f"{run.options['callers']:,} callers, each of which waited for its answer before it went on"
    )
    said = [f"In {run.measured_s:.1f} s the target answered {run.rate:,.0f} operations a second, from {loop}."]
    timed = [one for one in run.operations if not one.waits]
    if timed:
        slowest = max(timed, key=lambda one: one.latency.p99_ms)
        said.append(
            f"The slowest kind by its p99, {slowest.name}: half were answered within {ms(slowest.latency.p50_ms)}, "
            f"99 of 100 within {ms(slowest.latency.p99_ms)}, the slowest {slowest.name} took "
            f"{ms(slowest.latency.max_ms)}."
        )
    if run.scenario == "onsale":
        said.append(_onsale(run))
    broken = [verdict for verdict in run.invariants if verdict.holds is False]
    open_ones = [verdict for verdict in run.invariants if verdict.holds is None]
    if broken:
        said.append(f"BROKEN: {'; '.join(verdict.name for verdict in broken)}. This must never be: see above.")
    elif open_ones:
        said.append(
            f"Can't be told: {'; '.join(verdict.name for verdict in open_ones)}, since operations have no answer."
        )
    else:
        said.append("All that must hold under any load did hold.")
    missed = [verdict.name for verdict in run.limits if verdict.holds is False]
    if missed:
        said.append(f"Missed: {'; '.join(missed)}.")
    failed = sum(run.failures.values())
    if failed:
        said.append(f"{failed:,} operations failed: they got an error, or no answer in time.")
    if run.dropped:
        said.append(
            f"{run.dropped:,} arrivals were dropped, since {run.options['backlog']:,} were under way already. Had they "
            "been served, latencies would be worse."
        )
    if unfinished:
        said.append(f"{unfinished:,} visits were cut off, since they did not end in time after the load.")
    said.append(run.bottleneck.said)
    if run.lateness is not None and run.lateness.p99_ms > 5:
        said.append(
            f"The harness began 1 of 100 arrivals more than {ms(run.lateness.p99_ms)} late; this is in the latencies."
        )
    return said


def _onsale(run: Run) -> str:
    counts, slots = run.counts, run.contention.slots
    double = counts["double_bookings"]
    sold_twice = f"{double:,} seats were sold twice" if double else "no seat was sold twice"
    return (
        f"Of {counts['shoppers']:,} shoppers, {counts['sold']:,} bought one of {slots:,} seats, "
        f"{counts['abandoned']:,} had a seat and abandoned it, {counts['turned_away']:,} were turned away, for the "
        f"three seats they tried were taken (all want the best seats most). Counted again in the store: {sold_twice}."
    )


def ms(milliseconds: float) -> str:
    """A duration as people read it: three digits."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    if milliseconds >= 100:
        return f"{milliseconds:.0f} ms"
    if milliseconds >= 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds:.2f} ms"
