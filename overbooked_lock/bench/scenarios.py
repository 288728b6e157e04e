"""The scenarios: what callers do, over and over, and what must be true of it at the end.

A scenario is a class with :meth:`Scenario.visit`, one caller's way from coming to leaving, and :meth:`Scenario.judge`,
its own invariants. In a closed loop a caller begins its next visit when one is over; in an open loop each arrival is a
visit. ``SCENARIOS`` is the table; a line there is all that makes a scenario known.

Each process has an object of its own. Slots are numbers here, from 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from abc import ABC, abstractmethod
from bisect import bisect
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar

from overbooked_lock.bench import verdicts
from overbooked_lock.bench.verdicts import Evidence, Recount, Verdict

if TYPE_CHECKING:
    from overbooked_lock.bench.callers import Caller
    from overbooked_lock.bench.targets import Target


@dataclass(frozen=True)
class Stage:
    """What a scenario plays on.

    Attributes:
        slots: How many slots there are.
        process, processes: Which process this is, of how many.
        seed: The run's.
        store_offset_s: What the store's clock shows, in seconds since 1970, less our monotonic clock.
    """

    slots: int
    process: int
    processes: int
    seed: int
    store_offset_s: float


class _Zipf:
    """Tastes as people have them: the n-th of so many things is wanted with a weight of 1/n."""

    def __init__(self, count: int) -> None:
        self._sums = list(accumulate(1 / rank for rank in range(1, count + 1)))

    def draw(self, rng: random.Random) -> int:
        """Which one, from 0."""
        return bisect(self._sums, rng.random() * self._sums[-1], hi=len(self._sums) - 1)


class Scenario(ABC):
    """What all scenarios are.

    Attributes:
        summary: What it plays, in a sentence.
        needs: What a target must be able to do.
        callers: How many there are at a time in a closed loop, unless told.
        together: Whether they all begin at the same instant; else one after the other, before what is measured.
        own_slots: Whether each of them needs a slot of its own.
        counted: What it counts itself, and what that means, in the order to be shown.
        spans: What it times beside operations, and what that means.
        counts: Its counts so far, in this process.
    """

    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"lock", "unlock"})
    callers: ClassVar[int] = 100
    together: ClassVar[bool] = False
    own_slots: ClassVar[bool] = False
    counted: ClassVar[Mapping[str, str]] = {}
    spans: ClassVar[Mapping[str, str]] = {}

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.counts: Counter[str] = Counter()

    @classmethod
    @abstractmethod
    def slots(cls, at_a_time: int) -> int:
        """How many slots there are, unless told, where so many callers or arrivals are under way at a time."""

    @abstractmethod
    async def visit(self, caller: Caller) -> None:
        """One caller's way."""

    @classmethod
    def judge(cls, evidence: Evidence) -> Iterator[Verdict]:
        """Its own invariants, beside those of every scenario."""
        yield from verdicts.nothing_left(evidence)

    @classmethod
    def count_again(cls, recount: Recount) -> Mapping[str, int]:  # noqa: ARG003 - for those that book
        """What it counts in the store at the end."""
        return {}

    @contextlib.asynccontextmanager
    async def running(self, target: Target) -> AsyncIterator[None]:  # noqa: ARG002 - for those that listen
        """What goes on beside the visits."""
        yield


class _OwnSlots(Scenario):
    """Of scenarios where a visit has a slot to itself: as many slots as may be under way at a time, at least."""

    own_slots = True

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._free = deque(range(stage.process, stage.slots, stage.processes))

    @classmethod
    def slots(cls, at_a_time: int) -> int:
        return at_a_time

    async def visit(self, caller: Caller) -> None:
        slot = self._free.popleft()
        await self.use(caller, slot)
        self._free.append(slot)

    @abstractmethod
    async def use(self, caller: Caller, slot: int) -> None:
        """One caller's way with a slot that nobody else wants."""


class Uncontended(_OwnSlots):
    """The lock and the unlock alone."""

    summary = "Every caller locks and unlocks slots that nobody else wants: the most that the deployment gives."

    async def use(self, caller: Caller, slot: int) -> None:
        if held := await caller.lock(slot):
            await caller.unlock(held)


class Hotspot(Scenario):
    """One slot that all want."""

    summary = "All callers want one slot: one has it at a time, the others are told so and try again at once."
    callers = 200
    HELD_S: ClassVar[float] = 0.002

    @classmethod
    def slots(cls, at_a_time: int) -> int:  # noqa: ARG003
        return 1

    async def visit(self, caller: Caller) -> None:
        if held := await caller.lock(caller.rng.randrange(self.stage.slots)):
            await caller.pause(self.HELD_S)
            await caller.unlock(held)


