"""Slots as they pass from one holder to the next, from what all callers were told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from overbooked_lock.bench.grants import Grants


@dataclass(frozen=True)
class Succession:
    """What became of slots from one holder to the next, by fencing token.

    Attributes:
        overlaps: Grants that began before the one before them on their slot had ended.
        repeated: Fencing tokens that a slot gave out twice.
        handovers_s: Where somebody asked before the slot was given up: from then until that one had it.
    """

    overlaps: int
    repeated: int
    handovers_s: list[float]


def succession(grants: Grants) -> Succession:
    """Puts each slot's grants in the order of their tokens, and compares neighbours.

    That does: if no two neighbours overlap, no two grants do. A token that did not rise puts its grant in a place where
    it overlaps.
    """
    slots, tokens = np.frombuffer(grants.slots, np.int64), np.frombuffer(grants.tokens, np.int64)
    asked, since, until = (np.frombuffer(times, np.float64) for times in (grants.asked, grants.since, grants.until))
    order = np.lexsort((tokens, slots))
    before, after = order[:-1], order[1:]
    same = slots[before] == slots[after]
    before, after = before[same], after[same]
    took = since[after] - until[before]
    waited = (asked[after] < until[before]) & (took >= 0)
    return Succession(
        overlaps=int(np.count_nonzero(took < 0)),
        repeated=int(np.count_nonzero(tokens[before] == tokens[after])),
        handovers_s=took[waited].tolist(),
    )
