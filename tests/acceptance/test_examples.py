"""``examples/``: clients that need nothing of ours, against a server of its own."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from overbooked_lock import EmbeddedServer, LockEngine, NewSlot, Slot
from overbooked_lock.events import EventType

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 20  # seconds
MINUTE = timedelta(minutes=1)


class Server:
    """``overbooked-lock serve``, which can be stopped and started again on the same port."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self.port = "0"
        self.start()

    def start(self) -> None:
        words = [PROGRAM, "serve", "--port", self.port]
        self.process = subprocess.Popen(
            words, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.port = self.url.rsplit(":", 1)[1]

    def stop(self) -> None:
        with self.process:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(PATIENCE) == 0


@pytest.fixture
def server(lock_server: EmbeddedServer, lock_namespace: str) -> Iterator[Server]:
    """A server on the test's namespace."""
    ours = {"OVERBOOKED_LOCK_URL": lock_server.url, "OVERBOOKED_LOCK_NAMESPACE": lock_namespace}
    server = Server(os.environ | ours)
    yield server
    server.stop()


@pytest.mark.skipif(NODE is None, reason="no Node here")
def test_the_node_client_goes_on_after_a_break(server: Server, lock_engine: LockEngine, slot: Slot) -> None:
    """With fetch and nothing else; it says why it ends where trying again is in vain."""
    key = lock_engine.create_api_key("public").key
    program = [str(NODE), str(EXAMPLES / "node" / "events.mjs"), server.url]
    with subprocess.Popen([*program, key, "0-0.0"], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        try:
            assert json.loads(client.stdout.readline())["type"] == "slot_changed"
            lock = lock_engine.lock(slot.id, lock_for=MINUTE)
            assert json.loads(client.stdout.readline())["data"]["fencing_token"] == lock.fencing_token
            server.stop()
            lock_engine.unlock(lock)
            lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=1))
            server.start()
            types = [json.loads(client.stdout.readline())["type"] for _ in range(3)]
            assert types == ["unlocked", "locked", "expired"]
        finally:
            client.kill()
    wrong = subprocess.run([*program, "pk_" + "0" * 64], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "API key is not valid" in wrong.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_paints_what_happens(
    server: Server, lock_engine: LockEngine, new_slot: Callable[..., NewSlot], tmp_path: Path
) -> None:
    """In a real browser, from another origin."""
    key = lock_engine.create_api_key("public").key
    lock_engine.create_slots([new_slot(id=name, resource_id="court 1") for name in ("early", "late")])
    painted: list[str] = []
    was_painted = threading.Event()

    class Site(http.server.SimpleHTTPRequestHandler):
        """Serves the page, with a script that reports how it looks."""

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            page = (EXAMPLES / "browser" / "availability.html").read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page + REPORT)

        def do_POST(self) -> None:
            painted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            was_painted.set()
            self.send_response(204)
            self.end_headers()

    def looks(expected: str) -> None:
        while not painted or painted[-1] != expected:
            assert was_painted.wait(PATIENCE), painted
            was_painted.clear()

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever).start()
    url = f"http://127.0.0.1:{site.server_port}/?url={server.url}&key={key}&resource=court%201"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command = [str(CHROMIUM), *words, f"--user-data-dir={tmp_path}", url]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as browser:
        try:
            looks("live early:free late:free")
            lock = lock_engine.lock("late", lock_for=MINUTE)
            looks("live early:free late:taken")
            lock_engine.unlock(lock)
            looks("live early:free late:free")
            lock_engine.lock("early", lock_for=timedelta(milliseconds=500))
            looks("live early:taken late:free")
            looks("live early:free late:free")
            lock_engine.delete_slot("early")
            looks("live late:free")
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            site.shutdown()
            site.server_close()


REPORT = b"""<script>
const report = () => fetch("/", { method: "POST", body: [document.getElementById("state").textContent,
  ...[...document.querySelectorAll("li")].map((item) => `${item.id}:${item.className}`).sort()].join(" ") });
new MutationObserver(report).observe(document.body, { subtree: true, childList: true, attributes: true });
</script>"""


def test_the_page_knows_all_types() -> None:
    """EventSource hears only of those that it is told of."""
    page = (EXAMPLES / "browser" / "availability.html").read_text()
    [listed] = re.findall(r"for \(const type of \[(.*)\]\)", page)
    assert tuple(json.loads(f"[{listed}]")) == get_args(EventType)
