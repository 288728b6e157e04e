"""Pytest fixtures: a private server, and an engine on a namespace of its own. Our own suite uses them.

In a ``conftest.py``::

    pytest_plugins = ["overbooked_lock.testing"]

====================== ======== =================================================================
``lock_server``        session  a private server, an :class:`~overbooked_lock.EmbeddedServer`
``lock_namespace``     test     a namespace that nobody else uses
``lock_engine``        test     a :class:`~overbooked_lock.LockEngine` on that server and namespace
``async_lock_engine``  test     an :class:`~overbooked_lock.AsyncLockEngine` on the same (needs pytest-asyncio)
====================== ======== =================================================================

Needs the extra ``[embedded]``, or a server on PATH.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine


@pytest.fixture(scope="session")
def lock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A private server, stopped at the end of the session."""
    # What a test run leaves behind is thrown away: no need to wait for the disk.
    with EmbeddedServer(tmp_path_factory.mktemp("lock-server"), fsync="everysec") as server:
        yield server


@pytest.fixture
def lock_namespace() -> str:
    """A namespace that nobody else uses."""
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def lock_engine(lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[LockEngine]:
    """A sync engine on a namespace of its own."""
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        yield engine


@pytest_asyncio.fixture
async def async_lock_engine(lock_server: EmbeddedServer, lock_namespace: str) -> AsyncIterator[AsyncLockEngine]:
    """An async engine on the same namespace as ``lock_engine``."""
    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        yield engine
