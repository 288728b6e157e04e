"""The stream of events: what is read of it, and the sweep that tells of locks that ended by their date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from overbooked_lock import scripts
from overbooked_lock.calls import Call, Reply, Settings, rows
from overbooked_lock.errors import EventsMissed, StoreUnavailable
from overbooked_lock.events import SWEEP_EVERY_SECONDS, Batch, Event, Reader, pause_until
from overbooked_lock.operations import CHUNK, Operations


class Stream(Operations):
    """The verbs of the stream; :class:`Swept` and :class:`CaughtUp` are what they tell each other."""

    async def sweep(self) -> int:
        """Tells of locks that ended by their date and were not told of yet; returns how many.

        Needed only where nobody listens to :meth:`events` and the next ``lock`` may be long in coming: each lock looks
        for some that ended. Raises StoreUnavailable.
        """
        return (await self._sweep()).locks

    async def _sweep(self) -> Swept:
        total = 0
        while True:
            ended, until_next = await self._one(sweep, CHUNK, alone=True)
            total += ended
            if until_next is None or until_next > -0.001:  # what is due is due from the next millisecond on
                return Swept(total, until_next)

    async def _sweep_in_time(self) -> float:
        """Sweeps; returns the seconds until it is to be done again."""
        try:
            return pause_until((await self._sweep()).until_next)
        except StoreUnavailable:
            return SWEEP_EVERY_SECONDS

    async def _catch_up(self, reader: Reader) -> CaughtUp:
        """The next events of the stream for a reader, of a chunk of entries.

        Raises EventsMissed.
        """
        kept, entries = await self._one(read_events, (reader.from_id, CHUNK), alone=True)
        if not kept:
            raise EventsMissed(reader.from_id)
        if not reader.from_id:
            reader.starts_at(entries[0][0])
            return CaughtUp([], more=False)
        return CaughtUp(
            [event for entry in entries for event in reader.take(Batch(*entry))], more=len(entries) == CHUNK
        )


class Swept(NamedTuple):
    """How many locks had ended by their date, and the seconds in which no other will; None if there is none."""

    locks: int
    until_next: float | None


class CaughtUp(NamedTuple):
    """Events from the stream, and whether there are more."""

    events: list[Event]
    more: bool


def sweep(settings: Settings, requests: Sequence[int]) -> Call[tuple[int, float | None]]:
    """Takes how many at most; the outcome is (how many locks had ended, the seconds until the next may end or None)."""
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[tuple[int, float | None]]:
        now_us, ended, next_ms = reply
        return [(ended, (next_ms * 1000 - now_us) / 1_000_000 if next_ms else None)]

    return Call(scripts.SWEEP, keys.of_locks(()), [*keys.naming, *requests], parse)


def read_events(settings: Settings, requests: Sequence[tuple[str, int]]) -> Call[tuple[bool, list[tuple[str, str]]]]:
    """Takes one (from_id, count); the outcome is (whether from_id is still kept, entries)."""

    def parse(reply: Reply, _: float) -> list[tuple[bool, list[tuple[str, str]]]]:
        entries = [(entry_id.decode(), text.decode(errors="replace")) for entry_id, text in rows(reply, 2, width=2)]
        return [(reply[1] == b"kept", entries)]

    return Call(scripts.READ_EVENTS, settings.keys.of_locks(()), requests[0], parse)
