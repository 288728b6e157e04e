"""The chart of a report: pairs a second of 200 callers, and the time that a pair takes a single one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.report import Comparison, Report, number

# Greys and colours in the middle, on no background: they read on a light page as on a dark one.
TEXT, LINE = "#727b85", "#727b8555"
OURS, THEIRS, SCALE = "#2f81f7bb", "#8b949e99", "#8b949e44"


def draw(report: Report, path: Path) -> None:
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "overbooked-lock",
        "font.size": 10,
        "text.color": TEXT,
    }
    with mpl.rc_context(settings):
        heights = [len(_measured(comparison)) for comparison in report.comparisons]
        layout = ConstrainedLayoutEngine(hspace=0.08, w_pad=0.12)
        figure = Figure(figsize=(8.4, sum(heights) * 0.32 + 2.8), layout=layout)
        parts = figure.subplots(len(heights), 1, height_ratios=[height + 1 for height in heights])
        for part, comparison in zip(parts, report.comparisons, strict=True):
            _bars(part, comparison)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def _measured(comparison: Comparison) -> list[tuple[str, float, float, float]]:
    """Name, median and the ends of the middle half; the best first."""
    found = [
        (peer.name, peer.figure.median, *peer.figure.middle_half)
        for peer in comparison.peers
        if peer.figure is not None
    ]
    return sorted(found, key=lambda bar: bar[1], reverse=comparison.unit == "pairs/s")


def _bars(part: mpl.axes.Axes, comparison: Comparison) -> None:
    bars = _measured(comparison)
    names = [name for name, *_ in bars]
    medians = [median for _, median, *_ in bars]
    errors = [[median - lower for _, median, lower, _ in bars], [upper - median for _, median, _, upper in bars]]
    ours = comparison.peers[0].name
    colours = [OURS if name == ours else SCALE if name == "two PINGs" else THEIRS for name in names]
    part.barh(names, medians, xerr=errors, color=colours, ecolor=TEXT, height=0.7, error_kw={"elinewidth": 1})
    for place, (_, median, _, upper) in enumerate(bars):
        part.annotate(number(median), (upper, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    better = "more is better" if comparison.unit == "pairs/s" else "less is better"
    part.set_title(f"{comparison.title}: {comparison.unit} ({better})", loc="left", color=TEXT, fontsize=10)
    part.invert_yaxis()
    part.set_xlim(0, max(upper for *_, upper in bars) * 1.16)
    part.tick_params(colors=TEXT, length=0)
    part.grid(axis="x", color=LINE, linewidth=0.6)
    part.set_axisbelow(True)
    part.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for side in part.spines.values():
        side.set_visible(False)
