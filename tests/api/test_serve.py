"""``overbooked-lock serve``: a process of its own, from its start to its end, and what it writes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sysconfig
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import httpx
import pytest
import redis
import trustme

from overbooked_lock import EmbeddedServer, LockEngine, NewSlot, Slot
from overbooked_lock.api_keys import ApiKey

from .tools import checked, data_of, error_of, soon

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
PATIENCE = 20.0  # seconds


class Running:
    """A server's process: ``url`` is what it says it listens on, ``log`` the file of its stderr."""

    def __init__(self, environment: dict[str, str], log: Path, *words: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", "--port", "0", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        said = self.process.stdout.readline() if ready else ""
        found = re.search(r"listens on (\S+)", said)
        assert found, log.read_text()
        self.url = found[1]
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Sends it a signal and waits for its end; gives the exit code."""
        self.client.close()
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def lines(self) -> list[dict[str, Any]]:
        """What it logged as JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def connect(self, *, room: bool = True) -> socket.socket:
        """A bare connection; without ``room`` the sockets hold little of what is not read."""
        host, port = urlsplit(self.url).netloc.rsplit(":", 1)
        with contextlib.ExitStack() as stack:
            wire = stack.enter_context(socket.socket())
            wire.settimeout(PATIENCE)
            if not room:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
            wire.connect((host, int(port)))
            stack.pop_all()
        return wire


@pytest.fixture
def environment(lock_server: EmbeddedServer, lock_namespace: str, tmp_path: Path) -> dict[str, str]:
    """What the program finds: a server, a namespace, and no data folder but the test's."""
    ours = {
        "OVERBOOKED_LOCK_URL": lock_server.url,
        "OVERBOOKED_LOCK_NAMESPACE": lock_namespace,
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("OVERBOOKED_LOCK")} | ours


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers; those that still run at the end are killed, their workers too."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, **more: str) -> Running:
            running = Running(environment | more, tmp_path / f"{uuid.uuid4()}.log", *words)
            stack.callback(end, running)
            return running

        def end(running: Running) -> None:
            running.client.close()
            with running.process, contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, signal.SIGKILL)

        yield start


@pytest.fixture
def secret(lock_engine: LockEngine) -> ApiKey:
    """A secret API key that the servers know."""
    return lock_engine.create_api_key("secret")


@pytest.fixture
def public(lock_engine: LockEngine) -> ApiKey:
    """A public one."""
    return lock_engine.create_api_key("public")


def ask(running: Running, method: str, path: str, body: Any = None, key: ApiKey | None = None, **more: Any) -> Any:
    """Sends a request and checks that the answer is an envelope."""
    headers = {"Authorization": f"Bearer {key.key}"} if key else {}
    headers |= more.pop("headers", {})
    return checked(running.client.request(method, path, json=body, headers=headers, **more))


def post_slots(key: ApiKey, length: int) -> bytes:
    """The head of a request with a body."""
    head = f"POST /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key.key}\r\nContent-Length: {length}\r\n\r\n"
    return head.encode()


NEW_SLOT = {"resource_id": "r", "start_date": "2030-01-01", "end_date": "2030-01-02", "capacity": 1}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_serves_and_ends_in_order(start: Callable[..., Running], secret: ApiKey, how: signal.Signals) -> None:
    """Exit code 0: it was told to."""
    running = start()
    assert running.url.startswith("http://127.0.0.1:")
    slot = data_of(ask(running, "POST", "/slots", NEW_SLOT, secret))
    lock = {"lock_until": soon(), "lock_key": "k"}
    assert data_of(ask(running, "POST", f"/slots/{slot['id']}/lock", lock, secret))["available"] is True
    assert running.stop(how) == 0


