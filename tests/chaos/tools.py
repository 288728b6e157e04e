"""What the fault tests share: waiting for what happens, and async engines that are called like sync ones."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import redis

from overbooked_lock import AsyncHold, AsyncLockEngine, Booking, EmbeddedServer, LockEngine

T = TypeVar("T")

Connect = Callable[..., LockEngine]
"""What the fixture ``connect`` gives: makes an engine for a URL, with options."""


def milliseconds(count: float) -> timedelta:
    return timedelta(milliseconds=count)


PATIENCE = 30.0
"""Seconds after which nothing is waited for any more."""

MINUTE = timedelta(minutes=1)
"""A lock that does not end by itself while a test runs."""


def until(happened: Callable[[], object], seconds: float = 10) -> None:
    """Waits for what has no event of its own, and fails if it does not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"has not happened in {seconds} s"
        time.sleep(0.002)


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """The body must end, by itself, within this time; there is some grace for a machine that has other work."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + 1.5


@contextlib.contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """The server's process does not run for the body, and goes on afterwards."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def contents(url: str, namespace: str = "") -> dict[bytes, bytes]:
    """All that a server holds of a namespace: equal before and after a call that changes nothing."""
    with redis.Redis.from_url(url, protocol=2) as client:
        names = cast("list[bytes]", client.keys(f"{namespace}*"))
        return {name: cast("bytes", client.dump(name)) for name in names}


class LoopThread:
    """An event loop that runs in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop, and waits for what comes of it: a call that hangs fails."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _DrivenEvent:
    """An ``asyncio.Event`` that is waited for like one of ``threading``."""

    def __init__(self, event: asyncio.Event, loop: LoopThread) -> None:
        self._event = event
        self._loop = loop
        self.is_set = event.is_set

    def wait(self, timeout: float) -> bool:
        async def wait() -> bool:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._event.wait()
            return self._event.is_set()

        return self._loop.run(wait())


class _DrivenHold:
    """An ``AsyncHold`` that is used like a ``Hold``."""

    def __init__(self, hold: AsyncHold, loop: LoopThread) -> None:
        self._hold = hold
        self._loop = loop
        self.lost = _DrivenEvent(hold.lost, loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hold, name)

    def book(self, **options: Any) -> Booking:
        return self._loop.run(self._hold.book(**options))

    def __enter__(self) -> Self:
        self._loop.run(self._hold.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._hold.__aexit__(kind, error, trace))


class _DrivenEngine:
    """An async engine that is called like a sync one, from any thread, so that one test says what both do.

    Its loop runs all the time: what the engine does in the background goes on between the calls.
    """

    def __init__(self, engine: AsyncLockEngine, loop: LoopThread) -> None:
        self._engine = engine
        self._loop = loop

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            return self._loop.run(getattr(self._engine, verb)(*args, **options))

        return call

    def hold(self, *args: Any, **options: Any) -> _DrivenHold:
        return _DrivenHold(self._engine.hold(*args, **options), self._loop)


def driven(engine: AsyncLockEngine, loop: LoopThread) -> LockEngine:
    """The async engine with the face of a sync one."""
    return cast("LockEngine", _DrivenEngine(engine, loop))
