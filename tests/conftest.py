"""Fixtures of the suite: those that we ship, and what only we need."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import trustme
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine, NewSlot, Slot

pytest_plugins = ["overbooked_lock.testing"]

SOAK = os.environ.get("OVERBOOKED_SOAK") == "1"


@pytest.fixture
def soak() -> bool:
    """Whether this is the long version of the suite."""
    return SOAK


@pytest.fixture
def raw(lock_server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A bare client on the server, to look at what an engine did, or to spoil it."""
    with redis.Redis.from_url(lock_server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def new_slot() -> Callable[..., NewSlot]:
    """Makes a slot to be registered, with what a test does not care for filled in."""

    def make(**fields: Any) -> NewSlot:
        defaults: dict[str, Any] = {
            "resource_id": "court-1",
            "start_date": datetime(2030, 6, 1, 18, tzinfo=UTC),
            "end_date": datetime(2030, 6, 1, 19, tzinfo=UTC),
        }
        return NewSlot(**(defaults | fields))

    return make


@pytest.fixture
def slot(lock_engine: LockEngine, new_slot: Callable[..., NewSlot]) -> Slot:
    """A registered slot with one place."""
    return lock_engine.create_slot(new_slot())


def _speaks_tls(program: str) -> bool:
    """A build without TLS stumbles over its options before it gets to nonsense."""
    if not shutil.which(program):
        return False
    config = b"tls-port 0\nnonsense"
    answer = subprocess.run([program, "-"], input=config, capture_output=True, check=False, timeout=10)
    return b"nonsense" in answer.stdout + answer.stderr


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """The port of a server that speaks TLS alone, as localhost; ``ca.pem`` in ``tmp_path`` is who vouches for it."""
    program = next(filter(_speaks_tls, (f"{folder}/redis-server" for folder in os.get_exec_path())), None)
    if program is None:
        pytest.skip("needs a redis-server with TLS on PATH: apt-get install redis-server")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = authority.issue_cert("localhost")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    options = {
        "port": 0,
        "tls-port": port,
        "bind": "127.0.0.1",
        "save": "",
        "dir": tmp_path,
        "tls-auth-clients": "no",
        "tls-cert-file": tmp_path / "cert.pem",
        "tls-key-file": tmp_path / "key.pem",
        "tls-ca-cert-file": tmp_path / "ca.pem",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with subprocess.Popen([program, *words], stdout=subprocess.DEVNULL) as process:
        try:
            url = f"rediss://localhost:{port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
            with redis.Redis.from_url(url, retry=Retry(ConstantBackoff(0.02), 1000)) as client:
                client.ping()
            yield port
        finally:
            process.kill()


class _Awaited:
    """An async engine whose verbs are called like a sync one's, so that one test says what both engines do."""

    def __init__(self, engine: AsyncLockEngine, runner: asyncio.Runner) -> None:
        self._engine = engine
        self._runner = runner

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                return await getattr(self._engine, verb)(*args, **kwargs)

            return self._runner.run(run())

        return call


@pytest.fixture(params=["sync", "async"])
def make_engine(
    request: pytest.FixtureRequest, lock_server: EmbeddedServer, lock_namespace: str
) -> Iterator[Callable[..., LockEngine]]:
    """Makes engines on one namespace: once all sync, once all async."""
    with contextlib.ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())

        def make(url: str = lock_server.url, **options: Any) -> LockEngine:
            options = {"namespace": lock_namespace} | options
            if request.param == "sync":
                return stack.enter_context(LockEngine.from_url(url, **options))
            engine = cast("LockEngine", _Awaited(AsyncLockEngine.from_url(url, **options), runner))
            stack.callback(engine.close)
            return engine

        yield make


@pytest.fixture
def engine(make_engine: Callable[..., LockEngine]) -> LockEngine:
    """An engine with default options, once sync and once async."""
    return make_engine()


@pytest.fixture
def redis_now(raw: redis.Redis) -> Callable[[], datetime]:
    """Tells the time by Redis' clock."""

    def now() -> datetime:
        seconds, micros = raw.time()
        return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=micros)

    return now


@pytest.fixture
def await_expiry(raw: redis.Redis, lock_namespace: str) -> Callable[[str], None]:
    """Returns when Redis has ended the lock of a slot."""

    def wait(slot_id: str) -> None:
        deadline = time.monotonic() + 10
        while raw.exists(f"{lock_namespace}:slot:{slot_id}:lock"):
            assert time.monotonic() < deadline, f"the lock of {slot_id} does not end"

    return wait
