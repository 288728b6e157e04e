"""No coordinated omission: who was due while the target stood still is in the figures, with all the time it lost.

A stall of 300 ms at 500 arrivals a second concerns 150 of them. Those that were due in its first 200 ms took more than
100 ms each, and are 100. These counts follow from the stall; how fast anything was does not matter.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from overbooked_lock.bench import Options, Run
from overbooked_lock.bench.results import Second
from overbooked_lock.bench.worker import entrances, schedule

RATE, STALL_MS = 500, 300
DURATION, ARRIVALS = timedelta(milliseconds=799), 400
OPEN = {"rate": RATE, "arrivals": "constant", "duration": DURATION}


def test_arrivals_follow_from_the_seed() -> None:
    """Poisson's are the same for the same seed, differ between processes, and are as many as asked for."""
    options = Options(scenario="mixed", rate=1000, processes=2, seed=7)
    first, again, second = (list(schedule(options, process, 5.0, 15.0)) for process in (0, 0, 1))
    assert first == again
    assert {due for _, due in first}.isdisjoint(due for _, due in second)
    assert [number for number, _ in first[:3]] == [0, 2, 4]
    assert all(5.0 < due < 15.0 for _, due in first + second)
    assert len(first + second) == pytest.approx(10_000, rel=0.05)  # five standard deviations
    assert first != list(schedule(replace(options, seed=8), 0, 5.0, 15.0))


def test_constant_arrivals_are_evenly_spread_over_all_processes() -> None:
    """Processes take turns."""
    options = Options(scenario="mixed", rate=10, arrivals="constant", processes=2)
    both = sorted(due for process in (0, 1) for _, due in schedule(options, process, 5.0, 6.0))
    assert both == pytest.approx([5.0 + number / 10 for number in range(10)])


@pytest.mark.parametrize(("warm_up_s", "ramp_s"), [(0, 0.1), (1, 0.5), (60, 1)])
def test_callers_of_a_closed_loop_come_one_after_the_other(warm_up_s: int, ramp_s: float) -> None:
    """From half of the warm-up on, a second at most, all by the start; no open loop has them, and a wave is one."""
    options = Options(scenario="mixed", processes=2, warm_up=timedelta(seconds=warm_up_s))
    both = sorted(one for process in (0, 1) for one in entrances(options, process, 10, 5.0))
    assert [number for number, _ in both] == list(range(10))
    assert [comes for _, comes in both] == pytest.approx([5 - ramp_s + number * ramp_s / 10 for number in range(10)])
    assert replace(options, rate=5.0).ramp == replace(options, scenario="expiry").ramp == timedelta(0)


class Stall:
    """A watcher that has something stand still while the run goes on."""

    def __init__(self, stall: Callable[[], Any]) -> None:
        self._timer = threading.Timer(0.3, stall)

    def phase(self, text: str) -> None:
        """Begins to count when the run does."""
        if text == "running":
            self._timer.start()

    def second(self, second: Second) -> None:
        """Of no concern."""


def pause_processes() -> None:
    """What a machine without time does to the harness itself."""
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid or 0, signal.SIGSTOP)
    time.sleep(STALL_MS / 1000)
    for child in children:
        os.kill(child.pid or 0, signal.SIGCONT)


def lock_of(run: Run) -> Any:
    """What the run says of its locks, each of which is the first thing that an arrival asks for."""
    return next(operation for operation in run.operations if operation.name == "lock")


@pytest.fixture
def pause_server(raw: redis.Redis) -> Callable[[], Any]:
    """Has the server answer nobody for a while."""
    return lambda: raw.client_pause(STALL_MS)


def count_of_slow(run: Run) -> tuple[int, int]:
    """How many locks took longer than a third and than two thirds of the stall."""
    latency = lock_of(run).latency
    return latency.slower_than(STALL_MS / 3), latency.slower_than(2 * STALL_MS / 3)


def assert_stall_is_seen(run: Run) -> None:
    """As many arrivals as were due early enough in the stall; a tenth less, since a schedule has its corners."""
    third, two_thirds = count_of_slow(run)
    assert third >= 0.9 * RATE * STALL_MS / 1000 * 2 / 3
    assert two_thirds >= 0.9 * RATE * STALL_MS / 1000 / 3
    assert lock_of(run).latency.max_ms >= 0.95 * STALL_MS
    assert run.arrivals == lock_of(run).latency.count == ARRIVALS  # nobody was left out


def test_a_server_that_stands_still_shows_in_the_latency_of_all_who_came(
    play: Callable[..., Run], pause_server: Callable[[], Any]
) -> None:
    """In an open loop: arrivals come all the same."""
    assert_stall_is_seen(play("uncontended", Stall(pause_server), **OPEN))


def test_a_harness_that_stands_still_shows_as_well(play: Callable[..., Run]) -> None:
    """What it asks for late was due all the same; how late it was is told, too."""
    found = play("uncontended", Stall(pause_processes), **OPEN)
    assert_stall_is_seen(found)
    assert found.lateness is not None
    assert found.lateness.slower_than(STALL_MS / 3) >= 90
    assert any("late" in sentence for sentence in found.conclusion)


def test_a_closed_loop_sees_the_same_stall_once(play: Callable[..., Run], pause_server: Callable[[], Any]) -> None:
    """Its only caller waits, and asks for nothing meanwhile: that is what the open loop is for."""
    found = play("uncontended", Stall(pause_server), callers=1, duration=DURATION)
    slow = sum(operation.latency.slower_than(2 * STALL_MS / 3) for operation in found.operations)
    assert 1 <= slow <= 3  # a machine may stand still on its own, too
    assert found.arrivals is None


def test_arrivals_beyond_the_backlog_are_dropped_and_counted(
    play: Callable[..., Run], pause_server: Callable[[], Any]
) -> None:
    """Each arrival is either served or counted as dropped, and a run that dropped one does not pass."""
    found = play("uncontended", Stall(pause_server), **OPEN, backlog=10)
    assert found.dropped >= 0.8 * RATE * STALL_MS / 1000
    assert found.arrivals == lock_of(found).latency.count + found.dropped
    assert not found.passed
    assert any("dropped" in sentence for sentence in found.conclusion)


def test_a_rate_that_the_harness_cannot_give_is_dropped_as_well(play: Callable[..., Run]) -> None:
    """Those who came and could not even begin count for the backlog: the run ends in time, and says what it lacks."""
    found = play("hotspot", rate=1_000_000, arrivals="constant", duration=DURATION / 2, backlog=100)
    assert found.arrivals is not None
    assert found.arrivals == lock_of(found).latency.count + found.dropped
    assert found.dropped > found.arrivals / 2
    assert not found.passed
