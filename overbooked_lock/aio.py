"""The async engine. Its verbs are those of ``verbs.py``; here stands what they await.

The executor is in ``coalescing.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import redis.asyncio

from overbooked_lock import arguments, store
from overbooked_lock.calls import Settings
from overbooked_lock.coalescing import Coalescer
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import StoreUnavailable
from overbooked_lock.events import SWEEP_EVERY_SECONDS, AsyncListener, Event, Reader, Waiter
from overbooked_lock.holding import AsyncHold
from overbooked_lock.keys import Keys
from overbooked_lock.models import NewSlot
from overbooked_lock.operations import Means, Operation
from overbooked_lock.verbs import Verbs

T = TypeVar("T")

_GLANCE = 0.002  # seconds


class AsyncLockEngine(Verbs):
    """Locks slots on Redis or Valkey from one event loop. The verbs are those of :class:`LockEngine`.

    Calls made at the same time are merged into few calls for many slots, which is most of this engine's speed.

    Args:
        client: A ``redis.asyncio.Redis`` that says how to connect, whatever its ``decode_responses``; the engine
            keeps connections of its own.
        namespace, timeout, max_lock, unregistered: As for :class:`LockEngine`.
        load_slot: As for :class:`LockEngine`, and async.

    Raises:
        InvalidArgument: An argument is wrong.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        namespace: str = "",
        timeout: timedelta = timedelta(seconds=5),
        max_lock: timedelta = timedelta(hours=24),
        unregistered: Literal["refuse", "allow"] = "refuse",
        load_slot: Callable[[str], Awaitable[NewSlot | None]] | None = None,
    ) -> None:
        pool = store.client_of(client, redis.asyncio.Redis).connection_pool
        settings = Settings(Keys(namespace), arguments.max_lock(max_lock), arguments.scope(unregistered))
        timeout_s = arguments.positive_milliseconds(timeout, "timeout") / 1000
        self._coalescer = Coalescer(pool, settings, timeout_s)
        self._listener = AsyncListener(pool, settings.keys.events, timeout_s, self._sweep_in_time)
        run, load = self._coalescer.enqueue, None if load_slot is None else self._load
        means = Means(run, self._pause, self._listener.waiter, self._wait, load, self._in_background)
        super().__init__(settings, timeout_s, means)
        self._load_slot = load_slot
        self._loading: dict[str, asyncio.Task[bool]] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._dismissed = False
        self._server: EmbeddedServer | None = None
        self._closed = False

    @classmethod
    def from_url(cls, url: str, **options: Any) -> Self:
        """An engine for ``redis://``, ``rediss://`` or ``unix://``; the options are those of the class."""
        return cls(store.client_of_url(url, redis.asyncio.Redis), **options)

    @classmethod
    def embedded(
        cls, path: str | os.PathLike[str], *, fsync: Literal["always", "everysec"] = "always", **options: Any
    ) -> Self:
        """An engine on a private server that keeps its data in the folder ``path``.

        Where the server is to be started, this blocks for some tens of milliseconds: call it before the loop has
        other work.
        """
        server = EmbeddedServer(path, fsync=fsync)
        try:
            engine = cls.from_url(server.url, **options)
        except BaseException:
            server.close()
            raise
        engine._server = server  # noqa: SLF001 - our own
        return engine

    def hold(
        self,
        slot_id: str,
        *,
        lock_for: timedelta,
        lock_key: str | None = None,
        wait: timedelta | None = None,
        renew: bool = True,
        max_lifetime: timedelta | None = None,
        fair: bool = False,
    ) -> AsyncHold:
        """Holds a slot for the body of a ``with``: locks it, renews the lock, unlocks it whatever happens."""
        return AsyncHold(self, slot_id, lock_for, lock_key, wait, renew, max_lifetime, fair)

    async def events(
        self, *, since: str | None = None, slot_id: str | None = None, resource_id: str | None = None
    ) -> AsyncGenerator[Event]:
        """What happens to slots, as it happens and in order: an iterator that ends when the engine is closed."""
        reader = Reader(since, slot_id, resource_id)
        async with contextlib.aclosing(self._follow(reader)) as batches:
            async for batch in batches:
                for event in batch:
                    yield event

    async def _follow(self, reader: Reader) -> AsyncGenerator[list[Event]]:
        """What a reader is to get, as it comes; first, with nothing in it perhaps, where it surely listens.

        Ends when the engine is closed. Raises EventsMissed, StoreUnavailable on an engine that is closed already.
        """
        if self._closed:
            raise StoreUnavailable("not_applied", store.CLOSED)
        with self._listener.reading() as batches:
            while True:
                batch = await batches.get()
                if self._closed:
                    return
                # All that is there at once: with many readers that is much less work.
                events: list[Event] = []
                while batch is not None:
                    events += reader.take(batch)
                    if batches.empty():
                        break
                    batch = batches.get_nowait()
                if events:
                    yield events
                if batch is not None:
                    continue
                more = True
                while more:
                    try:
                        found, more = await self._catch_up(reader)
                    except StoreUnavailable:
                        if self._closed:
                            return
                        await asyncio.sleep(SWEEP_EVERY_SECONDS)
                        continue
                    yield found

    async def close(self) -> None:
        """Closes the connections, and stops the embedded server if this was its last user."""
        self._dismissed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(1.0, self._timeout)):
                while self._listener.dismiss() or self._in_line:  # noqa: ASYNC110 - those who wait in line leave it
                    await asyncio.sleep(_GLANCE)
        if self._background:
            # A cancelled lock is perhaps being undone.
            await asyncio.wait(self._background, timeout=min(1.0, self._timeout))
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._closed = True
        await self._listener.close()
        await self._coalescer.close()
        if self._server is not None:
            await asyncio.to_thread(self._server.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What operations await

    async def _pause(self, seconds: float) -> None:
        if self._closed:
            raise StoreUnavailable("not_applied", store.CLOSED)
        await asyncio.sleep(seconds)

    async def _wait(self, waiter: Waiter[asyncio.Event], seconds: float) -> None:
        # Not wait_for, which makes a task: whoever waits is to wake at once.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiter.bell.wait()
        waiter.bell.clear()
        if self._dismissed:
            raise StoreUnavailable("not_applied", store.CLOSED)

    def _spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _in_background(self, operation: Callable[[], Operation[None]]) -> None:
        self._spawn(self._do_afterwards(operation))

    async def _do_afterwards(self, operation: Callable[[], Operation[None]]) -> None:
        # It undoes what a cancelled call did, which may be on its way still, and must not be overtaken.
        await self._coalescer.landed()
        with contextlib.suppress(StoreUnavailable):  # the engine was closed
            await operation()

    async def _load(self, slot_id: str) -> bool:
        task = self._loading.get(slot_id)
        if task is None:
            task = self._loading[slot_id] = self._spawn(self._load_and_register(slot_id))
            task.add_done_callback(lambda _: self._loading.pop(slot_id))
        # Others may wait for the same slot: one that is cancelled must not take it from them, as awaiting it would.
        await asyncio.wait([task])
        if self._dismissed and task.cancelled():
            raise StoreUnavailable("not_applied", store.CLOSED)
        return task.result()

    async def _load_and_register(self, slot_id: str) -> bool:
        assert self._load_slot is not None  # noqa: S101 - operations load only where this is given
        return await self._register(await self._load_slot(slot_id), slot_id)
