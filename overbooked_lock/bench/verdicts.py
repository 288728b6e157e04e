"""What must be, whatever the load, judged by what callers were told and by a recount in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overbooked_lock.bench.succession import Succession


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
        f"{recount.double:,} of {len(recount.bookings):,} slots booked in the store have more than one booking",
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
