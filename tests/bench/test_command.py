"""``overbooked-lock bench``, as a shell and a pipeline see it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sysconfig
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import redis

from overbooked_lock import EmbeddedServer
from overbooked_lock.bench import SCENARIOS, Run

from .conftest import NAMESPACE

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
SHORT = ("--duration", "300ms", "--warm-up", "0s", "--processes", "1", "--callers", "10", "--namespace", NAMESPACE)

# An engine that takes slots from their holders.
BROKEN_ENGINE = """
from overbooked_lock import AsyncLockEngine
lock = AsyncLockEngine.lock

async def steal(self, slot_id, **options):
    await self.force_unlock(slot_id)
    return await lock(self, slot_id, **options)

AsyncLockEngine.lock = steal
"""
WITHOUT_EXTRA = "import sys; sys.modules['hdrh'] = None"
WITHOUT_PLOTS = "import sys; sys.modules['matplotlib'] = None"


def bench(*words: str, at_start: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the program to its end; a ``sitecustomize.py`` in ``at_start`` is run by each of its processes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OVERBOOKED_LOCK")}
    if at_start is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(at_start), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [PROGRAM, "bench", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_run_explains_itself() -> None:
    """With nothing but a scenario: a private server, what was counted, what must hold, and the answer in words."""
    done = bench("--scenario", "onsale", *SHORT)
    assert done.returncode == 0, done.stderr
    for part in ("onsale: An on-sale", "private server", "OPERATION", "COUNTED", "MUST HOLD", "LIMITS"):
        assert part in done.stdout
    assert re.search(r"Of [\d,]+ shoppers, [\d,]+ bought one of 2,000 seats", done.stdout)
    assert "no seat was sold twice" in done.stdout
    assert "bottleneck" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert re.search(r"^ +0\.3 s .*operations/s", done.stderr, re.MULTILINE)  # a line a second


def test_a_pipeline_reads_json_and_the_exit_code(lock_server: EmbeddedServer) -> None:
    """One document in the envelope, whose data is a Run; a limit is missed. No password is shown."""
    url = lock_server.url.replace("unix://", "unix://:secret@")
    with redis.Redis.from_url(lock_server.url) as admin:
        admin.config_set("requirepass", "secret")
        try:
            done = bench("--scenario", "hotspot", *SHORT, "--json", "--url", url, "--min-rate", "1e8", "--check")
        finally:
            with redis.Redis.from_url(url) as operator:
                operator.config_set("requirepass", "")
    assert done.returncode == 10, done.stderr
    envelope = json.loads(done.stdout)
    assert envelope.keys() == {"data", "meta", "success"}
    found = Run.model_validate(envelope["data"])
    assert found.target.address == lock_server.url
    assert found.target.kind == "redis"
    assert [limit.name for limit in found.limits if not limit.holds] == ["at least 100,000,000 operations/s"]
    assert "Missed: at least 100,000,000 operations/s." in found.conclusion
    assert "secret" not in done.stdout + done.stderr


def test_a_broken_engine_fails_the_check(tmp_path: Path) -> None:
    """What must never be is found, and named."""
    (tmp_path / "sitecustomize.py").write_text(BROKEN_ENGINE)
    done = bench("--scenario", "hotspot", *SHORT, "--check", at_start=tmp_path)
    assert done.returncode == 10, done.stderr
    assert re.search(r"^BROKEN +never two holders at once: [1-9]", done.stdout, re.MULTILINE)
    assert "BROKEN: never two holders at once" in done.stdout


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """And the rest of the command line is there."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_EXTRA)
    done = bench(at_start=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'pip install "overbooked-lock[bench]"' in done.stderr


def test_a_report_is_written_beside_the_answer(lock_server: EmbeddedServer, tmp_path: Path) -> None:
    """What stdout says is the same; who reads stderr is told where the report is."""
    there = tmp_path / "out.html"
    there.write_text("an older one")
    done = bench("--scenario", "hotspot", *SHORT, "--url", lock_server.url, "--json", "--report", str(there))
    assert done.returncode == 0, done.stderr
    assert f"the report is in {there}" in done.stderr
    found = Run.model_validate(json.loads(done.stdout)["data"])
    assert found.conclusion[0] in unescape(there.read_text())


def test_only_a_report_needs_matplotlib(lock_server: EmbeddedServer, tmp_path: Path) -> None:
    """Without it a run says so before it begins; without a report nothing misses it."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_PLOTS)
    words = ("--scenario", "hotspot", *SHORT, "--url", lock_server.url)
    done = bench(*words, "--report", str(tmp_path / "out.html"), at_start=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'matplotlib is missing: pip install "overbooked-lock[bench]"' in done.stderr
    assert "registering" not in done.stderr
    assert bench(*words, at_start=tmp_path).returncode == 0


def test_the_help_lists_every_scenario() -> None:
    """With what each of them plays, and how many callers and slots it has unless told."""
    shown = " ".join(bench("--help").stdout.split())
    for name, scenario in SCENARIOS.items():
        slots = scenario.slots(scenario.callers)
        count = f"{slots:,} slot" if slots == 1 else f"{slots:,} slots"
        assert f"{name} ({scenario.callers:,} callers, {count}): {scenario.summary}" in shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--scenario", "rush"), "--scenario must be one of uncontended, hotspot, onsale"),
        (("--url", "ftp://x"), "--url must start with redis://"),
        (("--url", "localhost:6379"), "https://; for a Redis, redis://localhost:6379"),
        (("--url", "redis://localhost:x"), "--url must have a number as its port"),
        (("--url", "http://localhost:x"), "--url must have a number as its port"),
        (("--url", "http://x"), "--key must be given for http://"),
        (("--key", "sk"), "--key is for http:// alone"),
        (("--sidecar", "shop"), "--sidecar needs the Redis that it hears as --url"),
        (("--url", "redis://localhost/shop"), "--url must have a number as its database"),
        (("--callers", "5", "--rate", "5"), "--callers can't be given beside --rate"),
        (("--rate", "0"), "--rate must be above 0"),
        (("--rate", "abc"), "overbooked-lock: --rate must be a number"),
        (("--min-rate", "nan"), "--min-rate must be above 0"),
        (("--callers", "1.5"), "overbooked-lock: --callers must be a whole number"),
        (("--duration", "5"), "overbooked-lock: --duration must be a duration like 90s"),
        (("--arrivals", "x"), "--arrivals must be one of 'poisson', 'constant'"),
        (("--processes", "0"), "--processes must be 1 to 256"),
        (("--duration", "1ms"), "--duration must be at least 100 ms"),
        (("--max-p99", "0s"), "--max-p99 must be at least"),
        (("--namespace", "a:b"), "--namespace"),
        (("--report", "/no such folder/out.html"), "--report must be a file in a folder that exists"),
        (("--report", "/"), "--report must be a file; '/' is a folder"),
        (("--scenario", "expiry", "--callers", "5", "--slots", "4"), "--slots must be at least 5"),
        (
            ("--scenario", "waiters", "--url", "http://x", "--key", "sk"),
            "'waiters' needs waiting, which a target of the",
        ),
        (("--scenario", "groups", "--url", "http://x", "--key", "sk"), "the kind 'http' lacks"),
        (("--scenario", "expiry", "--url", "redis://x", "--sidecar", "s"), "'expiry' needs events"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_done(
    words: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option, or scenario and target, and what is allowed. (In this process: it is quicker.)"""
    from overbooked_lock.cli import main  # noqa: PLC0415  it takes signals that other tests have

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr("sys.argv", [PROGRAM, "bench", *words])
    try:
        assert main() == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr()
    assert said.out == ""
    assert "registering" not in said.err
    assert says in " ".join(said.err.split())


def test_a_key_in_the_environment_is_for_http(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is there for other runs: one on a Redis goes past it, and on to its next error."""
    monkeypatch.setenv("OVERBOOKED_LOCK_API_KEY", "sk")
    test_a_wrong_command_line_is_refused_before_anything_is_done(
        ("--callers", "5", "--rate", "5"), "--callers can't be given beside --rate", monkeypatch, capsys
    )
    test_a_wrong_command_line_is_refused_before_anything_is_done(
        ("--url", "redis://127.0.0.1", "--namespace", "a:b"), "--namespace", monkeypatch, capsys
    )


def test_an_interrupted_run_removes_what_it_made(lock_server: EmbeddedServer, raw: redis.Redis) -> None:
    """Ctrl-C ends it at once, and the Redis is as it was before."""
    before = set(raw.keys())
    with subprocess.Popen(
        [PROGRAM, "bench", "--duration", "1m", "--processes", "1", "--warm-up", "0s", "--url", lock_server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        while "running" not in running.stderr.readline():
            pass
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=20)
    assert running.returncode == 130
    assert set(raw.keys()) <= before  # what others left there may end meanwhile


def test_a_terminal_sees_how_it_goes(lock_server: EmbeddedServer) -> None:
    """A picture that changes: throughput, latency, refusals, the server's CPU. Limits that are met fail no check."""
    ours, theirs = pty.openpty()
    words = ["--scenario", "hotspot", *SHORT, "--url", lock_server.url, "--max-p99", "9s", "--min-rate", "1", "--check"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen([PROGRAM, "bench", *words], stdout=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        shown = _read_all(ours)
    assert running.returncode == 0
    for part in ("operations/s", "p99", "refused", "server CPU", "harness CPU", "p99 at most 9.00 s", "\x1b["):
        assert part in shown


def _read_all(terminal: int) -> str:
    shown = b""
    while True:
        try:
            some: Any = os.read(terminal, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            some = b""
        if not some:
            os.close(terminal)
            return shown.decode()
        shown += some
