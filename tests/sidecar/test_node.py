"""The client for Node: the example as it stands, and what befalls it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from overbooked_lock import EmbeddedServer
from overbooked_lock.sidecar.acl import client_rules

from .tools import PATIENCE, Running

NODE = shutil.which("node")
FOLDER = Path(__file__).parents[2] / "examples" / "node"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not here")


def node(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end."""
    return subprocess.run(
        [str(NODE), *words], cwd=FOLDER, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


def test_the_checkout(start: Callable[..., Running], lock_server: EmbeddedServer, name: str) -> None:
    """From the lock to the booking."""
    start()
    done = node("checkout.mjs", name, str(lock_server.socket_path))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"locked until 20\S+Z with fencing token \d{16}\n"
        r"another is told E045 and may come back in \d+ ms\n"
        r"booked active Ada\n",
        done.stdout,
    )


def test_with_the_rights_of_a_client(start: Callable[..., Running], lock_server: EmbeddedServer, name: str) -> None:
    """Those that ``acl`` prints are enough."""
    if int(lock_server.version.split(".")[0]) < 7:
        pytest.skip("selectors came with Redis 7.0")
    with redis.Redis.from_url(lock_server.url) as operator:
        operator.execute_command("ACL", "SETUSER", f"web-{name}", "on", ">secret", *client_rules(name, "web"))
        try:
            start()
            rights = {"REDIS_USERNAME": f"web-{name}", "REDIS_PASSWORD": "secret"}
            done = node("checkout.mjs", name, str(lock_server.socket_path), **rights)
            assert done.returncode == 0, done.stderr
            refused = node("checkout.mjs", name, str(lock_server.socket_path), **rights | {"REDIS_PASSWORD": "wrong"})
            assert "WRONGPASS" in refused.stderr
        finally:
            operator.execute_command("ACL", "DELUSER", f"web-{name}")


def test_nobody_is_there(lock_server: EmbeddedServer, name: str) -> None:
    """It is told so at once."""
    done = node("checkout.mjs", name, str(lock_server.socket_path))
    assert done.returncode == 1
    assert f"no sidecar {name} is there" in done.stderr
