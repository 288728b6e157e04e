"""What must be, whatever the load, and how it is judged: from what callers were told, and from a recount in the store.

All times are monotonic, of the one clock that the processes of a machine share, in seconds.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MOST_GRANTS = 5_000_000
"""So many are kept in a process, at 40 bytes each: longer runs are judged by their beginning."""

LEEWAY_S = 0.002
"""A lock that nobody ended is surely held until so long before its date: Redis counts whole milliseconds."""


@dataclass(frozen=True)
class Verdict:
    """An invariant or a limit, and what the run says about it.

    Attributes:
        name: What must be.
        holds: Whether it was so; None if the run can't tell.
        said: What was found, in words and figures.
    """

    name: str
    holds: bool | None
    said: str


@dataclass
class Grants:
    """Locks that were granted: of which slot, with which token, and when each was asked for, had, and held until."""

    slots: array[int] = field(default_factory=lambda: array("q"))
    tokens: array[int] = field(default_factory=lambda: array("q"))
    asked: array[float] = field(default_factory=lambda: array("d"))
    since: array[float] = field(default_factory=lambda: array("d"))
    until: array[float] = field(default_factory=lambda: array("d"))
    unkept: int = 0

    def __len__(self) -> int:
        return len(self.slots)

    def add(self, slot: int, token: int, asked: float, since: float, until: float) -> int:
        """Notes a grant; returns its number, -1 if it is one too many."""
        if len(self.slots) >= MOST_GRANTS:
            self.unkept += 1
            return -1
        self.slots.append(slot)
        self.tokens.append(token)
        self.asked.append(asked)
        self.since.append(since)
        self.until.append(until)
        return len(self.slots) - 1

    def end(self, number: int, at: float) -> None:
        """Its holder is about to give it up: from now on it claims nothing."""
        if number >= 0:
            self.until[number] = min(self.until[number], at)

    def merge(self, other: Grants) -> None:
        """Takes those of another process."""
        for name in ("slots", "tokens", "asked", "since", "until"):
            getattr(self, name).extend(getattr(other, name))
        self.unkept += other.unkept


@dataclass(frozen=True)
class Succession:
    """What became of slots from one holder to the next, by fencing token.

    Attributes:
        overlaps: Grants that began before the one before them on their slot had ended.
        repeated: Fencing tokens that a slot gave out twice.
        handovers: Where somebody asked before the slot was given up: the seconds from then until that one had it.
    """

    overlaps: int
    repeated: int
    handovers: list[float]


def succession(grants: Grants) -> Succession:
    """Puts each slot's grants in the order of their tokens, and compares neighbours.

    Neighbours do: if none of them overlaps, and each begins before it ends, no two do. A token that did not rise puts
    its grant where it overlaps.
    """
    import numpy as np  # noqa: PLC0415  slow to import, and of an extra

    slots, tokens = np.frombuffer(grants.slots, np.int64), np.frombuffer(grants.tokens, np.int64)
    asked, since, until = (np.frombuffer(times, np.float64) for times in (grants.asked, grants.since, grants.until))
    order = np.lexsort((tokens, slots))
    before, after = order[:-1], order[1:]
    same = slots[before] == slots[after]
    before, after = before[same], after[same]
    ended = np.maximum(until[before], since[before])
    waited = asked[after] < ended
    return Succession(
        overlaps=int(np.count_nonzero(since[after] < until[before])),
        repeated=int(np.count_nonzero(tokens[before] == tokens[after])),
        handovers=[float(seconds) for seconds in (since[after] - ended)[waited] if seconds >= 0],
    )


@dataclass(frozen=True)
class Recount:
    """What stands in the store at the end, of the run's own slots.

    Attributes:
        bookings: Active bookings that the store lists, by slot.
        counted: Active bookings by the store's own counter, by slot.
        locked: How many slots are locked.
    """

    bookings: Mapping[str, int]
    counted: Mapping[str, int]
    locked: int

    @property
    def double(self) -> int:
        """How many slots, which have one place each, have more than one active booking."""
        return sum(count > 1 for count in self.bookings.values())


@dataclass(frozen=True)
class Evidence:
    """All that a run can be judged by.

    Attributes:
        grants: How many locks were granted.
        unkept: How many of them are not in ``succession``.
        succession: What became of slots from one holder to the next.
        recount: What stands in the store at the end.
        counts: The scenario's own.
        outcomes: For each operation how many were done, refused, failed.
        unfinished: Visits that were cut off at the end.
    """

    grants: int
    unkept: int
    succession: Succession
    recount: Recount
    counts: Mapping[str, int]
    outcomes: Mapping[str, Mapping[str, int]]
    unfinished: int

    def of(self, operation: str, outcome: str) -> int:
        """How many of an operation ended so."""
        return self.outcomes.get(operation, {}).get(outcome, 0)

    @property
    def uncertain(self) -> int:
        """Operations and visits of which nobody knows what the store made of them."""
        return self.unfinished + sum(outcomes.get("failed", 0) for outcomes in self.outcomes.values())


def holders(evidence: Evidence) -> Iterator[Verdict]:
    """Of every scenario: one holder at a time, and tokens that rise."""
    found, grants = evidence.succession, evidence.grants
    checked = f"{grants:,} locks"
    if evidence.unkept:
        checked = f"the first {grants - evidence.unkept:,} of {checked}"
    yield Verdict(
        "never two holders at once",
        found.overlaps == 0,
        f"{found.overlaps:,} of {checked} began before the slot's last holder had given it up",
    )
    yield Verdict(
        "fencing tokens rise", found.repeated == 0, f"{found.repeated:,} of {checked} had a token that was given before"
    )


def nothing_left(evidence: Evidence) -> Iterator[Verdict]:
    """Where every lock is unlocked: none is there at the end."""
    locked = evidence.recount.locked
    yield Verdict(
        "no lock is left behind",
        locked == 0 if not evidence.uncertain else (None if locked else True),
        f"{locked:,} slots were still locked at the end" + _but(evidence, "may have left locks"),
    )


def bookings(evidence: Evidence, told: int) -> Iterator[Verdict]:
    """Where slots of one place are booked: none has two bookings, and the store has those that callers were told of."""
    recount = evidence.recount
    yield Verdict(
        "no double booking",
        recount.double == 0,
        f"{recount.double:,} slots have more than one booking, of {len(recount.bookings):,} that are booked in the store",
    )
    stored = sum(recount.bookings.values())
    unequal = sum(
        recount.bookings.get(slot, 0) != recount.counted.get(slot, 0) for slot in {*recount.bookings, *recount.counted}
    )
    agrees = stored == told
    unknown = evidence.uncertain and abs(stored - told) <= evidence.uncertain
    yield Verdict(
        "the store has the bookings that callers were told of",
        (agrees or (None if unknown else False)) if not unequal else False,
        f"callers were told of {told:,}, the store has {stored:,}, and its own counters differ on {unequal:,} slots"
        + _but(evidence, "may have changed it"),
    )


def _but(evidence: Evidence, may: str) -> str:
    return f"; {evidence.uncertain:,} operations without an answer {may}" if evidence.uncertain else ""
