"""``overbooked-lock sidecar``: a sidecar with a process of its own, its health and its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import redis.asyncio
import uvloop

from overbooked_lock import AsyncLockEngine, EmbeddedServer, store
from overbooked_lock.errors import InvalidArgument, OverbookedError
from overbooked_lock.http.readiness import Readiness
from overbooked_lock.http.server import LogFormat, log_to_stderr
from overbooked_lock.sidecar.requests import Channels
from overbooked_lock.sidecar.sidecar import KEEP_ANSWERS_FOR, MOST_REQUESTS, Sidecar

HEALTH_EVERY = 2.0
"""Seconds between two looks at its health; a health file that is much older tells that something is wrong."""

REPORT_EVERY = 60.0
"""Seconds between two reports in the log."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to run it.

    Attributes:
        name: The sidecar's.
        url: The Redis or Valkey; None: a private server in ``folder``.
        folder: Where that keeps its data.
        namespace, unregistered: As for :class:`~overbooked_lock.LockEngine`.
        max_requests, keep_answers: As for :class:`Sidecar`.
        health_file: Is written while it is healthy, every 2 seconds.
        log_format: ``"text"`` for people, ``"json"`` for programs.
    """

    name: str
    url: str | None
    folder: Path
    namespace: str = ""
    unregistered: Literal["refuse", "allow"] = "refuse"
    max_requests: int = MOST_REQUESTS
    keep_answers: timedelta = KEEP_ANSWERS_FOR
    health_file: Path | None = None
    log_format: LogFormat = "text"


def run(settings: Settings) -> None:
    """Runs a sidecar until SIGTERM, SIGINT or SIGHUP; then what is under way is answered, for up to 10 seconds.

    Prints the channel when it hears it for the first time. A store that is not there is waited for. Raises
    InvalidArgument, EmbeddedServerError.
    """
    Channels(settings.name)
    file = settings.health_file
    if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
        raise InvalidArgument("health_file", "must be a file in a folder that exists and can be written to")
    log_to_stderr(settings.log_format)
    with contextlib.ExitStack() as stack:
        url = settings.url
        if url is None:
            url = stack.enter_context(EmbeddedServer(settings.folder)).url
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_main(settings, url))


async def _main(settings: Settings, url: str) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    engine = AsyncLockEngine(_client(url), namespace=settings.namespace, unregistered=settings.unregistered)
    options: dict[str, Any] = {"max_requests": settings.max_requests, "keep_answers": settings.keep_answers}
    async with engine, Sidecar(engine, settings.name, **options) as sidecar, _looking_after(sidecar, engine, settings):
        await stopping.wait()
    sidecar.report()


def _client(url: str) -> redis.asyncio.Redis:
    # It does not tell the server which library it is: that is one right less to give.
    client: redis.asyncio.Redis = store.client_of_url(url, redis.asyncio.Redis, driver_info=None)
    return client


@contextlib.asynccontextmanager
async def _looking_after(sidecar: Sidecar, engine: AsyncLockEngine, settings: Settings) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(work)
        for work in (_announce(sidecar), _report(sidecar), _watch_health(sidecar, engine, settings.health_file))
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if settings.health_file is not None:
            _remove(settings.health_file)


async def _announce(sidecar: Sidecar) -> None:
    await sidecar.wait_subscribed()
    print(f"overbooked-lock hears {sidecar.channels.requests}", flush=True)  # noqa: T201


async def _report(sidecar: Sidecar) -> None:
    while True:
        await asyncio.sleep(REPORT_EVERY)
        sidecar.report()


async def _watch_health(sidecar: Sidecar, engine: AsyncLockEngine, file: Path | None) -> None:
    """Healthy is who hears requests, and whose store would take a lock now."""
    if file is None:
        return
    readiness = Readiness(engine)
    await sidecar.wait_subscribed()
    while True:
        with contextlib.suppress(OverbookedError, OSError):
            await readiness.check()
            if sidecar.subscribed:
                _write(file, sidecar)
        await asyncio.sleep(HEALTH_EVERY)


def _write(file: Path, sidecar: Sidecar) -> None:
    """Whoever reads it finds the counts, and never half of them."""
    facts = {"at": int(time.time()), "name": sidecar.channels.name, "under_way": sidecar.under_way, **sidecar.counts}
    new = file.with_name(f"{file.name}.new")
    new.write_text(json.dumps(facts) + "\n")
    new.replace(file)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
