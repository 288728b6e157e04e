"""What all targets have in common: the verbs, and how they prepare and count."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from redis.exceptions import RedisError

from overbooked_lock import NewSlot, store
from overbooked_lock.bench.verdicts import Recount
from overbooked_lock.errors import StoreUnavailable
from overbooked_lock.events import Event

if TYPE_CHECKING:
    from overbooked_lock.bench.targets import Where

T = TypeVar("T")

_AT_A_TIME = 32
"""So many slots are registered or removed at a time where each takes a request."""


class Target(ABC):
    """One process's way to where load goes; an async context manager. Verbs raise OverbookedError.

    Attributes:
        can: What scenarios may need.
        dates_by_store: Whether a lock's duration counts from the store's now; else from ours, whose clock may differ.
    """

    can: ClassVar[frozenset[str]]
    dates_by_store: ClassVar[bool] = True

    def __init__(self, where: Where, process: int, connections: int) -> None:
        self.where, self.process, self.connections = where, process, connections

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    # What callers ask for

    @abstractmethod
    async def lock(
        self,
        slot_id: str,
        lock_key: str,
        lock_for: timedelta,
        lock_until: datetime | None = None,
        wait: timedelta | None = None,
    ) -> int:
        """Locks a slot; gives its fencing token."""

    @abstractmethod
    async def unlock(self, slot_id: str, lock_key: str) -> bool:
        """Unlocks a slot; whether it was locked."""

    @abstractmethod
    async def extend(self, slot_id: str, lock_key: str, lock_for: timedelta) -> bool:
        """Moves the end of a lock."""

    @abstractmethod
    async def book(self, slot_id: str, lock_key: str) -> str:
        """Books a place; gives the booking's id."""

    @abstractmethod
    async def cancel(self, booking_id: str) -> bool:
        """Cancels a booking."""

    @abstractmethod
    async def look(self, slot_id: str) -> bool:
        """Whether a slot is available."""

    async def lock_many(self, slot_ids: Sequence[str], lock_key: str, lock_for: timedelta) -> list[int]:
        """Locks all or none; gives their fencing tokens."""
        raise NotImplementedError

    async def unlock_many(self, slot_ids: Sequence[str], lock_key: str) -> bool:
        """Unlocks all of them; whether all were locked."""
        raise NotImplementedError

    def events(self, listening: asyncio.Event) -> AsyncIterator[Event]:
        """What happens to slots; ``listening`` is set from when on none is missed."""
        raise NotImplementedError

    def watch_batches(self, note: Callable[[int], object]) -> None:  # noqa: ARG002
        """``note`` is told how many operations each batch carries, where this process makes batches."""
        return  # only engines do

    # What the run itself needs

    @abstractmethod
    async def ping(self) -> None:
        """Returns if the target is there, and does what it is asked for."""

    @abstractmethod
    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        """Registers slots with one place each; gives their ids."""

    @abstractmethod
    async def recount(self, resource_id: str) -> Recount:
        """What stands in the store."""

    @abstractmethod
    async def remove(self, resource_ids: Iterable[str]) -> None:
        """Removes all that the run made."""


def new_slot(resource_id: str, number: int, slot_id: str | None = None) -> NewSlot:
    """A slot with one place, as runs register it; ``number`` puts it in their order."""
    start = datetime(2030, 6, 1, 20, tzinfo=UTC) + timedelta(seconds=number)
    dates: dict[str, Any] = {"start_date": start, "end_date": start + timedelta(hours=2)}
    own: dict[str, Any] = {} if slot_id is None else {"id": slot_id}
    return NewSlot(resource_id=resource_id, **dates, **own)


def recount_of(slots: Iterable[Any], bookings: Iterable[Any]) -> Recount:
    """Counts the store's slots, and its active bookings."""
    slots = list(slots)
    return Recount(
        bookings=Counter(booking.slot_id for booking in bookings),
        counted={slot.id: slot.num_active_bookings for slot in slots if slot.num_active_bookings},
        locked=sum(slot.locked_until is not None for slot in slots),
    )


async def all_pages(page: Callable[[int], Awaitable[tuple[Sequence[T], int]]]) -> list[T]:
    """All that a list has, whose pages, from 1, come with the total."""
    everything: list[T] = []
    for number in itertools.count(1):
        found, total = await page(number)
        everything += found
        if not found or len(everything) >= total:
            break
    return everything


async def in_turns(do: Callable[[Any], Awaitable[T]], things: Iterable[Any]) -> list[T]:
    """Does it with all of them, some at a time; gives what came of each, in their order."""
    done: list[T] = []
    for some in chunks(list(things), _AT_A_TIME):
        done += await asyncio.gather(*(do(thing) for thing in some))
    return done


def chunks(things: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    """All of them, so many at a time."""
    return (things[at : at + size] for at in range(0, len(things), size))


@contextlib.contextmanager
def as_ours() -> Iterator[None]:
    """What redis-py raises, as an error of ours."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable("unknown", store._cause(error)) from error  # noqa: SLF001 - our own words for it