class Onsale(Scenario):
    """The doors open, and everybody wants the front row."""

    summary = (
        "An on-sale: shoppers want the best seats most, hold one, think, pay and book it, or abandon it; "
        "who finds three seats taken is turned away."
    )
    needs = frozenset({"lock", "unlock", "book"})
    callers = 500
    counted: ClassVar[Mapping[str, str]] = {
        "shoppers": "came to buy a seat",
        "sold": "bought one",
        "abandoned": "had a seat, and did not buy it",
        "turned_away": "found three seats taken, and left",
        "not_confirmed": "wanted to pay, and got no booking",
    }
    TRIES: ClassVar[int] = 3
    HOLD_FOR: ClassVar[timedelta] = timedelta(seconds=3)
    LOOKING_S, THINKING_S, PAYING_S = 0.1, 0.3, 0.2
    ABANDON: ClassVar[float] = 0.2
    """The share that does not buy: half of them give the seat back, half just close the page."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        # All processes want the same seats: their order is drawn of the seed alone.
        self._seats = random.Random(stage.seed).sample(range(stage.slots), stage.slots)  # noqa: S311 - no secret
        self._taste = _Zipf(stage.slots)

    @classmethod
    def slots(cls, at_a_time: int) -> int:  # noqa: ARG003
        return 2000

    async def visit(self, caller: Caller) -> None:
        self.counts["shoppers"] += 1
        for _ in range(self.TRIES):
            if held := await caller.lock(self._seats[self._taste.draw(caller.rng)], lock_for=self.HOLD_FOR):
                break
            await caller.pause(self.LOOKING_S)
        else:
            self.counts["turned_away"] += 1
            return
        await caller.pause(self.THINKING_S)
        if caller.rng.random() < self.ABANDON:
            if caller.rng.random() < 0.5:
                await caller.unlock(held)
            self.counts["abandoned"] += 1
            return
        await caller.pause(self.PAYING_S)
        self.counts["sold" if await caller.book(held) else "not_confirmed"] += 1

    @classmethod
    def count_again(cls, recount: Recount) -> Mapping[str, int]:
        return {"double_bookings": recount.double}

    @classmethod
    def judge(cls, evidence: Evidence) -> Iterator[Verdict]:
        counts = evidence.counts
        yield from verdicts.bookings(evidence, counts.get("sold", 0))
        left = sum(counts.get(end, 0) for end in ("sold", "abandoned", "turned_away", "not_confirmed"))
        shoppers = counts.get("shoppers", 0)
        yield Verdict(
            "every shopper is accounted for",
            shoppers == left + evidence.unfinished,
            f"{shoppers:,} came; {left:,} left; {evidence.unfinished:,} were still there at the end",
        )


class Waiters(Scenario):
    """Those who wait are woken, and do not poll."""

    summary = "More callers than slots, and all wait: whoever gives a slot up wakes the next."
    needs = frozenset({"lock", "unlock", "waiting"})
    callers = 50
    PATIENCE: ClassVar[timedelta] = timedelta(seconds=10)
    HELD_S: ClassVar[float] = 0.005
    AWAY_S: ClassVar[float] = 0.02
    spans: ClassVar[Mapping[str, str]] = {
        "handover": "from when a holder is about to unlock until the next in wait has the slot"
    }

    @classmethod
    def slots(cls, at_a_time: int) -> int:
        return max(1, min(at_a_time, 50) // 10)

    async def visit(self, caller: Caller) -> None:
        if held := await caller.lock(caller.number % self.stage.slots, wait=self.PATIENCE):
            await caller.pause(self.HELD_S)
            await caller.unlock(held)
        # Who comes back at once has the slot before those who are only being told that it is free.
        await caller.pause(self.AWAY_S)

    @classmethod
    def judge(cls, evidence: Evidence) -> Iterator[Verdict]:
        from overbooked_lock.bench.callers import WAITING  # noqa: PLC0415  they know each other

        vain = evidence.of(WAITING, "refused")
        yield Verdict(
            "nobody waits in vain",
            vain == 0,
            f"{vain:,} of {evidence.of(WAITING, 'done') + vain:,} waited {cls.PATIENCE.seconds} s and got nothing",
        )
        yield from verdicts.nothing_left(evidence)


class Groups(Scenario):
    """Families want to sit together."""

    summary = "Groups want 2 to 6 seats side by side in rows of 20: all of them or none, in one step."
    needs = frozenset({"lock_many", "unlock_many"})
    counted: ClassVar[Mapping[str, str]] = {
        "groups_seated": "got all their seats",
        "groups_without_seats": "got none, since one was taken",
    }
    ROW: ClassVar[int] = 20
    HELD_S: ClassVar[float] = 0.02

    @classmethod
    def slots(cls, at_a_time: int) -> int:  # noqa: ARG003
        return 50 * cls.ROW

    async def visit(self, caller: Caller) -> None:
        rng, row = caller.rng, min(self.ROW, self.stage.slots)
        size = min(rng.randint(2, 6), row)
        first = rng.randrange(self.stage.slots // row) * row + rng.randint(0, row - size)
        held = await caller.lock_many(range(first, first + size))
        self.counts["groups_without_seats" if held is None else "groups_seated"] += 1
        if held is not None:
            await caller.pause(self.HELD_S)
            await caller.unlock_many(held)


class Expiry(_OwnSlots):
    """Locks that nobody gives up, and all end in the same moment."""

    summary = "Waves of locks that all end at one moment, a wave a second: each end is told of once, and how soon."
    needs = frozenset({"lock", "events"})
    callers = 1000
    together = True  # as in every wave to come
    counted: ClassVar[Mapping[str, str]] = {
        "locks_that_ended": "by their date",
        "not_told_of": "ends that no event told of",
        "told_of_again": "events for an end that had been told of",
    }
    spans: ClassVar[Mapping[str, str]] = {
        "expired event": "from the date of a lock until a listener has the event that says so"
    }
    WAVE_S: ClassVar[float] = 1.0
    SHORTEST_S: ClassVar[float] = 0.25
    PATIENCE_S: ClassVar[float] = 5.0
    LAST_WORD_S: ClassVar[float] = 0.3
    """An end that is told of twice would be by then."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._own: set[int] = set()
        self._told = Counter[int]()

    async def use(self, caller: Caller, slot: int) -> None:
        store_now = time.monotonic() + self.stage.store_offset_s
        wave = math.ceil((store_now + self.SHORTEST_S) / self.WAVE_S) * self.WAVE_S
        held = await caller.lock(
            slot, lock_for=timedelta(seconds=wave - store_now), lock_until=datetime.fromtimestamp(wave, UTC)
        )
        if held is None:
            return
        self._own.add(held.token)
        ended = self._awaited[held.token] = asyncio.get_running_loop().create_future()
        if self._told[held.token]:
            ended.set_result(None)
        end = wave - self.stage.store_offset_s
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended, max(end - time.monotonic(), 0.0) + self.PATIENCE_S)
            caller.span("expired event", max(0.0, time.monotonic() - end))
        del self._awaited[held.token]

    @contextlib.asynccontextmanager
    async def running(self, target: Target) -> AsyncIterator[None]:
        listening = asyncio.Event()
        reader = asyncio.create_task(self._read(target, listening))
        await listening.wait()
        try:
            yield
            await asyncio.sleep(self.LAST_WORD_S)
        finally:
            reader.cancel()
            await asyncio.wait([reader])
        self.counts["locks_that_ended"] += len(self._own)
        self.counts["not_told_of"] += sum(self._told[token] == 0 for token in self._own)
        self.counts["told_of_again"] += sum(self._told[token] - 1 for token in self._own if self._told[token])

    async def _read(self, target: Target, listening: asyncio.Event) -> None:
        async for event in target.events(listening):
            if event.type == "expired" and event.fencing_token is not None:
                self._told[event.fencing_token] += 1
                ended = self._awaited.get(event.fencing_token)
                if ended is not None and not ended.done():
                    ended.set_result(None)

    @classmethod
    def judge(cls, evidence: Evidence) -> Iterator[Verdict]:
        ended, missing, again = (
            evidence.counts.get(n, 0) for n in ("locks_that_ended", "not_told_of", "told_of_again")
        )
        yield Verdict(
            "the end of each lock is told of exactly once",
            missing == again == 0 and ended > 0,
            f"{ended:,} locks ended by their date; {missing:,} ends were not told of, {again:,} were told of again",
        )