def test_what_is_under_way_is_answered_before_the_end(start: Callable[..., Running], secret: ApiKey) -> None:
    """Nobody new is let in, and a connection without a request is closed."""
    running = start()
    body = json.dumps(NEW_SLOT).encode()
    head = post_slots(secret, len(body))
    with running.connect() as wire, running.connect() as idle:
        wire.sendall(head + body[:10])
        assert ask(running, "GET", "/healthz").is_success  # by then it has read what came before
        running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                running.connect().close()
            except ConnectionError:
                break
            assert time.monotonic() < deadline
        wire.sendall(body[10:])
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert idle.recv(1) == b""
    assert running.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_streams_do_not_hold_up_the_end(
    start: Callable[..., Running], public: ApiKey, lock_engine: LockEngine, new_slot: Callable[..., NewSlot],
    workers: str,
) -> None:  # fmt: skip
    """They are told, and end at once; also where a reader does not read, and whether that has been noticed or not."""
    running = start("--workers", workers, "--heartbeat", "1m")
    slots = lock_engine.create_slots([new_slot() for _ in range(16)])
    with contextlib.ExitStack() as stack:

        def listen(wanted: str = "", *, room: bool = True) -> BinaryIO:
            wire = stack.enter_context(running.connect(room=room))
            wire.sendall(f"GET /events?key={public.key}{wanted} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            file = stack.enter_context(wire.makefile("rb"))
            while not file.readline().startswith(b"id: "):
                pass
            return file

        heard = [listen() for _ in range(4)]
        for slot in slots:
            listen(f"&slot_id={slot.id}", room=False)
        # From 20 to 330 KB: some fit into the sockets, some wait in the server, some are more than it lets wait.
        for number, slot in enumerate(slots, 1):
            for _ in range(32 * number):
                lock_engine.unlock(lock_engine.lock(slot.id, lock_for=timedelta(minutes=1)))
        lock_engine.delete_slot(slots[0].id)
        for file in heard:
            while b"slot_deleted" not in file.readline():
                pass
        rest: list[bytes] = []
        running.process.send_signal(signal.SIGTERM)
        readers = [threading.Thread(target=lambda file=file: rest.append(file.read())) for file in heard]
        for reader in readers:
            reader.start()
        assert running.process.wait(PATIENCE) == 0
        assert "graceful shutdown exceeded" not in running.log.read_text()  # the ten seconds that requests have
        for reader in readers:
            reader.join(PATIENCE)
    assert len(rest) == 4


def test_the_end_of_a_stream_is_said(start: Callable[..., Running], public: ApiKey) -> None:
    """As a comment, so that who looks knows why; and in the log, which has no key from a URL."""
    running = start("--log-format", "json")
    with running.client.stream("GET", f"/events?key={public.key}", timeout=PATIENCE) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        running.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line.startswith(":")] == [": the server ends: come again"]
    assert running.process.wait(PATIENCE) == 0
    [ended] = [line for line in running.lines() if line["message"] == "stream ended"]
    assert (ended["end"], ended["events"]) == ("stopped", 0)
    assert public.key[:12] not in running.log.read_text()
    [asked] = [line for line in running.lines() if line.get("route") == "/events"]
    assert (asked["status"], asked["key_id"], asked["request_id"]) == (200, public.id, ended["request_id"])


def test_ends_of_locks_are_told_where_it_serves(
    start: Callable[..., Running], raw: redis.Redis, lock_engine: LockEngine, slot: Slot, lock_namespace: str
) -> None:
    """In time, though nobody listens and no lock follows."""
    start("--workers", "2")
    lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=100))
    heard: Any = raw.xread({f"{lock_namespace}:slots:events": "$"}, block=4_000)
    [[_, [[_, fields]]]] = heard
    assert fields["events"].startswith(f"expired\t{slot.id}\t")


def test_the_end_has_a_limit(start: Callable[..., Running], secret: ApiKey, soak: bool) -> None:
    """A request that never comes whole can't keep the server."""
    if not soak:
        pytest.skip("takes ten seconds")
    running = start()
    with running.connect() as wire:
        wire.sendall(post_slots(secret, 9))
        assert ask(running, "GET", "/healthz").is_success
        assert running.stop() == 0


