"""A run as one page of HTML, for people who were not there: it needs no network, prints, and has no scripts."""

from __future__ import annotations

import base64
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from overbooked_lock.bench import plots, words
from overbooked_lock.bench.results import OUTCOMES, Latency, Run
from overbooked_lock.bench.verdicts import Verdict
from overbooked_lock.bench.words import ms
from overbooked_lock.errors import InvalidArgument

_HOLDS = {True: ("good", "✓ holds"), False: ("bad", "✗ BROKEN"), None: ("open", "? unknown")}
_MET = {True: ("good", "✓ met"), False: ("bad", "✗ MISSED"), None: ("open", "? unknown")}
_ON = {True: " on the same machine", False: " on another machine", None: ""}
_BOTTLENECK = {
    "server": ("Redis server", "it had no CPU left"),
    "harness": ("Harness", "it had no CPU left: the target may bear more"),
    "machine": ("This machine", "perhaps: all its cores were busy"),
    "load": ("None", "neither Redis server nor harness was at its limit"),
    "unknown": ("Unknown", "not the harness; how busy the target was can't be seen"),
}
_SECOND_HEAD = (
    "began (s)",
    "lasted (s)",
    *OUTCOMES,
    "half within",
    "99%",
    "slowest",
    "under way",
    "dropped",
    "harness CPU",
    "server CPU",
    "machine CPU",
)


