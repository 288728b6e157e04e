"""Sidecars for their tests: in the test's own loop, and as processes."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from overbooked_lock import AsyncLockEngine, EmbeddedServer
from overbooked_lock.sidecar import Sidecar

from .tools import Client, Running


@pytest.fixture
def name() -> str:
    """A sidecar's name that nobody else uses: channels know no namespace."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def sidecar(async_lock_engine: AsyncLockEngine, name: str) -> AsyncIterator[Sidecar]:
    """One that is there."""
    async with Sidecar(async_lock_engine, name) as running:
        await running.wait_subscribed()
        yield running


@pytest_asyncio.fixture
async def client(lock_server: EmbeddedServer, name: str) -> AsyncIterator[Client]:
    """A client of it."""
    async with Client(lock_server.url, name) as asking:
        yield asking


@pytest.fixture
def environment(lock_server: EmbeddedServer, lock_namespace: str, tmp_path: Path) -> dict[str, str]:
    """What the program finds: a server, a namespace, and no data folder but the test's."""
    ours = {
        "OVERBOOKED_LOCK_URL": lock_server.url,
        "OVERBOOKED_LOCK_NAMESPACE": lock_namespace,
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("OVERBOOKED_LOCK")} | ours


@pytest.fixture
def start(environment: dict[str, str], name: str, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts sidecars of one name; those that still run at the end are killed."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, wait: bool = True, **more: str) -> Running:
            log = tmp_path / f"{uuid.uuid4()}.log"
            running = Running(environment | more, log, "--name", name, *words, wait=wait)
            stack.callback(running.end)
            return running

        yield start