class Mixed(Scenario):
    """An ordinary day."""

    summary = "A day's traffic: most look at slots, some lock one, and then extend, unlock or book it, or cancel."
    needs = frozenset({"lock", "unlock", "extend", "book", "cancel", "look"})
    counted: ClassVar[Mapping[str, str]] = {"booked": "places were booked", "cancelled": "of them were cancelled"}
    THINKING_S: ClassVar[float] = 0.01

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._taste = _Zipf(stage.slots)

    @classmethod
    def slots(cls, at_a_time: int) -> int:  # noqa: ARG003
        return 1000

    async def visit(self, caller: Caller) -> None:
        slot = self._taste.draw(caller.rng)
        await caller.look(slot)
        if caller.rng.random() < 0.5:
            return
        held = await caller.lock(slot)
        if held is None:
            return
        await caller.pause(self.THINKING_S)
        chance = caller.rng.random()
        if chance < 0.2:
            await caller.extend(held)
        if chance < 0.7:
            await caller.unlock(held)
        elif booking_id := await caller.book(held):
            self.counts["booked"] += 1
            await caller.pause(self.THINKING_S)
            if await caller.cancel(booking_id):
                self.counts["cancelled"] += 1

    @classmethod
    def judge(cls, evidence: Evidence) -> Iterator[Verdict]:
        yield from verdicts.bookings(evidence, evidence.counts.get("booked", 0) - evidence.counts.get("cancelled", 0))
        yield from verdicts.nothing_left(evidence)


SCENARIOS: Mapping[str, type[Scenario]] = {
    "uncontended": Uncontended,
    "hotspot": Hotspot,
    "onsale": Onsale,
    "waiters": Waiters,
    "groups": Groups,
    "expiry": Expiry,
    "mixed": Mixed,
}
"""Every scenario, by the name that ``--scenario`` takes."""
