"""What a run of ``benchmarks.full`` found, and how it reads: in ``RESULTS.md``, in a chart and in the README.

``results.json`` is the one source. ``python -m benchmarks.report`` writes all the rest from it again.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from benchmarks.measuring import Spread

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent
HTTP_RATIO, HTTP_RATE = "HTTP lock, one worker ÷ the reference app", "the same, locks a second"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Verdict = Literal["aim reached", "floor met", "other floor met", "FLOOR MISSED", "aim not reached", "not measured"]


class Peer(BaseModel):
    """A side of one comparison."""

    name: str
    versions: dict[str, str] = {}
    missing: str | None = None
    """Why it could not be measured."""
    figure: Spread | None = None
    """In the comparison's unit."""
    ratio: Spread | None = None
    """Ours to this peer's, of the rounds' own."""


class Comparison(BaseModel):
    """The same work by several, in turns; the first is ours."""

    title: str
    unit: Literal["pairs/s", "µs/pair"]
    peers: list[Peer]

    def of(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)


class Ceiling(BaseModel):
    """What the server can do with one command. Calls a second are None where there was no program to count them."""

    what: str
    server_microseconds: float
    one_by_one: float | None
    pipelined: float | None


class Row(BaseModel):
    """A figure that has a floor and an aim: at least these, or, where less is better, at most."""

    what: str
    unit: str
    """Empty for a ratio."""
    value: float | None
    spread: Spread | None = None
    floor: float | None
    aim: float | None
    less_is_better: bool = False
    instead: bool = False
    """The floor of another row may be met in the place of this one's, and is."""
    note: str = ""

    def reaches(self, limit: float | None) -> bool:
        if self.value is None or limit is None:
            return False
        return self.value <= limit if self.less_is_better else self.value >= limit

    @property
    def verdict(self) -> Verdict:
        if self.value is None:
            return "not measured"
        if self.reaches(self.aim):
            return "aim reached"
        if self.floor is None:
            return "aim not reached"
        if self.reaches(self.floor):
            return "floor met"
        return "other floor met" if self.instead else "FLOOR MISSED"

    def limit_text(self, limit: float | None) -> str:
        return "" if limit is None else f"{'≤' if self.less_is_better else '≥'} {number(limit)}{self.suffix}"

    def value_text(self) -> str:
        return "not measured" if self.value is None else f"{number(self.value)}{self.suffix}"

    @property
    def suffix(self) -> str:
        return self.unit if self.unit in {"", "%"} else f" {self.unit}"

    def spread_text(self) -> str:
        if self.spread is None:
            return ""
        (lower, upper), (least, most) = self.spread.middle_half, self.spread.range
        return f"{number(lower)} to {number(upper)} ({number(least)} to {number(most)})"


class Report(BaseModel):
    command: str
    date: str
    circumstances: dict[str, str | int | float]
    rows: list[Row]
    comparisons: list[Comparison]
    ceilings: list[Ceiling]

    @property
    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == "FLOOR MISSED"]

    def row(self, what: str) -> Row:
        return next(row for row in self.rows if row.what == what)


