"""Many processes, few slots, kills and pauses: what their journals say must be free of contradictions.

The checker is put to the proof, too: each promise is broken once in a history made by hand, and it must see it.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from overbooked_lock import EmbeddedServer, LockEngine

from .history import CLOCK, Belief, Journal, Operation, Outcome, Reader, Verb, beliefs, fingerprint, violations
from .tools import MINUTE, until
from .worker import LONGEST, WRONG_KEY

PROCESSES = 8
SLOTS = [f"court-{number}" for number in range(5)]
FREED = 1.0
"""Seconds after a dead holder's date by which one of its many rivals must have had the slot."""


RECENT = 5.0
"""Seconds after which an operation has no say in who holds a slot."""


class Worker:
    """A process that works on the slots, and its journal."""

    def __init__(self, folder: Path, server: EmbeddedServer, namespace: str, name: str, seed: int) -> None:
        self.name = name
        path = folder / f"{name}.jsonl"
        path.touch()
        self.operations = Reader(path).read
        # The workers' package is imported from here, and the engine from where we have it.
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "chaos.worker", server.url, namespace, path, name, str(seed), *SLOTS],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )

    def holding(self, at: float) -> list[Belief]:
        """The locks that it had then, each as it was extended last."""
        recent = self.operations(since=at - RECENT)
        last = {(belief.holder.slot, belief.holder.key): belief for belief in beliefs(recent)}
        return [belief for belief in last.values() if belief.end > at]

    def end(self) -> tuple[int, str]:
        """Tells it to end and waits: its exit code, and what it had to say about errors."""
        _, errors = self.popen.communicate()
        return self.popen.returncode, errors


@dataclass(frozen=True)
class Blow:
    """A process was killed, or stopped for a while, with these locks in its hands."""

    kind: str
    process: str
    at: float
    held: list[Belief]
    until: float = math.inf


class Nemesis:
    """Kills processes and stops others beyond their locks, and keeps their number."""

    def __init__(self, start: Callable[[], Worker], seed: int) -> None:
        self._start = start
        self.seed = seed
        self._draw = random.Random(seed)
        self.workers = [start() for _ in range(PROCESSES)]
        self.dead: list[Worker] = []
        self.blows: list[Blow] = []

    def rage(self, seconds: float) -> None:
        """Strikes about once a second, at a process that holds a slot."""
        over = time.monotonic() + seconds
        self._pick()  # all have started when one holds a slot
        while time.monotonic() < over:
            time.sleep(self._draw.uniform(0.3, 0.6))
            if len(self.blows) % 2:
                self._kill(self._pick())
            else:
                self._pause(self._pick())

    def end(self) -> list[Operation]:
        """Lets all that live end in peace; returns what was done from first to last."""
        last = self.blows[-1]
        until(lambda: all(taken_over(belief, self._history(last.at)) < math.inf for belief in last.held))
        with ThreadPoolExecutor(PROCESSES) as pool:
            assert set(pool.map(Worker.end, self.workers)) == {(0, "")}
        return self._history()

    def _history(self, since: float = 0.0) -> list[Operation]:
        return [one for worker in self.workers + self.dead for one in worker.operations(since)]

    def _pick(self) -> Worker:
        # Not one that was stopped a moment ago: what it had on its way then is not yet over.
        spared = self.blows[-1].process if self.blows else ""
        candidates = [worker for worker in self.workers if worker.name != spared]
        self._draw.shuffle(candidates)
        holders = list[Worker]()

        def some_hold() -> bool:
            soon = time.monotonic() + 0.1
            holders[:] = [worker for worker in candidates if worker.holding(soon)]
            return bool(holders)

        until(some_hold)
        return holders[0]

    def _kill(self, worker: Worker) -> None:
        worker.popen.kill()
        at = time.monotonic()
        worker.end()
        held = worker.holding(at)
        self.blows.append(Blow("kill", worker.name, at, held))
        self.workers.remove(worker)
        self.dead.append(worker)
        self.workers.append(self._start())

    def _pause(self, worker: Worker) -> None:
        worker.popen.send_signal(signal.SIGSTOP)
        at = time.monotonic()
        try:
            held = worker.holding(at)
            until(lambda: all(taken_over(belief, self._history(at - RECENT)) < math.inf for belief in held))
        finally:
            worker.popen.send_signal(signal.SIGCONT)
        self.blows.append(Blow("pause", worker.name, at, held, time.monotonic()))


