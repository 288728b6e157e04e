"""What many processes did to a few slots, written down as it happened, and the proof that no promise was broken.

Each process has a journal of its own: a line when it calls, a line when the call returns, in the order of things and
flushed at once, so that of a process that is killed nothing but a torn last line is missing. Times are those of
``time.monotonic()``, which is one clock for all processes of a machine.

The rules look at what holders were told and what they believe, never at the store. A holder believes in its lock from
the return of the call that granted it until the deadline that this call named, or until it calls to unlock.
"""

from __future__ import annotations

import json
import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

Verb = Literal["lock", "extend", "check", "unlock"]
Outcome = Literal["ok", "refused", "not_applied", "unknown"]

CLOCK = 0.005
"""Seconds by which a date in whole milliseconds and a store that looks at its clock once a call may be late."""

IN_FLIGHT = 1.0
"""Seconds after which a request that a killed process had sent has surely been carried out, or never will be."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One call, from before it was sent until it returned; ``returned`` is infinite if it never did."""

    actor: str
    verb: Verb
    slot: str
    key: str
    called: float
    asked: float = 0.0
    returned: float = math.inf
    outcome: Outcome = "unknown"
    token: int = 0
    deadline: float = 0.0

    @property
    def process(self) -> str:
        return self.actor.split(".")[0]

    @property
    def is_ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def granted(self) -> bool:
        """Is this the call that made a lock, or that was told of it?"""
        return self.verb == "lock" and self.is_ok


def fingerprint(lock_key: str) -> str:
    """What a journal has instead of a key."""
    return sha256(lock_key.encode()).hexdigest()[:12]


class Journal:
    """Where a process writes what it does. Threads may share it."""

    def __init__(self, path: Path) -> None:
        # Line by line and only ever at the end: SIGKILL can't take back a line that was written.
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._mutex = threading.Lock()
        self._count = 0

    def called(self, actor: str, verb: Verb, slot: str, lock_key: str, asked: float) -> int:
        """Notes that a call is about to be made; returns its number."""
        facts = {"actor": actor, "verb": verb, "slot": slot, "key": fingerprint(lock_key), "asked": asked}
        with self._mutex:
            self._count += 1
            self._write(self._count, facts, "called")
            return self._count

    def returned(self, call: int, outcome: Outcome, token: int, deadline: float) -> None:
        """Notes what came of it."""
        with self._mutex:
            self._write(call, {"outcome": outcome, "token": token, "deadline": deadline}, "returned")

    def close(self) -> None:
        self._file.close()

    def _write(self, call: int, facts: dict[str, Any], when: str) -> None:
        self._file.write(json.dumps({"call": call, when: time.monotonic()} | facts) + "\n")


class Reader:
    """Reads a journal, also while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._operations: list[Operation] = []

    def read(self, since: float = 0.0) -> list[Operation]:
        """The operations that were called since some time, in their order."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole + end)
        for line in whole.splitlines():
            facts = json.loads(line)
            call = facts.pop("call")
            if call > len(self._operations):
                self._operations.append(Operation(**facts))
            else:
                self._operations[call - 1] = replace(self._operations[call - 1], **facts)
        return self._operations[bisect_left(self._operations, since, key=lambda one: one.called) :]


@dataclass(frozen=True)
class Belief:
    """From ``start`` to ``end`` a holder thinks that the slot is its own."""

    start: float
    end: float
    holder: Operation


def beliefs(operations: Iterable[Operation]) -> list[Belief]:
    """Who thought when that a slot was its own; the operations are those of one slot, or of many."""
    given_up: dict[tuple[str, str], float] = defaultdict(lambda: math.inf)
    operations = list(operations)
    for operation in operations:
        if operation.verb == "unlock":
            owner = operation.slot, operation.key
            given_up[owner] = min(given_up[owner], operation.called)
    told = (one for one in operations if one.is_ok and one.verb != "unlock")
    all_ = (Belief(one.returned, min(one.deadline, given_up[one.slot, one.key]), one) for one in told)
    return sorted((belief for belief in all_ if belief.start < belief.end), key=lambda belief: belief.start)


