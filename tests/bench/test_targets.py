"""The other targets: a server that speaks the API, and a sidecar, as processes of their own."""

from __future__ import annotations

import subprocess
import sysconfig
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from overbooked_lock import EmbeddedServer, LockEngine, StoreUnavailable
from overbooked_lock.bench import Run
from overbooked_lock.bench.targets import Where

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A process of the program."""
    with subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def next_line(stream: IO[str] | None) -> str:
    """What a process says next."""
    assert stream is not None
    return stream.readline()


def test_over_http(play: Callable[..., Run], lock_server: EmbeddedServer) -> None:
    """Slots are made and removed over the API; a public key may not, and the run says so."""
    namespace = f"t-{uuid.uuid4().hex[:12]}"
    where = ("--url", lock_server.url, "--namespace", namespace)
    with (
        LockEngine.from_url(lock_server.url, namespace=namespace) as engine,
        running("serve", "--port", "0", *where) as it,
    ):
        url = next_line(it.stdout).split()[-1]
        key = engine.create_api_key("secret").key
        found = play("mixed", url=url, key=key, callers=10, slots=10, processes=2)
        assert found.passed, found.limits
        assert found.rate > 0
        assert found.target.kind == "http"
        assert found.server_cpu is None
        assert key not in found.model_dump_json()
        assert engine.list_slots().total == engine.list_bookings().total == 0
        assert engine.list_locks() == []
        with pytest.raises(StoreUnavailable, match="does not take the API key, or not as a secret one"):
            play("mixed", url=url, key=engine.create_api_key("public").key)


def test_through_a_sidecar(play: Callable[..., Run], lock_server: EmbeddedServer) -> None:
    """Requests go over pub/sub; waits and rows of seats are there, and the run removes its slots."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    where = ("--url", lock_server.url, "--namespace", name)
    with (
        LockEngine.from_url(lock_server.url, namespace=name) as engine,
        running("sidecar", "--name", name, *where) as it,
    ):
        assert "hears" in next_line(it.stdout)
        for scenario in ("onsale", "waiters"):
            found = play(scenario, sidecar=name, callers=10, slots=10)
            assert found.passed, found.limits
            assert found.rate > 0
            assert (found.target.kind, found.server_cpu is None) == ("sidecar", False)
        assert engine.list_slots().total == engine.list_bookings().total == 0
        assert engine.list_locks() == []


def test_an_address_shows_no_password() -> None:
    """Nor does what is printed of it."""
    where = Where("redis", "rediss://anna:secret@cache:6379/2?ssl_ca_certs=x", "", "", "id", "ns")
    assert where.address == "rediss://cache:6379/2"
    assert "secret" not in repr(where)
    assert Where("redis", "redis://anna:1/secret@cache", "", "", "id", "ns").address == "redis://cache"
    assert Where("redis", "redis://cache?password=a@secret", "", "", "id", "ns").address == "redis://cache"
