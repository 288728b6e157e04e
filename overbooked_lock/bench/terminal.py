"""What a person sees of a run: how it goes, and what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from overbooked_lock.bench import words
from overbooked_lock.bench.options import Options
from overbooked_lock.bench.results import Latency, Run, Second
from overbooked_lock.bench.verdicts import Verdict
from overbooked_lock.bench.words import ms

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_SECONDS = 40


class Progress:
    """Shows how a run goes: at a terminal a picture that changes, elsewhere a line for each second."""

    def __init__(self, console: Console, options: Options) -> None:
        self._console, self._options = console, options
        self._seconds: deque[Second] = deque(maxlen=_SHOWN_SECONDS)
        self._dropped = 0
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, text: str) -> None:
        """What is done now."""
        if self._live is None:
            self._console.print(f"overbooked-lock bench: {text}", soft_wrap=True)
        else:
            self._live.update(Text(f"{text} …"), refresh=True)

    def second(self, second: Second) -> None:
        """A second of the run is over."""
        self._seconds.append(second)
        self._dropped += second.dropped
        if self._live is not None:
            self._live.update(self._picture(second), refresh=True)
        else:
            self._console.print(_line(second), soft_wrap=True)

    def _picture(self, second: Second) -> Group:
        total = self._options.duration.total_seconds()
        done = min(second.at_s + second.seconds, total)
        head = Table.grid(padding=(0, 2))
        head.add_row(self._options.scenario, ProgressBar(total, done, width=40), f"{done:.0f} of {total:g} s")
        figures = Table.grid(padding=(0, 2))
        figures.add_column(style="dim")
        figures.add_column(justify="right")
        figures.add_row("operations/s", f"{_rate(second):,.0f}", _bars(_rate(one) for one in self._seconds))
        figures.add_row("p99", _ms_or_none(second.p99_ms), _bars(one.p99_ms or 0.0 for one in self._seconds))
        figures.add_row("p50", _ms_or_none(second.p50_ms))
        figures.add_row("refused", f"{_refused(second):.0%}")
        figures.add_row("failed", f"{second.outcomes['failed']:,}")
        figures.add_row("server CPU", _share(second.server_cpu), _bars(one.server_cpu or 0.0 for one in self._seconds))
        figures.add_row("harness CPU", _share(max(second.harness_cpu, default=None)))
        figures.add_row("under way", f"{second.in_flight:,}")
        if self._options.rate is not None:
            figures.add_row("dropped", f"{self._dropped:,}")
        return Group(head, Text(), figures)


def _line(second: Second) -> str:
    parts = [
        f"{second.at_s + second.seconds:5.1f} s",
        f"{_rate(second):9,.0f} operations/s",
        f"p50 {_ms_or_none(second.p50_ms)}",
        f"p99 {_ms_or_none(second.p99_ms)}",
        f"refused {_refused(second):.0%}",
        f"failed {second.outcomes['failed']:,}",
        f"server CPU {_share(second.server_cpu)}",
        f"harness CPU {_share(max(second.harness_cpu, default=None))}",
        f"under way {second.in_flight:,}",
    ]
    if second.dropped:
        parts.append(f"dropped {second.dropped:,}")
    return "  ".join(parts)


def _rate(second: Second) -> float:
    return (second.outcomes["done"] + second.outcomes["refused"]) / second.seconds if second.seconds else 0.0


def _refused(second: Second) -> float:
    return second.outcomes["refused"] / (sum(second.outcomes.values()) or 1)


def _share(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def _ms_or_none(milliseconds: float | None) -> str:
    return "none" if milliseconds is None else ms(milliseconds)


def _bars(values: Iterable[float]) -> str:
    shown = list(values)
    most = max(shown, default=0.0) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int(value / most * len(_BARS)))] for value in shown)


# At the end


def show(console: Console, run: Run) -> None:
    """Shows what came of a run: tables, and then the answer in words."""
    console.print(f"[bold]{run.scenario}[/bold]: {run.scenario_summary}", soft_wrap=True)
    console.print(_circumstances(run), soft_wrap=True)
    console.print()
    console.print(_operations(run))
    console.print(
        "refused: an answer, too: somebody else has the slot, or it is full. failed: an error, or no answer in time.\n"
        "p99: 99 of 100 took at most so long"
        + (", counted from when an arrival was due." if run.arrivals is not None else "."),
        style="dim",
        soft_wrap=True,
    )
    for span in run.spans:
        console.print(f"{span.name}: {span.meaning}.", style="dim", soft_wrap=True)
    _section(console, "COUNTED, from the first caller on", list(words.counted(run)))
    _section(console, "FAILED", [(why, f"{count:,}") for why, count in run.failures.items()])
    _section(
        console,
        "CPU",
        [
            ("harness", ", ".join(f"{share:.0%}" for share in run.harness_cpu), "of a core, for each process"),
            *([] if run.server_cpu is None else [("Redis server", _share(run.server_cpu), "of a core")]),
            ("this machine", _share(run.machine_cpu), f"of its {run.machine.cores} cores"),
        ],
    )
    _verdicts(console, "MUST HOLD", _HOLDS, run.invariants)
    _verdicts(console, "LIMITS", _MET, run.limits)
    console.print()
    for sentence in run.conclusion:
        console.print(sentence, style="bold", soft_wrap=True)


def _circumstances(run: Run) -> str:
    options = run.options
    return (
        f"{run.target.kind}: {run.target.address}{f', {run.target.server}' if run.target.server else ''}\n"
        f"{run.measured_s:.0f} s, {words.load(run)}, slots: {options['slots']:,}, processes: {options['processes']}, "
        f"seed: {options['seed']}\n{words.versions(run)}; {words.machine(run.machine)}"
    )


def _operations(run: Run) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("OPERATION", no_wrap=True)
    failed = any(one.failed for one in run.operations)  # a terminal is narrow, and zeros say nothing
    for head in ("RATE/S", "DONE", "REFUSED", *(["FAILED"] if failed else []), "P50", "P99", "P99.9", "MAX"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in run.operations:
        counts = [one.done, one.refused, *([one.failed] if failed else [])]
        table.add_row(one.name, f"{one.rate:,.0f}", *(f"{count:,}" for count in counts), *_times(one.latency))
    for span in run.spans:
        blank = [""] * (2 if failed else 1)
        table.add_row(span.name, "", f"{span.latency.count:,}", *blank, *_times(span.latency))
    return table


def _times(latency: Latency) -> Iterator[str]:
    return map(ms, (latency.p50_ms, latency.p99_ms, latency.p999_ms, latency.max_ms))


_HOLDS = {True: ("holds", "green"), False: ("BROKEN", "bold red"), None: ("unknown", "yellow")}
_MET = {True: ("met", "green"), False: ("MISSED", "bold red"), None: ("unknown", "yellow")}


def _verdicts(
    console: Console, title: str, words: Mapping[bool | None, tuple[str, str]], verdicts: Sequence[Verdict]
) -> None:
    console.print()
    console.print(title, style="bold")
    for verdict in verdicts:
        word, style = words[verdict.holds]
        console.print(Text.assemble((f"{word:<8}", style), f"{verdict.name}: {verdict.said}"), soft_wrap=True)


def _section(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(title, style="bold")
    console.print(table)
