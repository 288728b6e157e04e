"""A client in another language, which knows the API's description and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from overbooked_lock import EmbeddedServer, LockEngine

from .test_crowd import serve

NODE = shutil.which("node")
SESSION = Path(__file__).parent / "node" / "session.mjs"


@pytest.mark.skipif(NODE is None, reason="there is no Node here")
def test_a_session_in_node_walks_through_every_endpoint(
    lock_server: EmbeddedServer, lock_namespace: str, tmp_path: Path
) -> None:
    """With fetch alone; it stops where an answer is not as documented, and tells how far it came."""
    assert NODE is not None
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        keys = {kind: engine.create_api_key(kind).key for kind in ("public", "secret")}
    with serve(lock_server, lock_namespace, tmp_path / "log") as server:
        environment = {"BASE_URL": server.url, "PUBLIC_KEY": keys["public"], "SECRET_KEY": keys["secret"]}
        session = subprocess.run(
            [NODE, str(SESSION)], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
    assert session.returncode == 0, session.stderr
    assert len(json.loads(session.stdout)) == 13
