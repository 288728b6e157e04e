"""Where load goes: engines of ours on a Redis, a server that speaks the API, or a sidecar.

A :class:`Target` is one process's way there. All have the same verbs; ``can`` says which of them do anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
import ssl
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import urlsplit

import redis.asyncio
from redis.exceptions import RedisError

from overbooked_lock import AsyncLockEngine, NewSlot, store
from overbooked_lock.bench.scenarios import Scenario
from overbooked_lock.bench.verdicts import Recount
from overbooked_lock.errors import InvalidArgument, OverbookedError, StoreUnavailable
from overbooked_lock.events import Event, Reader
from overbooked_lock.models import Booking, Slot

if TYPE_CHECKING:
    from overbooked_lock.client import AsyncOverbooked, Result

T = TypeVar("T")

Kind = Literal["embedded", "redis", "http", "sidecar"]

_AT_A_TIME = 32
"""So many slots are registered or removed at a time where each takes a request."""

_SIDECAR_DEADLINE_S = 5.0
_SEND_AGAIN_S = 1.5
_MOST_HTTP_CONNECTIONS = 256
"""Of a process; more callers than that take turns."""


@dataclass(frozen=True)
class Where:
    """Which target, as it goes to each process.

    Attributes:
        kind: Which kind.
        url: Where it is.
        key: The API key for HTTP.
        sidecar: The sidecar's name.
        run_id: The run's.
        namespace: Of the run's own keys, where it has an engine.
    """

    kind: Kind
    url: str = field(repr=False)
    key: str = field(repr=False)
    sidecar: str
    run_id: str
    namespace: str

    @property
    def marker(self) -> str:
        """The ``resource_id`` of the run's slots: whoever finds one knows what it is."""
        return self.namespace

    @property
    def address(self) -> str:
        """The URL without user and password."""
        return re.sub("(?<=://)[^/]*@", "", self.url).partition("?")[0]

    @property
    def on_this_machine(self) -> bool:
        """Whether it shares our cores, as far as its address tells."""
        return self.url.startswith("unix://") or urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    def check(self, name: str, scenario: type[Scenario]) -> None:
        """Raises InvalidArgument if the target lacks what a scenario needs."""
        lacking = sorted(scenario.needs - _TARGETS[self.kind].can)
        if lacking:
            raise InvalidArgument(
                "scenario", f"{name!r} needs {', '.join(lacking)}, which a target of the kind {self.kind!r} lacks"
            )

    def open(self, process: int, connections: int) -> Target:
        """A way there for a process, with as many connections as callers need where each takes one."""
        return _TARGETS[self.kind](self, process, connections)


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
    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        """Registers slots with one place each; gives their ids."""

    @abstractmethod
    async def recount(self, resource_id: str) -> Recount:
        """What stands in the store."""

    @abstractmethod
    async def remove(self, resource_ids: Iterable[str]) -> None:
        """Removes all that the run made."""