def check(path: Path) -> None:
    """That a report can be written there, before a run is made for it. One that is there will be replaced.

    Raises InvalidArgument.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InvalidArgument("report", f"must be a file in a folder that exists; {str(folder)!r} is none")
    if path.is_dir():
        raise InvalidArgument("report", f"must be a file; {str(path)!r} is a folder")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise InvalidArgument("report", f"must be a file that may be written; {str(path)!r} may not")


def write(run: Run, path: Path) -> None:
    """Writes the report of a run, as UTF-8. Raises OSError."""
    path.write_text(page(run), encoding="utf-8")


def page(run: Run) -> str:
    """The report of a run as HTML."""
    template = Template(resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    started = run.started_at.strftime("%Y-%m-%d %H:%M UTC")
    target = f"{run.target.address}{f', {run.target.server}' if run.target.server else ''}"
    state, verdict = words.verdict(run)
    return template.substitute(
        title=escape(f"overbooked-lock bench: {run.scenario}, {started}"),
        heading=escape(f"Load test: {run.scenario}"),
        summary=escape(run.scenario_summary),
        circumstances=escape(f"{started}, {run.measured_s:.0f} s on {target}; {words.load(run)}"),
        state={True: "good", False: "bad", None: "open"}[state],
        verdict=_verdict(verdict),
        tiles="".join(_tiles(run)),
        where=escape(_where(run)),
        invariants=_verdicts(run.invariants, _HOLDS),
        limits=_verdicts(run.limits, _MET),
        bottleneck=escape(run.bottleneck.said),
        conclusion="".join(f"<p>{escape(said)}</p>" for said in run.conclusion if said != run.bottleneck.said),
        counted=_table(("counted, from the first caller on", "how many", "who"), words.counted(run), {1}),
        operations=_operations(run),
        failures=_table(
            ("why operations failed", "how many"), [(why, f"{count:,}") for why, count in run.failures.items()], {1}
        ),
        plots="".join(map(_plot, plots.of(run))),
        facts=_table(("what", "which"), _facts(run)),
        raw=_raw(run),
        file=f"overbooked-lock-bench-{escape(run.scenario)}-{escape(run.id)}.json",
        json=base64.b64encode(run.model_dump_json().encode()).decode(),
    )


def _verdict(sentences: Sequence[str]) -> str:
    first, *others = map(escape, sentences)
    return " ".join([f"<strong>{first}</strong>", *others])


def _tiles(run: Run) -> Iterator[str]:
    def tile(name: str, figure: str, note: str) -> str:
        return (
            f'<div><dt>{escape(name)}</dt><dd class="figure">{escape(figure)}</dd>'
            f'<dd class="note">{escape(note)}</dd></div>'
        )

    if "sold" in run.counts:
        yield tile("Sold", f"{run.counts['sold']:,}", f"of {run.contention.slots:,} seats")
        yield tile("Turned away", f"{run.counts['turned_away']:,}", f"of {run.counts['shoppers']:,} shoppers")
        yield tile("Sold twice", f"{run.counts['double_bookings']:,}", "counted again in the store")
    yield tile("Operations a second", f"{run.rate:,.0f}", "answered, on average")
    if latency := run.latency:
        yield tile(
            "Half answered within", ms(latency.p50_ms), "from when they were due" if run.arrivals else "of all requests"
        )
        yield tile("99 of 100 within", ms(latency.p99_ms), "1 of 100 waited longer")
        yield tile("The slowest of all", ms(latency.max_ms), "was answered within")
    refused, failed = (sum(getattr(one, of) for one in run.operations) for of in ("refused", "failed"))
    asked = sum(one.done for one in run.operations) + refused + failed
    yield tile("Refused", f"{refused / asked if asked else 0:.0%}", "of all requests were told that the slot is taken")
    yield tile("Failed", f"{failed:,}", "an error, or no answer in time")
    if run.arrivals is not None:
        yield tile("Dropped", f"{run.dropped:,}", f"of {run.arrivals:,} arrivals")
    yield tile("Bottleneck", *_BOTTLENECK[run.bottleneck.kind])
    if run.server_cpu is not None:
        yield tile("Redis server", f"{run.server_cpu:.0%}", "of a core, on average")
    if run.harness_cpu:
        yield tile("Harness", f"{max(run.harness_cpu):.0%}", "of a core, its busiest process")


def _verdicts(verdicts: Sequence[Verdict], said: dict[bool | None, tuple[str, str]]) -> str:
    rows = "".join(
        f'<tr><td class="{said[one.holds][0]}">{said[one.holds][1]}</td><th scope="row">{escape(one.name)}</th>'
        f"<td>{escape(one.said)}</td></tr>"
        for one in verdicts
    )
    return (
        '<div class="wide"><table><thead><tr><th scope="col">verdict</th><th scope="col">what</th>'
        f'<th scope="col">found</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _operations(run: Run) -> str:
    rows = [
        (
            one.name,
            f"{one.rate:,.0f}",
            f"{one.done:,}",
            f"{one.refused:,}",
            f"{one.failed:,}",
            *_times(one.latency),
        )
        for one in run.operations
    ]
    rows += [(span.name, "", f"{span.latency.count:,}", "", "", *_times(span.latency)) for span in run.spans]
    head = ("operation", "a second", "done", "refused", "failed", "half within", "90%", "99%", "99.9%", "slowest")
    return _table(head, rows, range(1, len(head))) + "".join(
        f'<p class="soft">{escape(span.name)}: {escape(span.meaning)}.</p>' for span in run.spans
    )


def _times(latency: Latency) -> Iterator[str]:
    return map(ms, (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms))


def _plot(plot: plots.Plot) -> str:
    missing = ' class="none"' if plot.svg is None else ""
    return (
        f"<figure{missing}><h3>{escape(plot.title)}</h3>{plot.svg or ''}"
        f"<figcaption>{escape(plot.reading)}</figcaption></figure>"
    )


def _where(run: Run) -> str:
    """Which machine and versions the figures are of."""
    server = "" if run.target.server is None else f" Server: {run.target.server}{_ON[run.target.same_machine]}."
    return f"Harness on {words.machine(run.machine)}.{server} Versions: {words.versions(run)}."


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    target, machine = run.target, run.machine
    yield "target", f"{target.kind}: {target.address}"
    yield "server", target.server or "can't be asked"
    yield "where it runs", (_ON[target.same_machine] or "can't be told").strip()
    memory = f", {machine.memory_bytes / 2**30:.1f} GiB of memory" if machine.memory_bytes else ""
    yield "machine of the harness", f"{words.machine(machine)}{memory}, {machine.system}"
    yield "versions", words.versions(run)
    yield "run", run.id
    for name, value in run.options.items():
        if value is not None:
            unit = " s" if name.endswith("_s") else ""
            yield f"--{name.removesuffix('_s').replace('_', '-')}", f"{value}{unit}"


def _raw(run: Run) -> str:
    seconds = [
        (
            f"{one.at_s:.1f}",
            f"{one.seconds:.2f}",
            *(f"{one.outcomes[outcome]:,}" for outcome in OUTCOMES),
            *("" if value is None else ms(value) for value in (one.p50_ms, one.p99_ms, one.max_ms)),
            f"{one.in_flight:,}",
            f"{one.dropped:,}",
            " ".join(map(_percent, one.harness_cpu)),
            _percent(one.server_cpu),
            _percent(one.machine_cpu),
        )
        for one in run.seconds
    ]
    busiest = [(one.slot, f"{one.attempts:,}", f"{one.wins:,}", f"{one.refusals:,}") for one in run.contention.busiest]
    bands = [
        (plots.from_to(one.attempts_from, one.attempts_to), *map("{:,}".format, (one.slots, one.attempts, one.wins)))
        for one in run.contention.bands
    ]
    batches = [(f"{one.operations:,}", f"{one.batches:,}") for one in run.batches]
    return "".join(
        f"<details><summary>{escape(title)}</summary>{_table(head, rows, range(1, len(head)))}</details>"
        for title, head, rows in (
            ("Second by second", _SECOND_HEAD, seconds),
            ("The slots that were wanted most", ("slot", "attempts", "locks", "refused"), busiest),
            ("How wanted slots were", ("attempts to lock it", "slots", "attempts", "locks"), bands),
            ("Batches", ("operations in a batch", "batches"), batches),
        )
        if rows
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Container[int] = ()) -> str:
    """Each row is named by its first cell; ``numbers`` are the columns that hold some. Nothing without rows."""
    body = "".join(f"<tr>{''.join(_cells(row, numbers))}</tr>" for row in rows)
    if not body:
        return ""
    names = "".join(f'<th scope="col"{_class(at in numbers)}>{escape(name)}</th>' for at, name in enumerate(head))
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str], numbers: Container[int]) -> Iterator[str]:
    yield f'<th scope="row">{escape(row[0])}</th>'
    for at, cell in enumerate(row[1:], 1):
        yield f"<td{_class(at in numbers)}>{escape(cell)}</td>"


def _class(number: bool) -> str:
    return ' class="number"' if number else ""
