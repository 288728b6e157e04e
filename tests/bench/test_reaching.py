"""A target that is not there, or of no use: one message, before anything is made."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from overbooked_lock import EmbeddedServer
from overbooked_lock.bench import Run
from overbooked_lock.bench.results import Second
from overbooked_lock.embedded import _find_program
from overbooked_lock.errors import InvalidArgument, StoreUnavailable

from .test_command import bench


class Phases:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def phase(self, text: str) -> None:
        """Keeps it."""
        self.told.append(text)

    def second(self, second: Second) -> None:
        """Of no concern."""


@pytest.fixture
def refused(play: Callable[..., Run]) -> Callable[..., str]:
    """Plays on a target that can't be used, and gives what is said; nothing else was begun."""

    def refused(url: str, **options: Any) -> str:
        watcher = Phases()
        with pytest.raises(StoreUnavailable) as error:
            play("hotspot", watcher, url=url, **options)
        assert watcher.told == ["asking whether the target is there"]
        return str(error.value)

    return refused


@pytest.fixture
def dead() -> Iterator[str]:
    """A host and port where nobody listens: bound, so that nobody else comes to listen there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def website() -> Iterator[str]:
    """The host and port of a server that speaks HTTP, and nothing of ours."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("redis://anna:hidden@{}", {}, "redis://{} can't be used: nothing listens there. Is the server running"),
        ("redis://{}", {"sidecar": "shop"}, "redis://{} can't be used: nothing listens there. Is the server running"),
        ("http://{}", {"key": "sk_1"}, "http://{} can't be used: no connection comes about. Is the server running"),
    ],
)
def test_where_nobody_listens(
    refused: Callable[..., str], dead: str, url: str, options: dict[str, str], says: str
) -> None:
    """What was tried, without the password, what came of it, and what to look at."""
    assert refused(url.format(dead), **options).startswith(says.format(dead))


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        (
            "redis://{}",
            {},
            "what answers there does not speak as a Redis does. If it is one that wants TLS, try rediss://",
        ),
        ("rediss://{}", {}, "it does not speak TLS. Try redis://"),
        ("http://{}", {"key": "sk_1"}, "what answers there does not speak the Overbooked API. Give the URL"),
    ],
)
def test_what_speaks_something_else(
    refused: Callable[..., str], website: str, url: str, options: dict[str, str], says: str
) -> None:
    """And what else to try."""
    assert says in refused(url.format(website), **options)


@pytest.mark.parametrize(
    ("user", "says"),
    [("", "it asks for a password. Put it into the URL"), (":wrong@", "user name or password are wrong.")],
)
def test_a_password_that_is_missing_or_wrong(
    refused: Callable[..., str], lock_server: EmbeddedServer, user: str, says: str
) -> None:
    """Told apart; the wrong one is not shown."""
    with redis.Redis.from_url(lock_server.url) as admin:
        admin.config_set("requirepass", "secret")
        try:
            said = refused(lock_server.url.replace("unix://", f"unix://{user}"))
        finally:
            admin.config_set("requirepass", "")
    assert said.startswith(f"{lock_server.url} can't be used: {says}")


def test_a_cluster(refused: Callable[..., str], tmp_path: Path) -> None:
    """It is refused in one sentence."""
    there = tmp_path / "s"
    words = (
        "--cluster-enabled",
        "yes",
        "--port",
        "0",
        "--unixsocket",
        str(there),
        "--dir",
        str(tmp_path),
        "--save",
        "",
    )
    with subprocess.Popen([_find_program().path, *words], stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis.from_url(f"unix://{there}", retry=Retry(ConstantBackoff(0.02), 1000)) as client:
                client.ping()
            assert "can't be used: it is a Redis Cluster, which is not supported. Give" in refused(f"unix://{there}")
        finally:
            process.kill()


def test_a_sidecar_that_is_not_there(refused: Callable[..., str], lock_server: EmbeddedServer) -> None:
    """Though its Redis is."""
    assert "no sidecar of this name hears there. Start one" in refused(lock_server.url, sidecar="nobody")


def test_over_tls(play: Callable[..., Run], refused: Callable[..., str], tls_port: int, tmp_path: Path) -> None:
    """A run on ``rediss://``; a certificate that nobody known has signed is refused."""
    url = f"rediss://localhost:{tls_port}"
    found = play("hotspot", url=f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}", callers=10)
    assert found.passed
    assert found.target.address == url
    assert "its certificate is not accepted (" in refused(url)
    assert "does not speak as a Redis does. If it is one that wants TLS" in refused(f"redis://localhost:{tls_port}")


def test_a_parameter_that_nobody_knows(play: Callable[..., Run], lock_server: EmbeddedServer) -> None:
    """It is an option that is wrong, not a target."""
    with pytest.raises(InvalidArgument, match="url has a parameter that redis-py does not know, or can't read"):
        play("hotspot", url=f"{lock_server.url}?colour=red")


def test_the_exit_code_says_so(dead: str) -> None:
    """And one line says why."""
    done = bench("--url", f"redis://{dead}")
    assert (done.returncode, done.stdout) == (7, "")
    asked, said = done.stderr.splitlines()
    assert asked == "overbooked-lock bench: asking whether the target is there"
    assert said.startswith(f"overbooked-lock: redis://{dead} can't be used: nothing listens there.")
