"""The plots of a report: each one an SVG that takes its colours and its type from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)

from overbooked_lock.bench.results import OUTCOMES, Latency, Operation, Run, Second, Span
from overbooked_lock.bench.words import ms

# matplotlib wants numbers for colours, and the page has one set for light and one for dark: numbers that nobody draws
# with stand for the page's variables until the SVG is done.
_VARIABLES = ("ink", "soft", "line", "done", "refused", "failed", "dropped", *(f"series-{at}" for at in range(1, 8)))
_STANDS_FOR = {name: f"#0000{at:02x}" for at, name in enumerate(_VARIABLES, 1)}
_SERIES = [_STANDS_FOR[f"series-{at}"] for at in range(1, 8)]
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
"""So that lines can be told apart on paper, too."""

_WIDTH_IN = 7.6
_MOST_BARS = 15
_LONGEST_LABEL = 28
_TO = "\N{EN DASH}"
_FAR_APART = 50
"""Of counts that differ by more than that, the axis is logarithmic."""
_SHORTEST_SHOWN_S = 0.2
"""A rate over less is a matter of chance."""

_STYLE: dict[Any, Any] = {  # matplotlib has a type of its own for its names, in some versions
    "svg.fonttype": "none",  # text stays text: it is read aloud, found, and set in the page's type
    "svg.hashsalt": "overbooked-lock",  # the same run, the same page
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 9,
    "axes.edgecolor": _STANDS_FOR["soft"],
    "axes.labelcolor": _STANDS_FOR["soft"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _STANDS_FOR["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.borderaxespad": 0.2,
    "legend.fontsize": 8.5,
    "legend.borderpad": 0.2,
    "lines.linewidth": 1.6,
    "text.color": _STANDS_FOR["ink"],
    "xtick.color": _STANDS_FOR["soft"],
    "ytick.color": _STANDS_FOR["soft"],
}


@dataclass(frozen=True)
class Plot:
    """A plot, or why there is none.

    Attributes:
        name: Tells it from the others of the page.
        title: What it shows.
        reading: How it is to be read; without an ``svg`` why it is missing.
        svg: The plot, for a page that has the variables of its colours; None if the run has no data for it.
    """

    name: str
    title: str
    reading: str
    svg: str | None


@dataclass(frozen=True)
class _Kind:
    """One plot of the table below. ``draw`` gives what it shows in words, for who can't see it."""

    name: str
    title: str
    reading: str
    missing: str
    has: Callable[[Run], bool]
    draw: Callable[[Axes, Run], str]
    height_in: Callable[[Run], float] = lambda _: 3.0


def of(run: Run) -> list[Plot]:
    """All plots of a run, in the order of the page."""
    return [
        Plot(kind.name, kind.title, kind.reading, _svg(kind, run))
        if kind.has(run)
        else Plot(kind.name, kind.title, kind.missing, None)
        for kind in _PLOTS
    ]


def _svg(kind: _Kind, run: Run) -> str:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH_IN, kind.height_in(run)), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.tick_params(which="both", length=0)
        said = kind.draw(axes, run)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(written.getvalue(), kind.name, kind.title, said)