def test_workers_share_the_port_and_the_store(start: Callable[..., Running], secret: ApiKey) -> None:
    """And the metrics."""
    running = start("--workers", "2", "--log-format", "json")
    slots = [data_of(ask(running, "POST", "/slots", NEW_SLOT, secret))["id"] for _ in range(20)]
    for slot in slots:
        lock = {"lock_until": soon(), "lock_key": "k"}
        assert ask(running, "POST", f"/slots/{slot}/lock", lock, secret).is_success
    metrics = running.client.get("/metrics").text
    assert "overbooked_locks_granted_total 20.0" in metrics
    assert running.stop() == 0
    assert len([line for line in running.lines() if line.get("route") == "/slots/{id}/lock"]) == 20


def test_without_a_url_it_brings_its_own_store(start: Callable[..., Running], tmp_path: Path) -> None:
    """In the user's data folder, as every command does; it is stopped with it."""
    running = start(OVERBOOKED_LOCK_URL="", OVERBOOKED_LOCK_NAMESPACE="")
    assert ask(running, "GET", "/readyz").is_success
    assert running.stop() == 0
    assert (tmp_path / "data/overbooked-lock/server.json").exists()
    assert not (tmp_path / "data/overbooked-lock/server.pid").exists()


def test_a_closed_terminal_ends_the_server_and_all_its_workers(start: Callable[..., Running], secret: ApiKey) -> None:
    """It tells the whole group; uvicorn would start its workers anew."""
    running = start("--workers", "2")
    assert ask(running, "GET", "/slots?limit=1&page=1", key=secret).is_success
    os.killpg(running.process.pid, signal.SIGHUP)
    assert running.process.wait(PATIENCE) == 0


def test_ipv6(start: Callable[..., Running]) -> None:
    """In brackets, as URLs have it."""
    running = start("--host", "::1")
    assert running.url.startswith("http://[::1]:")
    assert ask(running, "GET", "/healthz").is_success


def test_tls(start: Callable[..., Running], tmp_path: Path) -> None:
    """With a certificate it may listen to others."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "cert.pem"
    certificate.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    running = start("--host", "0.0.0.0", "--tls-cert", str(chain), "--tls-key", str(key))  # noqa: S104
    assert running.url.startswith("https://")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    url = running.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    assert httpx.get(f"{url}/healthz", verify=trusting).is_success
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "--allow-plain-http"),  # noqa: S104
        (["--rate-limit", "fast"], "100/10s"),
        (["--trusted-proxy", "here"], "10.0.0.0/8"),
        (["--url", "http://x"], "redis://"),
        (["--host", "192.0.2.1", "--allow-plain-http"], "can't listen"),
        (["--workers", "2", "--trusted-proxy", "here"], "10.0.0.0/8"),
        (["--tls-cert", __file__, "--tls-key", __file__], "as PEM"),
        (["--tls-cert", __file__], "both"),
    ],
)
def test_what_it_refuses(environment: dict[str, str], words: list[str], says: str) -> None:
    """With a line that says what to do, and no traceback."""
    done = subprocess.run(
        [PROGRAM, "serve", "--port", "0", *words],
        env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode in {1, 2}
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(environment: dict[str, str]) -> None:
    """Is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [PROGRAM, "serve", "--port", port],
            env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    assert done.returncode == 1
    assert port in done.stderr


