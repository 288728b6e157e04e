"""Fixtures of the fault tests: a server to be spoiled, a proxy before one, and engines of both kinds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine

from .proxy import Proxy
from .tools import Connect, LoopThread, driven, milliseconds


@pytest.fixture
def proxy(lock_server: EmbeddedServer) -> Iterator[Proxy]:
    """A proxy before the server that all tests share."""
    with Proxy(lock_server.socket_path) as proxy:
        yield proxy


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server of the test's own, to be spoiled."""
    with EmbeddedServer(tmp_path / "server", fsync="everysec") as server:
        yield server


@pytest.fixture
def operator(own_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A bare client on ``own_server``."""
    with redis.Redis.from_url(own_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest, lock_namespace: str) -> Iterator[Connect]:
    """Makes engines for a URL: once all sync, once all async, and called the same. Any slot id can be locked."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> LockEngine:
            options = {
                "namespace": lock_namespace,
                "timeout": milliseconds(1000),
                "unregistered": "allow",
            } | options
            if request.param == "sync":
                return stack.enter_context(LockEngine.from_url(url, **options))
            engine = driven(AsyncLockEngine.from_url(url, **options), loop)
            stack.callback(engine.close)
            return engine

        loop = LoopThread("engine")
        stack.callback(loop.close)
        yield make
