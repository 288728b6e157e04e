"""Servers for the tests of the HTTP API."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from overbooked_lock import EmbeddedServer

from .tools import Served


@pytest.fixture
def serve(lock_server: EmbeddedServer) -> Iterator[Callable[..., Served]]:
    """Starts servers with settings of their own."""
    with contextlib.ExitStack() as stack:

        def start(
            store: str = lock_server.url, around: Callable[[Any], Any] = lambda app: app, **settings: Any
        ) -> Served:
            return stack.enter_context(Served(store, around, f"test-{uuid.uuid4().hex}", settings))

        yield start


@pytest.fixture(scope="session")
def api(lock_server: EmbeddedServer) -> Iterator[Served]:
    """A server without limits, for all tests that bring slots of their own."""
    settings = {"rate_limit": None, "max_locks": None}
    with Served(lock_server.url, lambda app: app, f"test-{uuid.uuid4().hex}", settings) as served:
        yield served