def taken_over(belief: Belief, history: Iterable[Operation]) -> float:
    """Seconds from a lock's deadline until somebody else had its slot; negative if that was earlier."""
    lost = belief.holder
    next_ = (one.returned for one in history if one.granted and one.slot == lost.slot and one.token > lost.token)
    return min(next_, default=math.inf) - belief.end


def late_calls(blow: Blow, history: Iterable[Operation]) -> int:
    """How often a process that was stopped beyond its locks has called for them afterwards."""
    lost = {(belief.holder.slot, belief.holder.key) for belief in blow.held}
    return sum((one.slot, one.key) in lost and one.called > blow.until for one in history)


@pytest.fixture
def nemesis(own_server: EmbeddedServer, lock_namespace: str, tmp_path: Path) -> Iterator[Nemesis]:
    """Eight processes at work, and who disturbs them."""
    seed = random.randrange(10**6)
    started = list[Worker]()

    def start() -> Worker:
        name = f"p{len(started)}"
        started.append(Worker(tmp_path, own_server, lock_namespace, name, seed + len(started)))
        return started[-1]

    yield Nemesis(start, seed)
    for worker in started:
        worker.popen.kill()
        worker.popen.communicate()


@pytest.mark.timeout(900)
def test_many_processes_share_few_slots(
    nemesis: Nemesis, own_server: EmbeddedServer, lock_namespace: str, soak: bool
) -> None:
    """Mutual exclusion, rising tokens, nobody's lock in another's hands, and every dead holder's slot free in time."""
    nemesis.rage(300 if soak else 20)
    history = nemesis.end()
    assert violations(history) == [], f"with the seed {nemesis.seed}"

    # With nobody in the way all this would prove nothing: it must have been tight, and the blows must have hit.
    done = Counter((one.verb, one.outcome) for one in history)
    assert done["lock", "ok"] > 250
    assert done["lock", "refused"] > 500
    assert min(done[verb, "ok"] for verb in ("extend", "check", "unlock")) > 100
    assert sum(one.key == fingerprint(WRONG_KEY) for one in history) > 50
    kills = [blow for blow in nemesis.blows if blow.kind == "kill" and blow.held]
    pauses = [blow for blow in nemesis.blows if blow.kind == "pause" and blow.held]
    assert min(len(kills), len(pauses)) > 5
    assert sum(late_calls(pause, history) for pause in pauses) > 0  # how many is up to the machine

    # A dead holder's slot was free at its date: rivals are so many that one of them had it soon after.
    for belief in (belief for kill in kills for belief in kill.held):
        assert taken_over(belief, history) < FREED

    # And at the end every slot can be locked, by the date of the lock that may still be on it.
    with LockEngine.from_url(own_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        for slot in SLOTS:
            engine.unlock(engine.lock(slot, lock_for=MINUTE, wait=timedelta(seconds=LONGEST + CLOCK)))


# The checker


def op(verb: Verb, actor: str, called: float, outcome: Outcome, *, key: str = "", **given: Any) -> Operation:
    """A call that takes a hundredth of a second, by a client with one key."""
    facts: dict[str, Any] = {"slot": "s", "returned": called + 0.01, "asked": 0.5} | given
    return Operation(verb=verb, actor=actor, key=key or f"key of {actor}", called=called, outcome=outcome, **facts)


def good() -> dict[str, Operation]:
    """Anna locks, extends and unlocks; Ben locks and dies; Cleo gets the slot at Ben's date."""
    return {
        "anna locks": op("lock", "anna", 0.00, "ok", token=10, deadline=0.50),
        "ben is refused": op("lock", "ben", 0.10, "refused"),
        "anna extends": op("extend", "anna", 0.20, "ok", token=10, deadline=0.70),
        "anna checks": op("check", "anna", 0.30, "ok", token=10, deadline=0.70),
        "a stranger unlocks": op("unlock", "eve", 0.32, "refused"),
        "anna unlocks": op("unlock", "anna", 0.40, "ok", token=10),
        "anna unlocks again": op("unlock", "anna", 0.42, "refused"),
        "ben locks": op("lock", "ben", 0.44, "ok", token=20, deadline=0.94),
        "anna extends late": op("extend", "anna", 0.50, "refused"),
        "cleo is refused": op("lock", "cleo", 0.90, "refused"),
        "cleo locks": op("lock", "cleo", 1.00, "ok", token=30, deadline=1.50),
        "dora locks elsewhere": op("lock", "dora", 1.10, "ok", token=5, deadline=1.60, slot="t"),
    }


def test_a_history_without_a_broken_promise_is_accepted() -> None:
    """Expiry, refusals, late calls and other slots are no violations."""
    assert violations(good().values()) == []


Changes = dict[str, dict[str, Any]]


def changed(changes: Changes) -> list[Operation]:
    """The good history, with some calls that went otherwise."""
    history = good()
    for what, facts in changes.items():
        history[what] = replace(history[what], **facts)
    return list(history.values())


@pytest.mark.parametrize(
    ("promise", "changes"),
    [
        ("two holders", {"ben locks": {"called": 0.35, "returned": 0.36}}),
        ("two holders", {"ben locks": {"deadline": 1.02}}),
        ("two holders", {"anna extends": {"key": "another", "called": 0.39, "returned": 0.46, "deadline": 0.90}}),
        ("token given twice", {"cleo locks": {"token": 20}}),
        ("token went back", {"cleo locks": {"token": 15}}),
        ("token went back", {"anna extends late": {"outcome": "ok", "token": 10, "deadline": 0.51}}),
        ("stranger", {"a stranger unlocks": {"outcome": "ok", "token": 10}}),
        ("stranger", {"a stranger unlocks": {"verb": "extend", "outcome": "ok", "token": 10}}),
        ("stranger", {"a stranger unlocks": {"verb": "check", "outcome": "ok", "token": 10}}),
        ("stranger", {"anna extends": {"token": 11}}),
        ("unlocked twice", {"anna unlocks again": {"outcome": "ok", "token": 10}}),
        ("back from the dead", {"anna unlocks again": {"verb": "check", "outcome": "ok", "token": 10}}),
        ("refused without reason", {"cleo is refused": {"called": 0.98, "returned": 0.99}}),
        ("refused without reason", {"ben is refused": {"called": 0.42, "returned": 0.43}}),
        (
            "refused without reason",
            {
                "ben locks": {"outcome": "unknown", "token": 0, "deadline": 0.0, "returned": math.inf},
                "cleo is refused": {"called": 2.50, "returned": 2.51},
            },
        ),
    ],
)
def test_each_broken_promise_is_seen(promise: str, changes: Changes) -> None:
    """A call of a good history has another outcome, or another time: the checker names what that breaks."""
    assert promise in {broken.split(": ")[1] for broken in violations(changed(changes))}


@pytest.mark.parametrize(
    "changes",
    [
        # A lock that was asked for and never confirmed may stand in the way of others, as long as was asked for.
        {"ben locks": {"outcome": "unknown", "token": 0, "deadline": 0.0}},
        {"ben locks": {"outcome": "unknown", "token": 0, "deadline": 0.0, "returned": math.inf}},
        # Who was stopped while its reply came has no time left to believe in.
        {"ben locks": {"returned": 1.20}},
        # An unlock of unknown outcome ends the holder's belief, and perhaps the lock: until its last date it may live.
        {"anna unlocks": {"outcome": "unknown", "token": 0}},
        {
            "anna unlocks": {"outcome": "unknown", "token": 0},
            "ben locks": {"outcome": "refused", "called": 0.60, "returned": 0.61, "token": 0, "deadline": 0.0},
            "cleo is refused": {"called": 0.68, "returned": 0.69},
        },
        # By the store's clock a lock ends a little later than its holder counts.
        {"cleo is refused": {"called": 0.951, "returned": 0.952}},
        # Of two calls at one time either may come first.
        {"anna unlocks": {"called": 0.445, "returned": 0.455}, "ben locks": {"returned": 0.46}},
    ],
)
def test_what_nobody_can_know_is_no_violation(changes: Changes) -> None:
    """Calls without an answer, and calls at one time, are taken for what they may have been."""
    assert violations(changed(changes)) == []


def test_a_journal_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    """Of a process that was killed we have all but a torn line; a call without a return is one of unknown outcome."""
    path = tmp_path / "journal.jsonl"
    journal, reader = Journal(path), Reader(path)
    first = journal.called("p0.task-1", "lock", "s", "secret", 0.5)
    [before] = reader.read()
    assert before.outcome == "unknown"
    journal.returned(first, "ok", 7, 12.5)
    journal.called("p0.task-1", "unlock", "s", "secret", 0.0)
    journal.close()
    with path.open("a") as file:
        file.write('{"call": 2, "outco')
    lock, unlock = reader.read()
    assert (lock.process, lock.outcome, lock.token, lock.deadline) == ("p0", "ok", 7, 12.5)
    assert before.called == lock.called <= lock.returned <= unlock.called
    assert unlock.outcome == "unknown"
    assert "secret" not in path.read_text()