def number(value: float) -> str:
    """With three digits that tell something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def versions_text(peer: Peer) -> str:
    return ", ".join(f"{package} {version}" for package, version in peer.versions.items())


def results_text(report: Report) -> str:
    """RESULTS.md."""
    lines = [
        "# Results",
        "",
        f"Written by `{report.command}` on {report.date}; [README.md](README.md) says what is measured, and how.",
        "",
        ", ".join(f"{name} {value}" for name, value in report.circumstances.items()) + ".",
        "",
        "![Lock and unlock with 200 callers and with one, ours and the peers'](results.svg)",
        "",
        "## Floors and aims",
        "",
        *_table(
            ["what", "found", "middle half (range)", "floor", "aim", "", "note"],
            "lrrrrll",
            [
                [
                    row.what,
                    row.value_text(),
                    row.spread_text(),
                    row.limit_text(row.floor),
                    row.limit_text(row.aim),
                    row.verdict,
                    row.note,
                ]
                for row in report.rows
            ],
        ),
    ]
    for comparison in report.comparisons:
        lines += [
            "",
            f"## {comparison.title}",
            "",
            *_table(
                ["", comparison.unit, "middle half", "range", "ours ÷ this", "middle half", "range", "versions"],
                "lrrrrrrl",
                [_peer_row(peer) for peer in comparison.peers],
            ),
        ]
    lines += [
        "",
        "## What the server can do at most",
        "",
        *_table(
            ["one command a call", "the server's own µs", "calls/s, 50 connections", "calls/s, with -P 64"],
            "lrrr",
            [
                [
                    ceiling.what,
                    number(ceiling.server_microseconds),
                    *map(_rate, (ceiling.one_by_one, ceiling.pipelined)),
                ]
                for ceiling in report.ceilings
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


def _peer_row(peer: Peer) -> list[str]:
    if peer.figure is None:
        return [peer.name, f"missing: {peer.missing}", *[""] * 6]
    cells = [peer.name]
    for spread in (peer.figure, peer.ratio):
        if spread is None:
            cells += [""] * 3
        else:
            ends = (spread.middle_half, spread.range)
            cells += [number(spread.median), *(f"{number(low)} to {number(high)}" for low, high in ends)]
    return [*cells, versions_text(peer)]


def _rate(rate: float | None) -> str:
    return "no redis-benchmark here" if rate is None else number(rate)


def _table(head: list[str], alignment: str, rows: Iterable[list[str]]) -> list[str]:
    rules = ["---:" if side == "r" else "---" for side in alignment]
    return [f"| {' | '.join(cells)} |" for cells in (head, rules, *rows)]


def readme_text(report: Report) -> str:
    """What the README says between its markers."""
    many, one, sync = report.comparisons
    measured = [peer for peer in many.peers if peer.figure is not None]
    missing = [peer.name for peer in many.peers if peer.figure is None]
    rows = [
        [peer.name, number(peer.figure.median), number(peer.ratio.median) if peer.ratio else ""]
        for peer in sorted(measured, key=lambda peer: peer.figure.median if peer.figure else 0, reverse=True)
        if peer.figure is not None
    ]
    about = report.circumstances
    lines = [
        *_table(["200 async callers, one process", "lock + unlock a second", "ours ÷ this"], "lrr", rows),
        "",
        textwrap.fill(
            f"With one async caller a pair takes {_ratio(one.of('redis-py asyncio'))} of the time of redis-py's "
            f"asyncio `Lock`, with one thread {_ratio(sync.of('redis-py'))} of its `Lock`'s. Over HTTP, one worker "
            f"answers {report.row(HTTP_RATE).value_text()}, {report.row(HTTP_RATIO).value_text()} times as many as an "
            f"app that one would write without us. ({about['server']}, {about['transport']}, {about['cores']} cores "
            "for server and clients.)",
            120,
        ),
    ]
    if missing:
        lines += ["", f"Missing in that run: {', '.join(missing)}."]
    return "\n".join(lines)


def _ratio(peer: Peer) -> str:
    assert peer.ratio is not None, f"{peer.name} comes with us"
    return number(peer.ratio.median)


def with_figures(readme: str, report: Report) -> str:
    """The README with the figures of a report between its markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"the README has no {BEGIN}"
    assert end, f"the README has no {END}"
    return f"{before}{BEGIN}\n\n{readme_text(report)}\n\n{END}{after}"


def write(report: Report, folder: Path, readme: Path) -> None:
    """All four: the JSON, RESULTS.md, the chart and the README's figures."""
    (folder / "results.json").write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / "RESULTS.md").write_text(results_text(report), encoding="utf-8")
    readme.write_text(with_figures(readme.read_text(encoding="utf-8"), report), encoding="utf-8")
    from benchmarks import chart  # noqa: PLC0415  it draws what stands here

    chart.draw(report, folder / "results.svg")


def read(folder: Path = FOLDER) -> Report:
    return Report.model_validate_json((folder / "results.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    write(read(), FOLDER, ROOT / "README.md")
