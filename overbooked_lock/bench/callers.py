"""Who gives the load: callers that ask the target, one thing after the other, and note what came of it.

What a caller costs is taken from the target where both share a machine, so notes are plain numbers: a histogram's
counter and a few sums for each operation.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from overbooked_lock.bench.grants import LEEWAY_S, Grants
from overbooked_lock.errors import OverbookedError

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

    from overbooked_lock.bench.targets import Target

T = TypeVar("T")
clock = time.monotonic

REFUSALS = frozenset({"E044", "E045", "E049", "E050", "E059"})
"""Errors that are answers: the slot is another's, or full, or the lock has ended."""

WAITING = "lock (waiting)"
LOCK_FOR = timedelta(seconds=20)
_PAUSE_AFTER_FAILURE_S = 0.05
_MOST_REASONS = 20


@dataclass
class Tally:
    """What ended in one second. Histograms are in microseconds; outcomes are done, refused, failed."""

    histograms: dict[str, HdrHistogram] = field(default_factory=dict)
    outcomes: dict[str, list[int]] = field(default_factory=dict)


class Notes:
    """What a process notes down: of the second that runs, and of the whole run."""

    def __init__(self, slots: int) -> None:
        from overbooked_lock.bench.results import LONGEST_US, new_histogram  # noqa: PLC0415  of an extra

        self._new_histogram, self._longest_us = new_histogram, LONGEST_US
        self.second = Tally()
        self.spans: dict[str, HdrHistogram] = {}
        self.grants = Grants()
        self.failures: Counter[str] = Counter()
        self.attempts = [0] * slots
        self.wins = [0] * slots

    def operation(self, name: str, seconds: float, outcome: int) -> None:
        """An operation ended: ``outcome`` is 0 for done, 1 for refused, 2 for failed."""
        second = self.second
        histogram = second.histograms.get(name)
        if histogram is None:
            histogram = second.histograms[name] = self._new_histogram()
            second.outcomes[name] = [0, 0, 0]
        histogram.record_value(min(max(1, int(seconds * 1e6)), self._longest_us))
        second.outcomes[name][outcome] += 1

    def span(self, name: str, seconds: float) -> None:
        """Something else took so long."""
        histogram = self.spans.get(name)
        if histogram is None:
            histogram = self.spans[name] = self._new_histogram()
        histogram.record_value(min(max(1, int(seconds * 1e6)), self._longest_us))

    def failure(self, error: OverbookedError) -> None:
        """Why an operation failed."""
        # A message that names a slot would be one for each slot.
        why = re.sub("'[^']*'", "…", str(error))
        self.failures[why if why in self.failures or len(self.failures) < _MOST_REASONS else "other"] += 1

    def begin(self) -> dict[str, list[int]]:
        """What is measured begins; gives the outcomes until now. Grants and failures count from the first caller on."""
        self.attempts = [0] * len(self.attempts)
        self.wins = [0] * len(self.wins)
        return self.next_second().outcomes

    def next_second(self) -> Tally:
        """The tally of the second that is over; a new one begins."""
        over, self.second = self.second, Tally()
        return over


class Held(NamedTuple):
    """A lock that a caller has: of a slot, by its number; ``grant`` is its number among what was noted."""

    slot: int
    lock_key: str
    token: int
    grant: int


