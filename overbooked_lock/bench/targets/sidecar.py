"""A sidecar, over Redis pub/sub."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

import redis.asyncio
from redis.exceptions import RedisError

from overbooked_lock.bench.targets.base import Target, all_pages, as_ours, in_turns, new_slot, recount_of
from overbooked_lock.bench.verdicts import Recount
from overbooked_lock.errors import OverbookedError, StoreUnavailable

_DEADLINE = timedelta(seconds=5)
_SEND_AGAIN_S = 1.5


class SidecarTarget(Target):
    """A sidecar, as a service that has nothing but a Redis client speaks to it."""

    can = frozenset({"lock", "unlock", "waiting", "lock_many", "unlock_many", "extend", "book", "cancel", "look"})

    async def __aenter__(self) -> Self:
        prefix = f"overbooked:sidecar:{self.where.sidecar}:"
        self._requests = f"{prefix}requests"
        self._reply_to = f"{prefix}replies:{self.where.run_id}:{self.process}"
        self._serial = itertools.count()
        self._name = secrets.token_hex(4)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._unsent: list[str] = []
        self._flushing: asyncio.Task[None] | None = None
        self._client = redis.asyncio.Redis.from_url(self.where.url)
        self._replies = self._client.pubsub(ignore_subscribe_messages=True)
        with as_ours():
            await self._replies.subscribe(self._reply_to)
        self._hearing = asyncio.create_task(self._hear())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hearing.cancel()
        await asyncio.wait([self._hearing])
        if self._flushing is not None:
            await asyncio.wait([self._flushing])
        await self._replies.aclose()
        await self._client.aclose()

    async def _hear(self) -> None:
        async for message in self._replies.listen():
            answer = json.loads(message["data"])
            waiting = self._waiting.get(answer["id"])
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def _ask(self, op: str, wait: timedelta | None = None, **fields: Any) -> dict[str, Any]:
        request_id = f"{self._name}-{next(self._serial)}"
        deadline = _DEADLINE
        if wait is not None:
            fields["wait_ms"] = _ms(wait)
            deadline += wait
        request = {
            "id": request_id,
            "op": op,
            "client": f"bench-{self.where.run_id}",
            "reply_to": self._reply_to,
            "deadline_ms": _ms(deadline),
            **fields,
        }
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._waiting[request_id] = waiting
        text = json.dumps(request)

        again: asyncio.TimerHandle

        def send() -> None:
            nonlocal again
            self._send(text)
            again = loop.call_later(_SEND_AGAIN_S, send)

        send()
        try:
            async with asyncio.timeout(deadline.total_seconds() + 1):
                answer = await waiting
        except TimeoutError:
            raise StoreUnavailable("unknown", "the sidecar did not answer in time") from None
        finally:
            again.cancel()
            del self._waiting[request_id]
        if answer["success"]:
            return answer
        raise _failed(**answer["error"])

    def _send(self, text: str) -> None:
        self._unsent.append(text)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        # What gathers while one lot is on its way goes with the next: a client would do the same.
        try:
            while self._unsent:
                texts, self._unsent = self._unsent, []
                lot = self._client.pipeline(transaction=False)
                for text in texts:
                    lot.publish(self._requests, text)
                with contextlib.suppress(RedisError, OSError):  # it is sent again
                    heard = await lot.execute()
                    if not any(heard):
                        self._fail_all()
        finally:
            self._flushing = None

    def _fail_all(self) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(
                    StoreUnavailable("not_applied", f"no sidecar of the name {self.where.sidecar!r} is there")
                )

    async def lock(
        self,
        slot_id: str,
        lock_key: str,
        lock_for: timedelta,
        lock_until: datetime | None = None,  # noqa: ARG002 - for those that have events
        wait: timedelta | None = None,
    ) -> int:
        fields: dict[str, Any] = {"slot_id": slot_id, "lock_key": lock_key, "lock_for_ms": _ms(lock_for)}
        token: int = (await self._ask("lock", wait, **fields))["fencing_token"]
        return token

    async def unlock(self, slot_id: str, lock_key: str) -> bool:
        answer = await self._ask("unlock", slot_id=slot_id, lock_key=lock_key)
        return bool(answer["meta"]["released"])

    async def lock_many(self, slot_ids: Sequence[str], lock_key: str, lock_for: timedelta) -> list[int]:
        fields: dict[str, Any] = {"slot_ids": list(slot_ids), "lock_key": lock_key, "lock_for_ms": _ms(lock_for)}
        tokens: list[int] = (await self._ask("lock_many", **fields))["fencing_tokens"]
        return tokens

    async def unlock_many(self, slot_ids: Sequence[str], lock_key: str) -> bool:
        await self._ask("unlock_many", slot_ids=list(slot_ids), lock_key=lock_key)
        return True

    async def extend(self, slot_id: str, lock_key: str, lock_for: timedelta) -> bool:
        await self._ask("extend", slot_id=slot_id, lock_key=lock_key, lock_for_ms=_ms(lock_for))
        return True

    async def book(self, slot_id: str, lock_key: str) -> str:
        booking_id: str = (await self._ask("book", slot_id=slot_id, lock_key=lock_key))["data"]["id"]
        return booking_id

    async def cancel(self, booking_id: str) -> bool:
        await self._ask("cancel", booking_id=booking_id)
        return True

    async def look(self, slot_id: str) -> bool:
        return bool((await self._ask("get", slot_id=slot_id))["data"]["available"])

    async def ping(self) -> None:
        await self._ask("ping")

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        async def create(number: int) -> str:
            slot = new_slot(resource_id, number, f"{resource_id}-{number}")
            await self._ask(
                "create_slot",
                slot_id=slot.id,
                resource_id=resource_id,
                start_date=slot.start_date.isoformat(),
                end_date=slot.end_date.isoformat(),
                capacity=1,
            )
            return slot.id

        return await in_turns(create, range(count))

    async def recount(self, resource_id: str) -> Recount:
        return recount_of(
            await all_pages(self._pages("list_slots", resource_id)),
            await all_pages(self._pages("list_bookings", resource_id, status="active")),
        )

    def _pages(self, op: str, resource_id: str, **fields: Any) -> Callable[[int], Awaitable[tuple[Sequence[Any], int]]]:
        async def page(number: int) -> tuple[Sequence[Any], int]:
            answer = await self._ask(op, limit=50, page=number, resource_id=resource_id, **fields)
            return [_Payload(one) for one in answer["data"]], answer["meta"]["total"]

        return page

    async def remove(self, resource_ids: Iterable[str]) -> None:
        async def cancel(booking: Any) -> None:
            await self._ask("cancel", booking_id=booking.id)

        async def delete(slot: Any) -> None:
            await self._ask("delete_slot", slot_id=slot.id)

        for resource_id in resource_ids:
            await in_turns(cancel, await all_pages(self._pages("list_bookings", resource_id, status="active")))
            await in_turns(delete, await all_pages(self._pages("list_slots", resource_id)))


class _Payload:
    """A payload whose fields are read as those of a model."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


def _failed(code: str, message: str, status: int, **more: Any) -> OverbookedError:
    """The error of a sidecar's answer."""
    from overbooked_lock.client import RequestFailed  # noqa: PLC0415  slow to import

    details = more.get("details") or {}
    if code == "E070":
        return StoreUnavailable(details.get("outcome", "unknown"), message)
    return RequestFailed(code, message, status, reason=more.get("reason"), param=more.get("param"), details=details)


def _ms(duration: timedelta) -> int:
    return max(1, duration // timedelta(milliseconds=1))