class EngineTarget(Target):
    """Engines of ours, as a service would have them, in a namespace that is the run's alone."""

    can = frozenset(
        {"lock", "unlock", "wait", "lock_many", "unlock_many", "extend", "book", "cancel", "look", "events"}
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

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        slots = [_new_slot(resource_id, number, f"{resource_id}-{number}") for number in range(count)]
        for some in _chunks(slots, 512):
            await self._engine.create_slots(some)
        return [slot.id for slot in slots]

    async def recount(self, resource_id: str) -> Recount:
        async def slots(page: int) -> tuple[Sequence[Any], int]:
            found = await self._engine.list_slots(resource_id=resource_id, limit=512, page=page)
            return found.slots, found.total

        async def bookings(page: int) -> tuple[Sequence[Any], int]:
            found = await self._engine.list_bookings(resource_id=resource_id, status="active", limit=512, page=page)
            return found.bookings, found.total

        return _recount(await _all_pages(slots), await _all_pages(bookings))

    async def remove(self, resource_ids: Iterable[str]) -> None:  # noqa: ARG002 - the namespace has nothing else in it
        async with redis.asyncio.Redis.from_url(self.where.url) as client:
            with _as_ours():
                found = [key async for key in client.scan_iter(match=f"{self.where.namespace}:*", count=1000)]
                for some in _chunks(found, 500):
                    await client.unlink(*some)


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
        count = min(self.connections, _MOST_HTTP_CONNECTIONS)
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

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        slots = [_new_slot(resource_id, number) for number in range(count)]

        async def create(some: Sequence[NewSlot]) -> list[str]:
            return [slot.id for slot in (await self._ask(lambda api: api.slot.create(some))).unwrap()]

        made = await _in_turns(create, list(_chunks(slots, 50)))
        return [slot_id for some in made for slot_id in some]

    async def recount(self, resource_id: str) -> Recount:
        return _recount(await self._slots(resource_id), await self._bookings(resource_id))

    async def remove(self, resource_ids: Iterable[str]) -> None:
        async def cancel(booking: Booking) -> None:
            await self._ask(lambda api: api.booking.cancel(booking.id))

        async def delete(slot: Slot) -> None:
            await self._ask(lambda api: api.slot.delete(slot.id))

        for resource_id in resource_ids:
            # Cancelled ones go with their slot.
            await _in_turns(cancel, await self._bookings(resource_id))
            await _in_turns(delete, await self._slots(resource_id))

    async def _slots(self, resource_id: str) -> list[Slot]:
        async def page(number: int) -> tuple[Sequence[Slot], int]:
            result = await self._ask(lambda api: api.slot.list(limit=50, page=number, resource_id=resource_id))
            return result.unwrap(), result.meta["total"]

        return await _all_pages(page)

    async def _bookings(self, resource_id: str) -> list[Booking]:
        async def page(number: int) -> tuple[Sequence[Booking], int]:
            result = await self._ask(
                lambda api: api.booking.list(limit=50, page=number, resource_id=resource_id, status="active")
            )
            return result.unwrap(), result.meta["total"]

        return await _all_pages(page)


class SidecarTarget(Target):
    """A sidecar, as a service that has nothing but a Redis client speaks to it."""

    can = frozenset({"lock", "unlock", "wait", "lock_many", "unlock_many", "extend", "book", "cancel", "look"})

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
        with _as_ours():
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
        deadline = timedelta(seconds=_SIDECAR_DEADLINE_S)
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

    async def create_slots(self, resource_id: str, count: int) -> list[str]:
        async def create(number: int) -> str:
            slot = _new_slot(resource_id, number, f"{resource_id}-{number}")
            await self._ask(
                "create_slot",
                slot_id=slot.id,
                resource_id=resource_id,
                start_date=slot.start_date.isoformat(),
                end_date=slot.end_date.isoformat(),
                capacity=1,
            )
            return slot.id

        return await _in_turns(create, range(count))

    async def recount(self, resource_id: str) -> Recount:
        return _recount(
            await _all_pages(self._pages("list_slots", resource_id)),
            await _all_pages(self._pages("list_bookings", resource_id, status="active")),
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
            await _in_turns(cancel, await _all_pages(self._pages("list_bookings", resource_id, status="active")))
            await _in_turns(delete, await _all_pages(self._pages("list_slots", resource_id)))


_TARGETS: Mapping[Kind, type[Target]] = {
    "embedded": EngineTarget,
    "redis": EngineTarget,
    "http": HttpTarget,
    "sidecar": SidecarTarget,
}


class _Payload:
    """A payload whose fields are read as those of a model."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


def _new_slot(resource_id: str, number: int, slot_id: str | None = None) -> NewSlot:
    start = datetime(2030, 6, 1, 20, tzinfo=UTC) + timedelta(seconds=number)
    dates: dict[str, Any] = {"start_date": start, "end_date": start + timedelta(hours=2)}
    own: dict[str, Any] = {} if slot_id is None else {"id": slot_id}
    return NewSlot(resource_id=resource_id, **dates, **own)


def _failed(code: str, message: str, status: int, **more: Any) -> OverbookedError:
    """The error of a sidecar's answer."""
    from overbooked_lock.client import RequestFailed  # noqa: PLC0415  slow to import

    details = more.get("details") or {}
    if code == "E070":
        return StoreUnavailable(details.get("outcome", "unknown"), message)
    return RequestFailed(code, message, status, reason=more.get("reason"), param=more.get("param"), details=details)


def _recount(slots: Iterable[Any], bookings: Iterable[Any]) -> Recount:
    slots = list(slots)
    return Recount(
        bookings=Counter(booking.slot_id for booking in bookings),
        counted={slot.id: slot.num_active_bookings for slot in slots if slot.num_active_bookings},
        locked=sum(slot.locked_until is not None for slot in slots),
    )


async def _all_pages(page: Callable[[int], Awaitable[tuple[Sequence[T], int]]]) -> list[T]:
    everything: list[T] = []
    for number in itertools.count(1):
        found, total = await page(number)
        everything += found
        if not found or len(everything) >= total:
            break
    return everything


async def _in_turns(do: Callable[[Any], Awaitable[T]], things: Iterable[Any]) -> list[T]:
    """Does it with all of them, some at a time; gives what came of each, in their order."""
    done: list[T] = []
    for some in _chunks(list(things), _AT_A_TIME):
        done += await asyncio.gather(*(do(thing) for thing in some))
    return done


def _chunks(things: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (things[at : at + size] for at in range(0, len(things), size))


@contextlib.contextmanager
def _as_ours() -> Any:
    """What redis-py raises, as an error of ours."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable("unknown", store._cause(error)) from error  # noqa: SLF001 - our own words for it


def _ms(duration: timedelta) -> int:
    return max(1, duration // timedelta(milliseconds=1))


async def store_offset_s(where: Where) -> float:
    """What the store's clock shows, in seconds since 1970, less our monotonic clock; 0 behind HTTP."""
    if where.kind == "http":
        return 0.0
    async with redis.asyncio.Redis.from_url(where.url) as client:
        with _as_ours():
            offsets = []
            for _ in range(5):
                asked = time.monotonic()
                seconds, microseconds = await client.time()
                offsets.append((time.monotonic() - asked, seconds + microseconds / 1e6 - asked))
    # Of the quickest answer, half of whose way lies before it.
    took, offset = min(offsets)
    return offset - took / 2
