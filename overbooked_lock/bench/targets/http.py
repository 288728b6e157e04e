"""A server that speaks the API."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from overbooked_lock import NewSlot
from overbooked_lock.bench.targets.base import Target, all_pages, chunks, in_turns, new_slot, recount_of
from overbooked_lock.bench.verdicts import Recount
from overbooked_lock.bookings import Booking
from overbooked_lock.errors import OverbookedError, StoreUnavailable
from overbooked_lock.models import Slot

if TYPE_CHECKING:
    from overbooked_lock.client import AsyncOverbooked, Result

T = TypeVar("T")

_MOST_CONNECTIONS = 256
"""Of a process; more callers than that take turns."""


class HttpTarget(Target):
    """A server that speaks the API, through our client for it.

    Each connection has a client of its own: httpx looks through all connections of a client at each request, which with
    hundreds of them takes five times what the request does.
    """

    can = frozenset({"lock", "unlock", "extend", "book", "cancel", "look"})
    dates_by_store = False

    async def __aenter__(self) -> Self:
        from overbooked_lock.client import AsyncOverbooked  # noqa: PLC0415  slow to import

        # A client of its own defaults reads certificates and the environment's proxies, which takes 30 ms.
        options: dict[str, Any] = {"verify": ssl.create_default_context(), "trust_env": False}
        count = min(self.connections, _MOST_CONNECTIONS)
        self._clients = [
            AsyncOverbooked(base_url=self.where.url, secret_key=self.where.key, **options) for _ in range(count)
        ]
        self._idle = self._clients.copy()
        self._room = asyncio.Semaphore(count)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            await client.close()

    async def _ask(self, request: Callable[[AsyncOverbooked], Awaitable[Result[T]]]) -> Result[T]:
        """What came of a request that succeeded. Raises OverbookedError."""
        async with self._room:
            client = self._idle.pop()
            try:
                result = await request(client)
            finally:
                self._idle.append(client)
        error = result.error
        if error is None:
            return result
        if error.code == "E070":
            raise StoreUnavailable(error.details.get("outcome", "unknown"), error.message)
        raise error

    async def lock(
        self,
        slot_id: str,
        lock_key: str,
        lock_for: timedelta,
        lock_until: datetime | None = None,
        wait: timedelta | None = None,  # noqa: ARG002 - the API has none
    ) -> int:
        until = lock_until or datetime.now(UTC) + lock_for
        result = await self._ask(lambda api: api.slot.lock(slot_id, lock_until=until, lock_key=lock_key))
        return result.fencing_token or 0

    async def unlock(self, slot_id: str, lock_key: str) -> bool:
        await self._ask(lambda api: api.slot.unlock(slot_id, lock_key=lock_key))
        return True

    async def extend(self, slot_id: str, lock_key: str, lock_for: timedelta) -> bool:
        # The API has no verb for it: whoever holds a slot locks it again.
        await self.lock(slot_id, lock_key, lock_for)
        return True

    async def book(self, slot_id: str, lock_key: str) -> str:
        result = await self._ask(lambda api: api.booking.create(slot_id=slot_id, lock_key=lock_key))
        return result.unwrap().id

    async def cancel(self, booking_id: str) -> bool:
        await self._ask(lambda api: api.booking.cancel(booking_id))
        return True

    async def look(self, slot_id: str) -> bool:
        return (await self._ask(lambda api: api.slot.get(slot_id))).unwrap().available

    async def ping(self) -> None:
        try:  # what a secret key alone may, of a slot that is not there
            await self._ask(lambda api: api.slot.delete(self.where.marker))
        except OverbookedError as error:
            if error.code != "E025":
                raise

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        slots = [new_slot(resource_id, number) for number in range(count)]

        async def create(some: Sequence[NewSlot]) -> list[str]:
            return [slot.id for slot in (await self._ask(lambda api: api.slot.create(some))).unwrap()]

        made = await in_turns(create, list(chunks(slots, 50)))
        return [slot_id for some in made for slot_id in some]

    async def recount(self, resource_id: str) -> Recount:
        return recount_of(await self._slots(resource_id), await self._bookings(resource_id))

    async def remove(self, resource_ids: Iterable[str]) -> None:
        async def cancel(booking: Booking) -> None:
            await self._ask(lambda api: api.booking.cancel(booking.id))

        async def delete(slot: Slot) -> None:
            await self._ask(lambda api: api.slot.delete(slot.id))

        for resource_id in resource_ids:
            # Cancelled ones go with their slot.
            await in_turns(cancel, await self._bookings(resource_id))
            await in_turns(delete, await self._slots(resource_id))

    async def _slots(self, resource_id: str) -> list[Slot]:
        async def page(number: int) -> tuple[Sequence[Slot], int]:
            result = await self._ask(lambda api: api.slot.list(limit=50, page=number, resource_id=resource_id))
            return result.unwrap(), result.meta["total"]

        return await all_pages(page)

    async def _bookings(self, resource_id: str) -> list[Booking]:
        async def page(number: int) -> tuple[Sequence[Booking], int]:
            result = await self._ask(
                lambda api: api.booking.list(limit=50, page=number, resource_id=resource_id, status="active")
            )
            return result.unwrap(), result.meta["total"]

        return await all_pages(page)
