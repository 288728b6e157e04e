"""The ACL rules that are printed let a sidecar and its clients do what they must, and nothing else."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from overbooked_lock import EmbeddedServer, scripts
from overbooked_lock.sidecar.acl import COMMANDS

from .tools import PATIENCE, PROGRAM, Client, Running, use_everything

DEBIAN_REDIS = "/usr/bin/redis-server"
PASSWORD = "a-password-of-the-test"  # noqa: S105
NAMESPACE = "prod"
SCRIPTS = (
    scripts.LOCK, scripts.UNLOCK, scripts.EXTEND, scripts.CHECK, scripts.SWEEP, scripts.CREATE_SLOTS,
    scripts.GET_SLOTS, scripts.UPDATE_SLOT, scripts.DELETE_SLOTS, scripts.LIST_SLOTS, scripts.BOOK,
    scripts.GET_BOOKINGS, scripts.UPDATE_BOOKING, scripts.CANCEL_BOOKING, scripts.ENABLE_BOOKING,
    scripts.RESCHEDULE_BOOKING, scripts.DELETE_BOOKINGS, scripts.LIST_BOOKINGS, scripts.KEEP_ANSWER,
    scripts.CLAIM_REQUEST, scripts.ANSWER_REQUEST,
)  # fmt: skip


def test_no_command_too_many() -> None:
    """What the scripts call that a sidecar runs, and what it sends itself."""
    called = {word for script in SCRIPTS for word in re.findall(r"redis\.p?call\('([A-Z]+)'", script.source)}
    assert "count_command" in scripts.LIST_SLOTS.source  # ZCOUNT is not called by its name
    called.remove("MSETEX")  # where the user may; older servers take no rule for it
    own = {"EVAL", "EVALSHA", "INFO", "SUBSCRIBE", "UNSUBSCRIBE", "ZCOUNT"}
    assert {command.upper() for command in COMMANDS} == called | own


@pytest.fixture(params=["the embedded server", "Debian's Redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A server of the test's own."""
    if request.param == "Debian's Redis":
        if not Path(DEBIAN_REDIS).exists():
            pytest.skip(f"there is no {DEBIAN_REDIS}")
        monkeypatch.setenv("OVERBOOKED_LOCK_SERVER", DEBIAN_REDIS)
    with EmbeddedServer(tmp_path / "server", fsync="everysec") as own:
        if int(own.version.split(".")[0]) < 7:
            pytest.skip("selectors came with Redis 7.0")
        yield own


@pytest.fixture
def operator(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client that may do everything."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def users(operator: redis.Redis, name: str) -> list[str]:
    """The names of the users, made as it is printed: the sidecar's, and two clients'."""
    made = []
    for client in ("web", "other"):
        command = [PROGRAM, "acl", "--name", name, "--client", client, "--namespace", NAMESPACE]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
        for line in filter(None, printed.splitlines()):
            words = shlex.split(line.replace("<password>", PASSWORD))
            operator.execute_command(*words)
            made.append(words[2])
    assert made == [f"sidecar-{name}", f"web-of-{name}", f"sidecar-{name}", f"other-of-{name}"]
    return [made[0], made[1], made[3]]


def as_user(server: EmbeddedServer, user: str) -> str:
    """Where a user finds the server."""
    return f"{server.url.replace('unix://', f'unix://{user}@')}?password={PASSWORD}"


class QuietClient(Client):
    """A client that does not tell the server which library it is: that is no right of its user."""

    def connect(self, url: str) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(url, protocol=2, driver_info=None)


async def test_what_they_must_do_they_may(
    server: EmbeddedServer, operator: redis.Redis, users: list[str], start: Callable[..., Running], name: str
) -> None:
    """All operations, on a server that notes nothing in its ACL LOG, nor in the sidecar's end."""
    health = Path(server.socket_path).parent.parent / "health"
    running = start(
        "--health-file", str(health),
        OVERBOOKED_LOCK_URL=as_user(server, users[0]), OVERBOOKED_LOCK_NAMESPACE=NAMESPACE,
    )  # fmt: skip
    async with QuietClient(as_user(server, users[1]), name, "web") as client:
        await use_everything(client)
        while not health.exists():
            await client.data("ping")
    assert running.stop() == 0
    assert operator.execute_command("ACL", "LOG") == []
    assert all(str(key).startswith(f"{NAMESPACE}:") for key in operator.scan_iter())


async def test_what_a_client_may_not(
    server: EmbeddedServer, users: list[str], operator: redis.Redis, name: str
) -> None:
    """Requests carry lock_keys: nobody but the sidecar hears them. And nobody hears or speaks for another."""
    requests, replies = f"overbooked:sidecar:{name}:requests", f"overbooked:sidecar:{name}:replies:"
    own: tuple[Any, ...] = ("SUBSCRIBE", f"{replies}web"), ("SUBSCRIBE", f"{replies}web:1"), ("PUBLISH", requests, "{}")
    others: tuple[Any, ...] = (
        ("SUBSCRIBE", requests), ("SUBSCRIBE", f"{replies}other"), ("SUBSCRIBE", f"{replies}webby"),
        ("SUBSCRIBE", f"{NAMESPACE}:slots:events"), ("PSUBSCRIBE", "*"), ("PSUBSCRIBE", f"{replies}web*"),
        ("PUBLISH", f"{replies}web", "{}"), ("PUBLISH", f"{replies}other", "{}"), ("MONITOR",), ("PUBSUB", "CHANNELS"),
        ("GET", f"{NAMESPACE}:slot:s:lock"), ("EVAL", "return 1", 0), ("CLIENT", "LIST"), ("CONFIG", "GET", "*"),
        ("KEYS", "*"), ("ACL", "LIST"),
    )  # fmt: skip
    for user, allowed, denied in (
        (users[1], own, others),
        (
            users[0],
            (),
            (
                ("FLUSHALL",),
                ("CONFIG", "GET", "*"),
                ("GET", "other:slot:s:lock"),
                ("GET", f"{NAMESPACE}:api:keys"),
                ("PUBLISH", "news", "x"),
                ("MONITOR",),
            ),
        ),
    ):
        for words in (*allowed, *denied):
            connection = redis.Redis.from_url(
                as_user(server, user), protocol=2, driver_info=None
            ).connection_pool.get_connection()
            connection.send_command(*words)
            if words in allowed:
                connection.read_response()
            else:
                with pytest.raises(redis.exceptions.NoPermissionError):
                    connection.read_response()
            connection.disconnect()
