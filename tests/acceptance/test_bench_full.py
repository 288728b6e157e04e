"""The benchmark against the peers runs, and what it writes agrees. How fast anything was is not asserted."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import full, report
from benchmarks.measuring import Spread, in_turns
from benchmarks.report import Report, Row
from benchmarks.worker import Missing, Worker

ROOT = Path(__file__).parents[2]
ASYNC = ["overbooked-lock", "redis-py asyncio", "valkey-glide", "node-redlock", "coredis", "pottery AIORedlock"]
SYNC = ["overbooked-lock", "redis-py", "python-redis-lock", "pottery Redlock", "two PINGs"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a very short run wrote and printed."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copy(ROOT / "README.md", folder)
    command = [
        sys.executable,
        "-m",
        "benchmarks.full",
        "--seconds",
        "0.02",
        "--rounds",
        "1",
        "--slots",
        "1000",
        "--json",
    ]
    command += ["--results", str(folder), "--readme", str(folder / "README.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "printed.json").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Report:
    return report.read(folder)


def test_every_peer_is_measured_or_named_as_missing(found: Report) -> None:
    """None is left out in silence."""
    many, one, sync = found.comparisons
    assert [peer.name for peer in many.peers] == [peer.name for peer in one.peers] == ASYNC
    assert [peer.name for peer in sync.peers] == SYNC
    for comparison in found.comparisons:
        ours, *others = comparison.peers
        assert ours.figure is not None
        for peer in others:
            assert (peer.figure is None) == (peer.ratio is None) == (peer.missing is not None)
            if peer.figure is not None:
                assert peer.figure.median > 0
                assert peer.versions


def test_redis_py_is_always_there(found: Report) -> None:
    """It is a dependency of ours."""
    assert found.comparisons[0].of(full.REDIS_PY_ASYNCIO).ratio is not None
    assert found.comparisons[2].of(full.REDIS_PY).ratio is not None


def test_every_row_has_a_figure_or_says_that_it_has_none(found: Report) -> None:
    """Only those next to a peer may lack one."""
    assert len(found.rows) == 20
    for row in found.rows:
        assert row.floor is not None or row.aim is not None
        if row.value is None:
            assert "÷" in row.what
            assert row.verdict == "not measured"


def test_the_server_is_told_of_by_itself(found: Report) -> None:
    """redis-benchmark may be missing; INFO is not."""
    assert len(found.ceilings) == 3
    assert all(ceiling.server_microseconds > 0 for ceiling in found.ceilings)


def test_the_circumstances_are_written_down(found: Report) -> None:
    for name in ("machine", "cores", "load before", "overbooked-lock", "python", "server", "transport"):
        assert name in found.circumstances
    assert found.command == "python -m benchmarks.full --seconds 0.02 --rounds 1 --slots 1000"


def test_what_was_written_is_what_was_printed(folder: Path) -> None:
    assert json.loads((folder / "printed.json").read_text()) == json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("of_the_tree", [False, True], ids=["this run", "the run in the tree"])
def test_results_and_readme_agree(folder: Path, of_the_tree: bool) -> None:
    """Both are made of results.json."""
    folder, readme = (report.FOLDER, ROOT) if of_the_tree else (folder, folder)
    stored = report.read(folder)
    assert (folder / "RESULTS.md").read_text() == report.results_text(stored)
    text = (readme / "README.md").read_text()
    assert text == report.with_figures(text, stored)
    assert report.readme_text(stored) in text


def test_the_chart_shows_every_peer_that_was_measured(folder: Path, found: Report) -> None:
    chart = (folder / "results.svg").read_text()
    for comparison in found.comparisons:
        for peer in comparison.peers:
            assert (f">{peer.name}<" in chart) >= (peer.figure is not None)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("benchmarks.peers.nobody", "ModuleNotFoundError: No module named 'benchmarks.peers.nobody'"),
        ("peers/nobody.mjs", ""),
    ],
)
def test_a_peer_that_cannot_be_had_says_why(program: str, why: str) -> None:
    with Worker(program, "redis://127.0.0.1:1") as worker, pytest.raises(Missing) as missing:
        worker.connect()
    assert why in str(missing.value)
    assert str(missing.value)
    assert str(ROOT) not in str(missing.value)


def row(
    value: float | None, floor: float | None, aim: float | None, *, less: bool = False, instead: bool = False
) -> Row:
    return Row(what="it", unit="ms", value=value, floor=floor, aim=aim, less_is_better=less, instead=instead)


@pytest.mark.parametrize(
    ("judged", "verdict"),
    [
        (row(12, 7, 10), "aim reached"),
        (row(8, 7, 10), "floor met"),
        (row(6, 7, 10), "FLOOR MISSED"),
        (row(12, 14, 10, less=True), "floor met"),
        (row(9, 14, 10, less=True), "aim reached"),
        (row(15, 14, 10, less=True), "FLOOR MISSED"),
        (row(15, 14, 10, less=True, instead=True), "other floor met"),
        (row(8, 7, None), "floor met"),
        (row(8, None, 10), "aim not reached"),
        (row(None, 7, 10), "not measured"),
    ],
)
def test_a_row_is_judged_by_its_floor_and_its_aim(judged: Row, verdict: str) -> None:
    assert judged.verdict == verdict


def test_check_fails_when_a_floor_is_missed(
    monkeypatch: pytest.MonkeyPatch, found: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And only then, and only if asked."""
    shutil.copy(ROOT / "README.md", tmp_path)

    def run(value: float, *options: str) -> int:
        others = [other.model_copy(update={"value": None}) for other in found.rows]
        measured = ([row(value, 7, 10), *others], found.comparisons, found.ceilings, found.circumstances)
        monkeypatch.setattr(full, "measure", lambda *_: measured)
        return full.main([*options, "--results", str(tmp_path), "--readme", str(tmp_path / "README.md")])

    assert run(8, "--check") == 0
    assert run(6, "--check") == 1
    assert run(6) == 0
    assert "FLOOR MISSED" in capsys.readouterr().out


def test_sides_take_turns_and_each_begins_a_round() -> None:
    clock = itertools.count(1)
    assert in_turns("abc", lambda _: next(clock), 3) == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_a_spread_has_the_median_the_middle_half_and_the_ends() -> None:
    assert Spread.of([5, 1, 4, 2, 3]) == Spread(3, (2, 4), (1, 5))
    assert Spread.of([2]) == Spread(2, (2, 2), (2, 2))
    assert Spread.of_ratios([10, 30, 60], [10, 10, 10]).median == 3
