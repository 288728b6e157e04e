"""Engines of ours on a Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

import redis.asyncio

from overbooked_lock import AsyncLockEngine
from overbooked_lock.bench.targets.base import Target, all_pages, as_ours, chunks, new_slot, recount_of
from overbooked_lock.bench.verdicts import Recount
from overbooked_lock.events import Event, Reader


class EngineTarget(Target):
    """Engines of ours, as a service would have them, in a namespace that is the run's alone."""

    can = frozenset(
        {"lock", "unlock", "waiting", "lock_many", "unlock_many", "extend", "book", "cancel", "look", "events"}
    )

    async def __aenter__(self) -> Self:
        self._engine = AsyncLockEngine.from_url(self.where.url, namespace=self.where.namespace)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._engine.close()

    async def lock(
        self,
        slot_id: str,
        lock_key: str,
        lock_for: timedelta,
        lock_until: datetime | None = None,
        wait: timedelta | None = None,
    ) -> int:
        until = {"lock_for": lock_for} if lock_until is None else {"lock_until": lock_until}
        lock = await self._engine.lock(slot_id, lock_key=lock_key, wait=wait, **until)
        return lock.fencing_token

    async def unlock(self, slot_id: str, lock_key: str) -> bool:
        return (await self._engine.unlock(slot_id, lock_key=lock_key)).released

    async def lock_many(self, slot_ids: Sequence[str], lock_key: str, lock_for: timedelta) -> list[int]:
        locks = await self._engine.lock_many(slot_ids, lock_key=lock_key, lock_for=lock_for)
        return [lock.fencing_token for lock in locks]

    async def unlock_many(self, slot_ids: Sequence[str], lock_key: str) -> bool:
        return all(one.released for one in await self._engine.unlock_many(slot_ids, lock_key=lock_key))

    async def extend(self, slot_id: str, lock_key: str, lock_for: timedelta) -> bool:
        await self._engine.extend(slot_id, lock_key=lock_key, lock_for=lock_for)
        return True

    async def book(self, slot_id: str, lock_key: str) -> str:
        return (await self._engine.book(slot_id, lock_key=lock_key)).id

    async def cancel(self, booking_id: str) -> bool:
        await self._engine.cancel_booking(booking_id)
        return True

    async def look(self, slot_id: str) -> bool:
        return (await self._engine.get_slot(slot_id)).available

    async def events(self, listening: asyncio.Event) -> AsyncIterator[Event]:
        async with contextlib.aclosing(self._engine._follow(Reader(None, None, None))) as batches:  # noqa: SLF001 - our own
            async for batch in batches:
                listening.set()
                for event in batch:
                    yield event

    def watch_batches(self, note: Callable[[int], object]) -> None:
        self._engine._coalescer.on_batch = note  # noqa: SLF001 - our own

    async def ping(self) -> None:
        await self._engine.list_slots(limit=1, page=1)

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        slots = [new_slot(resource_id, number, f"{resource_id}-{number}") for number in range(count)]
        for some in chunks(slots, 512):
            await self._engine.create_slots(some)
        return [slot.id for slot in slots]

    async def recount(self, resource_id: str) -> Recount:
        async def slots(page: int) -> tuple[Sequence[Any], int]:
            found = await self._engine.list_slots(resource_id=resource_id, limit=512, page=page)
            return found.slots, found.total

        async def bookings(page: int) -> tuple[Sequence[Any], int]:
            found = await self._engine.list_bookings(resource_id=resource_id, status="active", limit=512, page=page)
            return found.bookings, found.total

        return recount_of(await all_pages(slots), await all_pages(bookings))

    async def remove(self, resource_ids: Iterable[str]) -> None:  # noqa: ARG002 - the namespace has nothing else in it
        async with redis.asyncio.Redis.from_url(self.where.url) as client:
            with as_ours():
                found = [key async for key in client.scan_iter(match=f"{self.where.namespace}:*", count=1000)]
                for some in chunks(found, 500):
                    await client.unlink(*some)