def violations(history: Iterable[Operation]) -> list[str]:
    """Every promise that this history shows broken; none is the proof that we want."""
    slots: dict[str, list[Operation]] = defaultdict(list)
    for operation in sorted(history, key=lambda one: one.called):
        slots[operation.slot].append(operation)
    return [
        f"{slot}: {broken}"
        for slot, operations in slots.items()
        for rule in (_two_holders, _tokens_given_twice, _ways_back, _strangers, _ends, _refusals_without_reason)
        for broken in rule(operations)
    ]


def _two_holders(operations: list[Operation]) -> Iterator[str]:
    """No two callers ever believe at one time that the slot is theirs."""
    latest: Belief | None = None
    for belief in beliefs(operations):
        if latest and belief.start < latest.end and belief.holder.key != latest.holder.key:
            yield f"two holders: {latest} and {belief}"
        if latest is None or belief.end > latest.end:
            latest = belief


def _tokens_given_twice(operations: list[Operation]) -> Iterator[str]:
    """A fencing token belongs to one key."""
    keys: dict[int, str] = {}
    for one in operations:
        if one.granted and keys.setdefault(one.token, one.key) != one.key:
            yield f"token given twice: {one}"


def _ways_back(operations: list[Operation]) -> Iterator[str]:
    """What is called after a higher token was known is refused to the lower: tokens rise, and the past is over."""
    shown = sorted((one for one in operations if one.is_ok), key=lambda one: one.returned)
    highest, at = 0, 0
    for one in (one for one in operations if one.is_ok):
        while at < len(shown) and shown[at].returned < one.called:
            highest = max(highest, shown[at].token)
            at += 1
        if one.token < highest:
            yield f"token went back: {one} after {highest}"


def _strangers(operations: list[Operation]) -> Iterator[str]:
    """Only who was granted a lock extends it, ends it, or is told that it has it."""
    owners = {(one.key, one.token) for one in operations if one.granted}
    for one in operations:
        if one.is_ok and (one.key, one.token) not in owners:
            yield f"stranger: {one}"


def _ends(operations: list[Operation]) -> Iterator[str]:
    """A lock ends once: what its owner calls after that finds it gone."""
    over: dict[int, float] = {}
    for one in operations:
        if one.is_ok and one.verb == "unlock":
            if one.token in over:
                yield f"unlocked twice: {one}"
            over[one.token] = min(over.get(one.token, math.inf), one.returned)
    for one in operations:
        if one.is_ok and one.verb != "unlock" and one.called > over.get(one.token, math.inf):
            yield f"back from the dead: {one}"


def _refusals_without_reason(operations: list[Operation]) -> Iterator[str]:
    """Who is refused a slot is refused for another's lock, which may have lived then: no lock outlives its date."""
    lives = _possible_lives(operations)
    for one in operations:
        if one.verb == "lock" and one.outcome == "refused":
            last = bisect_right(lives, one.returned, key=lambda life: life[0]) - 1
            if last < 0 or lives[last][1] < one.called:
                yield f"refused without reason: {one}"


def _possible_lives(operations: list[Operation]) -> list[tuple[float, float]]:
    """When there may have been a lock: from the first call that may have made it until the last date it may have."""
    unlocked = {one.key: one.returned for one in operations if one.verb == "unlock" and one.is_ok}
    spans = []
    for one in operations:
        if one.verb not in ("lock", "extend") or one.outcome in ("refused", "not_applied"):
            continue
        if one.is_ok:
            # The deadline counts from before the call was sent, the store's date from when it came there.
            end = one.deadline + (one.returned - one.called)
        else:
            end = (one.returned if math.isfinite(one.returned) else one.called + IN_FLIGHT) + one.asked
        over = unlocked.get(one.key, math.inf)
        spans.append((one.called, min(end + CLOCK, over) if over > one.called else end + CLOCK))
    merged = list[tuple[float, float]]()
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged
