"""The demo: that it runs, tells what it found, and would find what must not be."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

from overbooked_lock import EmbeddedServer, LockEngine
from overbooked_lock.demo import Attempt, judge

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
SMALL = ("--contenders", "40", "--slots", "4", "--processes", "2")

BROKEN_ENGINE = """
from overbooked_lock import AsyncLockEngine, LockEngine
lock, lock_async = LockEngine.lock, AsyncLockEngine.lock

def steal(self, slot_id, **options):
    self.force_unlock(slot_id)
    return lock(self, slot_id, **options)

async def steal_async(self, slot_id, **options):
    await self.force_unlock(slot_id)
    return await lock_async(self, slot_id, **options)

LockEngine.lock, AsyncLockEngine.lock = steal, steal_async
"""


def demo(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the demo to its end."""
    return subprocess.run(
        [PROGRAM, "demo", *SMALL, *words],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_short_run_finds_no_double_lock() -> None:
    """Out of a terminal the demo prints plain text, and its verdict last."""
    done = demo("--seconds", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seat-4" in done.stdout
    assert "killed (SIGKILL)" in done.stdout
    assert "\n0 double locks in" in done.stdout
    assert "\x1b" not in done.stdout


def test_figures_come_as_json(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """The figures agree with each other, and nothing stays behind on a server of one's own."""
    done = demo("--seconds", "0.5", "--json", "--url", lock_server.url)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)["data"]
    assert figures["attempts"] == figures["granted"] + figures["refused"]
    assert figures["granted"] == sum(slot["locks"] for slot in figures["slots"].values())
    assert figures["double_locks"] == figures["stale_tokens"] == []
    before, after = figures["crash"]["fencing_tokens"]
    assert after > before
    assert figures["crash"]["free_for_s"] > 0
    with LockEngine.from_url(lock_server.url, namespace="overbooked-lock-demo") as engine:
        assert engine.list_slots().total == 0
        assert engine.list_locks() == []


def test_it_finds_the_double_locks_of_a_broken_engine(tmp_path: Path) -> None:
    """An engine that takes slots from their holders is found out."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN_ENGINE)
    done = demo("--seconds", "0.5", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "still held it when" in done.stdout
    assert "\n0 double locks" not in done.stdout


def grant(contender: str, start: float, end: float, token: int, slot_id: str = "s") -> Attempt:
    """A lock from ``start`` to ``end``."""
    return Attempt(contender, slot_id, start - 10, start, end, token)


def test_locks_one_after_the_other_are_in_order() -> None:
    """The time before an answer counts for nobody, and slots have nothing to do with each other."""
    refused = Attempt("d", "s", 1, 1.5)
    assert judge([grant("b", 2, 3, 8), refused, grant("a", 1, 2, 7), grant("c", 1, 3, 7, "other")]) == ([], [])


@pytest.mark.parametrize(
    "grants",
    [
        [grant("a", 1, 2, 7), grant("b", 1.9, 3, 8)],
        [grant("a", 1, 9, 7), grant("c", 10, 11, 9), grant("b", 8, 8.5, 8)],
    ],
)
def test_locks_that_overlap_are_double(grants: list[Attempt]) -> None:
    """However short the overlap is, and whatever comes in between."""
    double_locks, stale_tokens = judge(grants)
    assert double_locks == ["s: a still held it when b got it"]
    assert stale_tokens == []


def test_a_long_lock_is_remembered() -> None:
    """A lock that outlasts the next one is still seen by the one after that."""
    double_locks, _ = judge([grant("a", 1, 9, 7), grant("b", 2, 3, 8), grant("c", 5, 6, 9)])
    assert len(double_locks) == 2


def test_a_fencing_token_must_rise() -> None:
    """An equal token is as bad as a lower one."""
    assert judge([grant("a", 1, 2, 7), grant("b", 2, 3, 7)])[1] == ["s: fencing token 7 came after 7"]
