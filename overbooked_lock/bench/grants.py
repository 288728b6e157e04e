"""Locks that callers were granted, kept small: a long run has millions of them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

MOST_GRANTS = 5_000_000
"""So many are kept in a process, at 40 bytes each: longer runs are judged by their beginning."""

LEEWAY_S = 0.002
"""A lock that nobody ended is surely held until so long before its date: Redis counts whole milliseconds."""


@dataclass
class Grants:
    """Locks that were granted: of which slot, with which token, and when each was asked for, had, and held until.

    Times are of the monotonic clock, which the processes of a machine share, in seconds.
    """

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