class Caller:
    """Asks one thing at a time. What is not done gives None: it was refused, or failed.

    Attributes:
        number: Counts callers, or arrivals, in the whole run.
        rng: Its own chance, the same for the same seed.
        target: For what is not an operation to be measured.
    """

    __slots__ = ("_asked", "_due", "_keys", "_notes", "_slot_ids", "number", "rng", "target")

    def __init__(
        self,
        number: int,
        rng: random.Random,
        target: Target,
        slot_ids: Sequence[str],
        notes: Notes,
        keys: itertools.count[int],
        due: float = 0.0,
    ) -> None:
        self.number, self.rng, self.target = number, rng, target
        self._slot_ids, self._notes, self._keys = slot_ids, notes, keys
        self._due = due
        self._asked = 0.0

    async def lock(
        self,
        slot: int,
        *,
        lock_for: timedelta = LOCK_FOR,
        lock_until: datetime | None = None,
        wait: timedelta | None = None,
    ) -> Held | None:
        """Locks a slot, by its number; ``lock_until`` where the target takes dates of the store's clock."""
        notes, key = self._notes, self._new_key()
        slot_id = self._slot_ids[slot]
        token = await self._ask(
            "lock" if wait is None else WAITING, self.target.lock(slot_id, key, lock_for, lock_until, wait)
        )
        notes.attempts[slot] += 1
        if token is None:
            return None
        notes.wins[slot] += 1
        return self._held(slot, key, token, lock_for, clock())

    async def lock_many(self, slots: Sequence[int], *, lock_for: timedelta = LOCK_FOR) -> list[Held] | None:
        """Locks all of them with one key, or none."""
        notes, key = self._notes, self._new_key()
        slot_ids = [self._slot_ids[slot] for slot in slots]
        tokens = await self._ask("lock_many", self.target.lock_many(slot_ids, key, lock_for))
        for slot in slots:
            notes.attempts[slot] += 1
        if tokens is None:
            return None
        since = clock()
        for slot in slots:
            notes.wins[slot] += 1
        return [self._held(slot, key, token, lock_for, since) for slot, token in zip(slots, tokens, strict=True)]

    async def unlock(self, held: Held) -> bool | None:
        """Gives it up; whether it was still there."""
        self._notes.grants.end(held.grant, clock())
        return await self._ask("unlock", self.target.unlock(self._slot_ids[held.slot], held.lock_key))

    async def unlock_many(self, held: Sequence[Held]) -> bool | None:
        """Gives them up; whether all were still there."""
        self._end(held)
        slot_ids = [self._slot_ids[one.slot] for one in held]
        return await self._ask("unlock_many", self.target.unlock_many(slot_ids, held[0].lock_key))

    async def extend(self, held: Held, lock_for: timedelta = LOCK_FOR) -> bool | None:
        """Moves its end; it claims no more than before."""
        return await self._ask("extend", self.target.extend(self._slot_ids[held.slot], held.lock_key, lock_for))

    async def book(self, held: Held) -> str | None:
        """Books a place with a lock, which that uses up; the booking's id."""
        self._notes.grants.end(held.grant, clock())
        return await self._ask("book", self.target.book(self._slot_ids[held.slot], held.lock_key))

    async def cancel(self, booking_id: str) -> bool | None:
        """Gives a place back."""
        return await self._ask("cancel", self.target.cancel(booking_id))

    async def look(self, slot: int) -> bool | None:
        """Whether a slot is available, to somebody who has no lock."""
        return await self._ask("look", self.target.look(self._slot_ids[slot]))

    async def pause(self, mean_s: float) -> None:
        """Thinks for a while, as people do: mostly shortly, now and then for long (at most five times the mean)."""
        await asyncio.sleep(min(self.rng.expovariate(1 / mean_s), 5 * mean_s))

    def span(self, name: str, seconds: float) -> None:
        """Notes how long something took that is no operation."""
        self._notes.span(name, seconds)

    def _new_key(self) -> str:
        return f"bench-{next(self._keys)}"

    def _held(self, slot: int, key: str, token: int, lock_for: timedelta, since: float) -> Held:
        until = self._asked + lock_for.total_seconds() - LEEWAY_S if self.target.dates_by_store else since
        return Held(slot, key, token, self._notes.grants.add(slot, token, self._asked, since, max(since, until)))

    def _end(self, held: Iterable[Held]) -> None:
        now = clock()
        for one in held:
            self._notes.grants.end(one.grant, now)

    async def _ask(self, operation: str, answer: Awaitable[T]) -> T | None:
        # The first thing that an arrival asks for was due when the arrival was: a stall that kept it waiting counts.
        began = self._asked = self._due or clock()
        self._due = 0.0
        try:
            given = await answer
        except OverbookedError as error:
            refused = error.code in REFUSALS
            self._notes.operation(operation, clock() - began, 1 if refused else 2)
            if not refused:
                self._notes.failure(error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_S)
            return None
        self._notes.operation(operation, clock() - began, 0)
        return given
