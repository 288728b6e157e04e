"""Fair waiting where processes die and replies are lost: the order holds, and the wait has a bound."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import redis

from overbooked_lock import EmbeddedServer, LockEngine, StoreUnavailable, scripts
from overbooked_lock.keys import Keys

from .proxy import Proxy, runs
from .tools import MINUTE, Connect, milliseconds, until

SLOT = "seat 7"
LONG = timedelta(seconds=30)
TICKET_LIVES = 3.0
"""Seconds, as promised."""

Start = Callable[[str, int], "subprocess.Popen[str]"]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.touch()
    return path


@pytest.fixture
def start(journal: Path, lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[Start]:
    """Starts a process whose waiters join the line."""
    started: list[subprocess.Popen[str]] = []
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])

    def start(name: str, count: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-m", "chaos.fair_worker", lock_server.url, lock_namespace]
        process = subprocess.Popen(
            [*command, str(journal), name, str(count), SLOT],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Line:
    """The line as the server has it."""

    def __init__(self, raw: redis.Redis, namespace: str) -> None:
        self._raw, self._keys = raw, Keys(namespace)

    def keys(self) -> list[str]:
        """The lock_keys of who waits, in the order of their arrival."""
        tickets = cast("list[str]", self._raw.zrange(self._keys.queue(SLOT), 0, -1))
        told = cast("dict[str, str]", self._raw.hgetall(self._keys.tickets(SLOT)))
        return [told[ticket].split(" ", 2)[2] for ticket in tickets if ticket in told]


@pytest.fixture
def line(raw: redis.Redis, lock_namespace: str) -> Line:
    return Line(raw, lock_namespace)


@pytest.fixture
def direct(lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[LockEngine]:
    """An engine with nothing between it and the server."""
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        yield engine


def test_the_order_survives_kills(start: Start, direct: LockEngine, line: Line, journal: Path, soak: bool) -> None:
    """A third of the processes die at some time; all others get the slot in the order they came."""
    processes, each = (10, 10) if soak else (5, 6)
    draw = random.Random(7)
    held = direct.lock(SLOT, lock_for=MINUTE)
    working = {f"p{number}": start(f"p{number}", each) for number in range(processes)}
    until(lambda: len(line.keys()) == processes * each, seconds=30)
    arrived = line.keys()
    doomed = draw.sample(sorted(working), round(processes / 3))
    began = time.monotonic()
    direct.unlock(held)
    for name in doomed:
        time.sleep(draw.uniform(0, 0.4))  # at any moment: in line, with a turn, or with the lock
        working[name].kill()
    for name, process in working.items():
        _, errors = process.communicate(timeout=60)
        assert (process.returncode == 0) is (name not in doomed), errors
    # Who died in line, with a turn or with the lock costs a ticket's life or the rest of its lock, each kill once.
    assert time.monotonic() - began < processes * each * 0.1 + len(doomed) * (TICKET_LIVES + 0.5)
    got = [entry.split() for entry in journal.read_text().splitlines()]
    served = [key for key, _ in got]
    assert served == [key for key in arrived if key in set(served)]
    assert {key for key in arrived if key.split(".")[0] not in doomed} <= set(served)
    tokens = [int(token) for _, token in got]
    assert tokens == sorted(set(tokens))
    until(lambda: line.keys() == [], seconds=TICKET_LIVES + 1)  # the dead at its end stay as long as their tickets


def test_a_killed_head_delays_the_next_by_no_more_than_promised(
    start: Start, connect: Connect, direct: LockEngine, line: Line, lock_server: EmbeddedServer
) -> None:
    """It is the ticket's life, however late the slot comes free."""
    engine = connect(lock_server.url)
    held = direct.lock(SLOT, lock_for=MINUTE)
    head = start("head", 3)
    until(lambda: len(line.keys()) == 3)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(engine.lock, SLOT, lock_for=MINUTE, wait=LONG, fair=True)
        until(lambda: len(line.keys()) == 4)
        head.kill()
        killed = time.monotonic()
        direct.unlock(held)
        lock = waiting.result()
    assert time.monotonic() - killed < TICKET_LIVES + 0.5
    assert lock.fencing_token > held.fencing_token


@pytest.mark.parametrize("which", ["the one that joins", "the one that takes the turn"])
def test_a_lost_reply_costs_nobody_its_place(
    connect: Connect, proxy: Proxy, direct: LockEngine, line: Line, which: str
) -> None:
    """Sent again it finds the ticket in line, or the turn taken: one lock, newly made, and still the first."""
    engine = connect(proxy.url, timeout=milliseconds(10_000))
    held = direct.lock(SLOT, lock_for=MINUTE)
    fair = runs(scripts.LOCK_FAIR)
    if which == "the one that joins":
        proxy.lose_reply(fair, times=2)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(engine.lock, SLOT, lock_for=MINUTE, wait=LONG, fair=True)
        until(lambda: len(line.keys()) == 1)
        second = pool.submit(direct.lock, SLOT, lock_for=MINUTE, wait=LONG, fair=True)
        until(lambda: len(line.keys()) == 2)
        if which == "the one that takes the turn":
            proxy.lose_reply(fair)
        direct.unlock(held)
        lock = waiting.result()
        assert proxy.done["lose_reply"] >= 1
        assert not lock.already_held
        assert not second.done()
        assert engine.check(lock) is not None
        proxy.lose_reply(runs(scripts.UNLOCK))
        # The next in line has the slot when the unlock is sent again: it was this call's own work all the same.
        assert engine.unlock(lock).released
        assert second.result().fencing_token > lock.fencing_token


def test_an_engine_that_is_closed_leaves_the_line_that_it_was_about_to_join(
    connect: Connect, proxy: Proxy, direct: LockEngine, line: Line
) -> None:
    """The server hears of the waiter only when its engine is being closed."""
    engine = connect(proxy.url)
    engine.check(SLOT, lock_key="whoever")  # connects
    direct.lock(SLOT, lock_for=MINUTE)
    fair = runs(scripts.LOCK_FAIR)
    proxy.hold_request(fair)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(engine.lock, SLOT, lock_for=MINUTE, wait=LONG, fair=True)
        until(lambda: proxy.done["hold_request"])
        closing = pool.submit(engine.close)
        wait([closing], timeout=0.1)  # one that does not care has closed by now
        proxy.heal()
        with pytest.raises(StoreUnavailable, match="closed"):
            waiting.result()
        closing.result()
    until(lambda: proxy.late)
    assert line.keys() == []