@pytest.mark.parametrize(
    "sent",
    [
        [b"what is this\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX: ", *[b"x" * 10_000] * 80],
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /", *[b"x" * 10_000] * 80],
        [b"GET / HTTP/1.1\r\n", *[b"X: " + b"x" * 1000 + b"\r\n"] * 800],
    ],
)
def test_what_is_no_http_gets_an_envelope_too(start: Callable[..., Running], sent: list[bytes]) -> None:
    """From the server itself, before there is a request; a head that does not end is none."""
    running = start()
    answer = b""
    with running.connect() as wire:
        with contextlib.suppress(ConnectionError):
            for part in sent:
                wire.sendall(part)
        with contextlib.suppress(ConnectionError):
            while piece := wire.recv(65536):
                answer += piece
    if len(sent) == 1:  # else the rest of what was sent may take the answer with it
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["code"] == "E013"
    assert ask(running, "GET", "/healthz").is_success


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_ever_written(
    start: Callable[..., Running], secret: ApiKey, public: ApiKey, lock_engine: LockEngine, form: str
) -> None:
    """Not what was right, not what was wrong, not what stood in the wrong place: in no log, answer or metric."""
    running = start("--log-format", form, "--max-locks", "1", "--rate-limit", "50/1h")
    slots = [data_of(ask(running, "POST", "/slots", NEW_SLOT, secret))["id"] for _ in range(3)]
    mine, other, odd = (f"lock-key-{uuid.uuid4()}" for _ in range(3))
    unknown = "sk_" + uuid.uuid4().hex * 2
    answers = ""

    def note(*arguments: Any, **more: Any) -> None:
        nonlocal answers
        answer = ask(running, *arguments, **more)
        answers += f"{answer.headers}{answer.text}"

    for slot in slots:
        for key in (mine, other):
            for who in (public, secret):
                note("POST", f"/slots/{slot}/lock", {"lock_until": soon(), "lock_key": key}, who)
        note("GET", f"/slots/{slot}", None, public, headers={"X-Lock-Key": mine})
        note("POST", f"/slots/{slot}/unlock", {"lock_key": other}, public)
        note("POST", "/bookings", {"slot_id": slot, "lock_key": other}, public)
    note("GET", "/locks?limit=50&page=1", None, secret)
    note("POST", "/bookings", {"slot_id": slots[0], "lock_key": mine}, public, headers={"Idempotency-Key": "1"})
    note("POST", "/bookings", {"slot_id": slots[0], "lock_key": odd}, public, headers={"Idempotency-Key": "1"})
    note("POST", f"/slots/{slots[0]}/lock", {"lock_until": odd, "lock_key": {"k": odd}}, public)
    note("POST", f"/slots/{slots[0]}/lock", {"lock_until": soon(), "lock_key": odd * 9}, public)
    note("GET", f"/slots?limit=1&page=1&lock_key={odd}&available={odd}", None, public)
    note("GET", f"/{secret.key}/{odd}", None, None)
    note("GET", "/slots?limit=1&page=1", None, None, headers={"Authorization": f"Bearer {unknown}"})
    note("GET", "/slots?limit=1&page=1", None, None, headers={"Authorization": f"Basic {unknown}"})
    lock_engine.revoke_api_key(public.id)
    for _ in range(60):
        note("GET", "/slots?limit=1&page=1", None, public)
    metrics = running.client.get("/metrics").text
    assert running.stop() == 0
    log = running.log.read_text()
    assert log.count("POST") > 10
    for secret_text in (mine, other, odd, unknown, secret.key, public.key):
        for written in (log, answers, metrics):
            assert secret_text not in written
            assert secret_text[:24] not in written


def test_a_line_a_request(start: Callable[..., Running], secret: ApiKey) -> None:
    """With what one needs to find it, and to sum it up."""
    running = start("--log-format", "json")
    ask(running, "GET", "/slots/none", None, secret, headers={"X-Request-Id": "find-me"})
    assert running.stop() == 0
    [line] = [line for line in running.lines() if line.get("request_id") == "find-me"]
    assert {name: line[name] for name in ("level", "method", "route", "status", "code", "key_id", "address")} == {
        "level": "INFO", "method": "GET", "route": "/slots/{id}", "status": 404, "code": "E025",
        "key_id": secret.id, "address": "127.0.0.1",
    }  # fmt: skip
    assert line["ms"] > 0
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line["time"])).total_seconds()) < 60


def test_a_flood_is_refused(start: Callable[..., Running], public: ApiKey) -> None:
    """As the options say."""
    running = start("--rate-limit", "2/1h")
    answers = [ask(running, "GET", "/slots?limit=1&page=1", None, public) for _ in range(3)]
    assert error_of(answers[2]) == ("E062", 429)