def _inline(svg: str, name: str, title: str, said: str) -> str:
    """Part of a page: without what only a file needs, and with identifiers of its own."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    viewbox = re.search('viewBox="[^"]*"', svg)
    assert viewbox is not None  # noqa: S101 - for the type
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for variable, number in _STANDS_FOR.items():
        body = body.replace(number, f"var(--{variable})")
    return (
        f'<svg role="img" aria-labelledby="{name}-title {name}-said" {viewbox[0]}>'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-said">{escape(said)}</desc>{body}'
    )


# Latency


def _timed(run: Run) -> list[tuple[str, Latency]]:
    timed: list[Operation | Span] = [*run.operations, *run.spans]
    return [(one.name, one.latency) for one in timed if one.latency.count]


def _draw_percentiles(axes: Axes, run: Run) -> str:
    said = []
    rarest = 1.0
    for at, (name, latency) in enumerate(_timed(run)):
        # The slowest of n is at the share that one in n is. The fastest of all says nothing, and would take the axis.
        points = [
            (min(latency.count, 100 / (100 - level) if level < 100 else latency.count), milliseconds)
            for level, milliseconds in latency.curve()
            if level or latency.count == 1
        ]
        axes.plot(*zip(*points, strict=True), label=name, color=_SERIES[at % 7], linestyle=_DASHES[at % 7])
        rarest = max(rarest, latency.count)
        said.append(
            f"{name}: half within {ms(latency.p50_ms)}, 99% within {ms(latency.p99_ms)}, "
            f"all within {ms(latency.max_ms)}"
        )
    limit_s = run.options.get("max_p99_s")
    if isinstance(limit_s, int | float):
        axes.plot([100], [limit_s * 1000], "D", color=_STANDS_FOR["failed"], label="limit of the p99", clip_on=False)
    decades = 1
    while 10**decades < rarest:
        decades += 1
    axes.set_xscale("log")
    axes.set_xlim(1, max(rarest, 100) * 1.1)
    ticks = [1, 2, *(10**decade for decade in range(1, decades + 1) if 10**decade <= rarest * 1.1 or decade <= 2)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _percentile(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share of all that took at most so long")
    _milliseconds(axes)
    _legend(axes)
    return "; ".join(said) + "."


def _percentile(one_in: float) -> str:
    """1 in 1,000 is above 99.9%."""
    return f"{100 - 100 / one_in:.6f}".rstrip("0").rstrip(".") + "%"


def _milliseconds(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 2, 3, 4, 5, 7) if high < 8 * low else (1, 2, 5) if high < 300 * low else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g} ms" if value < 1000 else f"{value / 1000:g} s")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


# Over time


def _whole(run: Run) -> list[Second]:
    return [second for second in run.seconds if second.seconds >= _SHORTEST_SHOWN_S]


def _draw_throughput(axes: Axes, run: Run) -> str:
    seconds = _whole(run)
    edges = _edges(seconds)
    rates: dict[str, list[float]] = {
        name: [second.outcomes[name] / second.seconds for second in seconds] for name in OUTCOMES
    } | {"dropped": [second.dropped / second.seconds for second in seconds]}
    below = [0.0] * len(edges)
    for name, values in rates.items():
        if any(values):
            above = [a + b for a, b in zip(below, _held(values), strict=True)]
            axes.fill_between(edges, below, above, step="post", color=_STANDS_FOR[name], linewidth=0, label=name)
            below = above
    axes.set_ylim(0, max(below) * 1.05 or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel("operations a second")
    _time(axes, run, edges)
    _legend(axes)
    totals: dict[str, int] = {name: sum(second.outcomes[name] for second in run.seconds) for name in OUTCOMES} | {
        "dropped": run.dropped
    }
    return f"{run.rate:,.0f} a second on average. " + ", ".join(f"{n:,} {name}" for name, n in totals.items()) + "."


def _draw_latency_over_time(axes: Axes, run: Run) -> str:
    seconds = [second for second in _whole(run) if second.p50_ms is not None]
    edges = _edges(seconds)
    for at, (label, values) in enumerate(
        (
            ("slowest", [second.max_ms or 0 for second in seconds]),
            ("99%", [second.p99_ms or 0 for second in seconds]),
            ("half", [second.p50_ms or 0 for second in seconds]),
        )
    ):
        axes.step(edges, _held(values), where="post", label=label, color=_SERIES[at], linestyle=_DASHES[at])
    _milliseconds(axes)
    _time(axes, run, edges)
    _legend(axes)
    worst = max(seconds, key=lambda second: second.max_ms or 0)
    ended = f"{worst.at_s:.0f} to {worst.at_s + worst.seconds:.0f} s"
    return f"The slowest of all, {ms(worst.max_ms or 0)}, ended {ended} after the start."


def _draw_cpu(axes: Axes, run: Run) -> str:
    seconds = _whole(run)
    edges = _edges(seconds)
    shown = {
        "Redis server": [second.server_cpu for second in seconds],
        "harness, busiest process": [max(second.harness_cpu, default=None) for second in seconds],
        "machine": [second.machine_cpu for second in seconds],
    }
    for at, (label, values) in enumerate(shown.items()):
        if any(value is not None for value in values):
            # None leaves a gap.
            known = [float("nan") if value is None else 100 * value for value in values]
            axes.step(edges, _held(known), where="post", label=label, color=_SERIES[at], linestyle=_DASHES[at])
    axes.set_ylim(0, max(105.0, axes.get_ylim()[1]))
    axes.axhline(100, color=_STANDS_FOR["soft"], linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
    _time(axes, run, edges)
    _legend(axes)
    means = [("Redis server", run.server_cpu), ("busiest process of the harness", max(run.harness_cpu, default=None))]
    said = [f"{name} {share:.0%} of a core" for name, share in means if share is not None]
    if run.machine_cpu is not None:
        said.append(f"this machine {run.machine_cpu:.0%} of its cores")
    return f"On average: {', '.join(said)}."


def _edges(seconds: Sequence[Second]) -> list[float]:
    """When each second began, and the end of the last one."""
    return [second.at_s for second in seconds] + [seconds[-1].at_s + seconds[-1].seconds]


def _held(values: Sequence[float]) -> list[float]:
    """For edges: the last value holds until the last edge."""
    return [*values, values[-1]]


def _time(axes: Axes, run: Run, edges: Sequence[float]) -> None:
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=edges[-1] - edges[0] > 2))
    axes.set_xlabel("seconds since the start of the load")
    ends = run.options.get("duration_s")
    if isinstance(ends, int | float) and ends < edges[-1] - 0.01:
        axes.axvline(ends, color=_STANDS_FOR["soft"], linestyle=":", linewidth=1.2, label="end of the load")


# Contention and batches


def _draw_busiest(axes: Axes, run: Run) -> str:
    slots = run.contention.busiest[:_MOST_BARS]
    places = range(len(slots))
    attempts = axes.barh(places, [one.attempts for one in slots], 0.72, color=_STANDS_FOR["refused"], label="attempts")
    axes.barh(places, [one.wins for one in slots], 0.36, color=_STANDS_FOR["done"], label="of these, locks")
    axes.bar_label(attempts, [f"{one.wins:,} of {one.attempts:,}" for one in slots], padding=4, fontsize=8)
    counts = [count for one in slots for count in (one.attempts, one.wins) if count]
    far_apart = max(counts) > _FAR_APART * min(counts)
    if far_apart:  # else the short bars could not be seen
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.set_xlim(0, slots[0].attempts ** 1.18)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, slots[0].attempts * 1.18)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_yticks(list(places), [_short(one.slot) for one in slots])
    axes.set_ylim(len(slots) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("attempts to lock it" + (", on a logarithmic axis" if far_apart else ""))
    _legend(axes)
    first = slots[0]
    return f"{first.slot} was asked for most: {first.attempts:,} times, with {first.wins:,} locks."


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"


def _draw_bands(axes: Axes, run: Run) -> str:
    bands = run.contention.bands
    names = _names([(band.attempts_from, band.attempts_to) for band in bands])
    _bars(axes, names, [[band.slots for band in bands]], ["done"], "{:,}".format)
    axes.set_xlabel("attempts to lock a slot")
    axes.set_ylabel("slots")
    most = max(bands, key=lambda band: band.slots)
    return (
        f"{most.slots:,} of {run.contention.slots:,} slots were asked for "
        f"{from_to(most.attempts_from, most.attempts_to)} times."
    )


def _draw_batches(axes: Axes, run: Run) -> str:
    batches, operations = dict[int, int](), dict[int, int]()
    for one in run.batches:
        band = one.operations.bit_length()
        batches[band] = batches.get(band, 0) + one.batches
        operations[band] = operations.get(band, 0) + one.batches * one.operations
    bands = range(min(batches), max(batches) + 1)
    names = _names([(1 << band >> 1, (1 << band) - 1) for band in bands])
    shares = [[100 * sums.get(band, 0) / sum(sums.values()) for band in bands] for sums in (batches, operations)]
    _bars(axes, names, shares, ["refused", "done"], _share, labels=["of the batches", "of the operations"])
    axes.set_xlabel("operations in a batch")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}%"))
    _legend(axes)
    mean = sum(operations.values()) / sum(batches.values())
    return f"{sum(batches.values()):,} batches, with {mean:.1f} operations each on average."


def _bars(
    axes: Axes,
    names: Sequence[str],
    groups: Sequence[Sequence[float]],
    colours: Sequence[str],
    form: Callable[[float], str],
    labels: Iterable[str] = ("",),
) -> None:
    """Groups of bars side by side, each with its number on it."""
    width = 0.8 / len(groups)
    for at, (values, colour, label) in enumerate(zip(groups, colours, labels, strict=True)):
        places = [place + (at - (len(groups) - 1) / 2) * width for place in range(len(names))]
        bars = axes.bar(places, values, width * 0.94, color=_STANDS_FOR[colour], label=label)
        axes.bar_label(bars, [form(value) for value in values], padding=2, fontsize=8)
    axes.set_xticks(range(len(names)), names, fontsize=7.5 if len(names) > 10 else 9)
    axes.set_xlim(-0.6, max(len(names), 4) - 0.4)
    axes.set_ylim(0, max(max(values) for values in groups) * 1.1)
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))


def from_to(first: int, last: int) -> str:
    """How a range of counts reads."""
    return f"{first:,}" if first == last else f"{first:,}{_TO}{last:,}"


def _names(bands: Sequence[tuple[int, int]]) -> list[str]:
    """What stands below bars; where they are many, long names are on two lines."""
    names = [from_to(*band) for band in bands]
    return [name.replace(_TO, f"{_TO}\n") if len(names) > 7 < len(name) else name for name in names]


def _share(percent: float) -> str:
    return "" if not percent else "<1%" if percent < 0.5 else f"{percent:.0f}%"


def _legend(axes: Axes) -> None:
    entries = len(axes.get_legend_handles_labels()[1])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(entries, 4), handlelength=2.2, columnspacing=1.4)


_PLOTS = (
    _Kind(
        "percentiles",
        "Latency by percentile",
        "How long people waited for an answer, the unlucky ones to the right: at 99%, 99 of 100 took at most so long. "
        "Both axes are logarithmic. The right end of a line is the slowest of all.",
        "Nothing was done that could be timed.",
        lambda run: bool(_timed(run)),
        _draw_percentiles,
        lambda _: 3.6,
    ),
    _Kind(
        "throughput",
        "Throughput over time",
        "How many operations ended in each second, and how. Done: it took effect. Refused: an answer, too, another "
        "holds the slot or it is full. Failed: an error, or no answer in time. Dropped: an arrival that was never "
        "served.",
        "The run was too short to show how it went.",
        lambda run: bool(_whole(run)),
        _draw_throughput,
    ),
    _Kind(
        "latency-over-time",
        "Latency over time",
        "Of what ended in each second: within what time half had its answer, 99 of 100, and the slowest of all. "
        "The axis is logarithmic. A stall shows as a step upwards.",
        "The run was too short to show how it went, or nothing was done that could be timed.",
        lambda run: any(second.p50_ms is not None for second in _whole(run)),
        _draw_latency_over_time,
    ),
    _Kind(
        "cpu",
        "Who was busy",
        "100% is one core without a pause: a Redis server or a process of the harness that is near it has nothing left "
        "to give. The machine is that of the harness; its 100% is all of its cores.",
        "How busy anybody was could not be learned, or the run was too short.",
        lambda run: any(second.harness_cpu or second.server_cpu is not None for second in _whole(run)),
        _draw_cpu,
    ),
    _Kind(
        "busiest",
        "The slots that were wanted most",
        f"How often each was asked for (wide bars), and how often somebody got it (narrow bars); the first "
        f"{_MOST_BARS}. What lies between the two were told that the slot is taken.",
        "No slot was asked for.",
        lambda run: bool(run.contention.busiest),
        _draw_busiest,
        lambda run: 1.0 + 0.21 * min(_MOST_BARS, len(run.contention.busiest)),
    ),
    _Kind(
        "demand",
        "How wanted slots were",
        "How many slots were asked for how often: the further to the right, the more people wanted the same slot.",
        "All slots were wanted about as often as each other, or there was only one.",
        lambda run: len(run.contention.bands) > 1 and bool(run.contention.busiest),
        _draw_bands,
        lambda _: 2.6,
    ),
    _Kind(
        "batches",
        "Batches",
        "The engine merges what is asked for at the same moment: so many operations went to the server together, in "
        "one batch. Bigger batches cost the server less for each operation.",
        "Whether operations were merged into batches can't be seen from here: another process talks to the Redis.",
        lambda run: bool(run.batches),
        _draw_batches,
        lambda _: 2.6,
    ),
)
