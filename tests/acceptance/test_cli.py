"""The command line, as a shell sees it: real processes on a real server."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import sysconfig
import termios
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import redis
import typer

from overbooked_lock import EmbeddedServer, Event, LockEngine, Slot, SlotLocked
from overbooked_lock.cli import EXITS, main
from overbooked_lock.cli_options import date, duration, json_object
from overbooked_lock.keys import Keys

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"
PATIENCE = 20  # seconds

Environment = dict[str, str]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(lock_server: EmbeddedServer, lock_namespace: str, tmp_path: Path) -> Environment:
    """What the program finds: a server, a namespace, and no data folder but the test's."""
    ours = {
        "OVERBOOKED_LOCK_URL": lock_server.url,
        "OVERBOOKED_LOCK_NAMESPACE": lock_namespace,
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "COLUMNS": "80",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("OVERBOOKED_LOCK")} | ours


@pytest.fixture
def run(environment: Environment) -> Run:
    """Runs the program to its end."""

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *words],
            env=environment | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    return run


@pytest.fixture
def call(environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The same in this process, which saves the start of Python where nothing but the answer matters."""

    def call(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        with monkeypatch.context() as patch:
            for name, value in (environment | more).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [PROGRAM, *words])
            code = main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return call


@pytest.fixture
def answer(call: Run) -> Callable[..., Any]:
    """Runs a command with --json; gives the data of its answer."""

    def answer(*words: str, **more: str) -> Any:
        done = call(*words, "--json", **more)
        assert done.returncode == 0, done.stdout + done.stderr
        envelope = json.loads(done.stdout)
        assert envelope.keys() == {"data", "meta", "success"}
        assert envelope["success"] is True
        return envelope["data"]

    return answer


class Running:
    """A process of the program that goes on while the test does."""

    def __init__(self, environment: Environment, *words: str) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, *words],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # no terminal of ours
        )

    def hear(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, how: signal.Signals | None = None) -> tuple[int, str, str]:
        """Sends it a signal, if one is given, and waits until all that write to its output have ended."""
        if how is not None:
            self.process.send_signal(how)
        output, errors = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, output, errors


@pytest.fixture
def start(environment: Environment) -> Iterator[Callable[..., Running]]:
    """Starts the program; what is left of it at the end is killed."""
    started = list[Running]()

    def start(*words: str) -> Running:
        started.append(Running(environment, *words))
        return started[-1]

    yield start
    for running in started:
        with running.process as process:  # closes the pipes
            process.kill()


# Some twenty seconds: longer than any test, and yet no shell is left for ever where a test fails.
BUSY = "for i in $(seq 400); do sleep 0.05; done"


def until(condition: Callable[[], object]) -> None:
    """Returns when the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this does not come true"
        time.sleep(0.005)


def waits_in_line(raw: redis.Redis, start: Callable[..., Running], *words: str) -> Running:
    """Starts a command that waits for a slot, and returns when it has tried to lock it and listens."""
    before = set(raw.pubsub_channels())
    running = start(*words)
    until(lambda: set(raw.pubsub_channels()) - before)
    return running


# What options take


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("1h30m", timedelta(minutes=90)),
        ("500ms", timedelta(milliseconds=500)),
        ("1d2h3m4s5ms", timedelta(days=1, hours=2, minutes=3, seconds=4, milliseconds=5)),
        ("0s", timedelta(0)),
    ],
)
def test_durations_add_their_units_up(text: str, expected: timedelta) -> None:
    """A duration is what its units say."""
    assert duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-5s", "1.5h", "30m1h", "5 s", "\u0665s", "9" * 5000 + "s", "999999999999d"]
)
def test_bad_durations_are_refused_with_examples(text: str) -> None:
    """Nobody has to guess what a bare number means, or is told of an overflow."""
    with pytest.raises(typer.BadParameter, match="like 90s, 15m"):
        duration(text)


def test_dates_without_a_zone_are_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zone that is given is kept; where none is, it is UTC and not that of the machine."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert date("2030-06-01 18:00") == datetime(2030, 6, 1, 18, tzinfo=UTC)
    time.tzset()
    assert date("2030-06-01T18:00Z") == datetime(2030, 6, 1, 18, tzinfo=UTC)
    assert date("2030-06-01T20:00+02:00").tzinfo == timezone(timedelta(hours=2))


@pytest.mark.parametrize("text", ["", "tomorrow", "2030-13-01", "18:00"])
def test_bad_dates_are_refused_with_examples(text: str) -> None:
    """The error shows what a date looks like."""
    with pytest.raises(typer.BadParameter, match="ISO 8601 date like 2030-06-01T18:00Z"):
        date(text)


def test_metadata_is_an_object() -> None:
    """JSON of any other kind is no metadata."""
    assert json_object('{"floor": 2}') == {"floor": 2}
    for text in ("", "[1]", "floor", "[" * 100_000):
        with pytest.raises(typer.BadParameter, match="JSON object"):
            json_object(text)


# Slots and locks


def test_a_slot_from_creation_to_its_end(answer: Callable[..., Any], call: Run) -> None:
    """Each command on slots does what its name says, and answers with the slot's payload."""
    times = ("--start", "2030-06-01T18:00Z", "--end", "2030-06-01T21:00+02:00")
    made = answer("slot", "create", "--resource", "court", *times, "--capacity", "3", "--metadata", '{"floor": 2}')
    assert made["_object"] == "slot"
    assert (made["start_date"], made["end_date"]) == ("2030-06-01T18:00:00.000Z", "2030-06-01T21:00:00+02:00")
    assert (made["capacity"], made["metadata"], made["lockable"]) == (3, {"floor": 2}, True)
    again = ("slot", "create", "--resource", "court", *times, "--capacity", "3", "--metadata", '{"floor": 2}')
    assert answer(*again, "--id", made["id"])["id"] == made["id"]
    assert answer("slot", "show", made["id"])["id"] == made["id"]
    assert answer("slot", "disable", made["id"])["status"] == "disabled"
    assert answer("slot", "enable", made["id"])["status"] == "active"
    assert answer("slot", "delete", made["id"]) == {"id": made["id"], "deleted": True}
    other = answer("slot", "create", "--resource", "court", *times, "--not-lockable", "--id", "x")
    assert (other["id"], other["lockable"]) == ("x", False)
    assert answer("slot", "prune", "--before", "2030-06-01T18:59Z") == {"pruned": 0}
    assert answer("slot", "prune", "--before", "2030-06-01T19:00Z") == {"pruned": 1}
    assert call("slot", "show", "x").returncode == 4


def test_list_filters_and_pages(call: Run, lock_engine: LockEngine, new_slot: Callable[..., Any]) -> None:
    """The meta says which page of how many slots this is."""
    day = datetime(2030, 6, 1, tzinfo=UTC)
    for hour in range(3):
        begin = day + timedelta(hours=hour)
        lock_engine.create_slot(new_slot(id=f"s{hour}", start_date=begin, end_date=begin + timedelta(hours=1)))
    lock_engine.create_slot(new_slot(id="other", resource_id="court-2"))
    lock_engine.lock("s1", lock_for=timedelta(minutes=1), lock_key="mine")

    def listed(*words: str) -> tuple[list[str], dict[str, int]]:
        envelope = json.loads(call("slot", "list", "--json", *words).stdout)
        return [slot["id"] for slot in envelope["data"]], envelope["meta"]

    assert listed("--resource", "court-1") == (["s0", "s1", "s2"], {"limit": 50, "page": 1, "total": 3})
    assert listed("--limit", "3", "--page", "2") == (["other"], {"limit": 3, "page": 2, "total": 4})
    assert listed("--start", "2030-06-01T01:00Z", "--end", "2030-06-01T02:00Z")[0] == ["s1"]
    assert listed("--unavailable")[0] == ["s1"]
    assert listed("--available", "--lock-key", "mine")[0] == ["s0", "s1", "s2", "other"]


def test_lock_extend_unlock(answer: Callable[..., Any], slot: Slot, lock_engine: LockEngine) -> None:
    """The key that lock prints extends and unlocks the lock; its slot comes with it."""
    lock = answer("lock", slot.id, "--for", "1m")
    assert lock["slot"]["id"] == slot.id
    assert lock["already_held"] is False
    key = lock["lock_key"]
    until = (datetime.now(UTC) + timedelta(minutes=5)).isoformat(timespec="milliseconds")
    later = answer("extend", slot.id, "--until", until, OVERBOOKED_LOCK_KEY=key)
    assert datetime.fromisoformat(later["locked_until"]) == datetime.fromisoformat(until)
    assert later["fencing_token"] == lock["fencing_token"]
    assert answer("slot", "show", slot.id, OVERBOOKED_LOCK_KEY=key)["available"] is True
    assert answer("slot", "show", slot.id)["available"] is False
    stale = str(lock["fencing_token"] - 1)
    assert answer("unlock", slot.id, "--lock-key", key, "--fencing-token", stale)["released"] is False
    assert answer("unlock", slot.id, "--lock-key", key)["released"] is True
    assert answer("unlock", slot.id, "--lock-key", key)["released"] is False
    assert lock_engine.list_locks() == []


def test_the_same_key_locks_again(answer: Callable[..., Any], slot: Slot) -> None:
    """A call whose answer was lost can be made again with the key from the environment."""
    first = answer("lock", slot.id, "--for", "1m", OVERBOOKED_LOCK_KEY="mine")
    second = answer("lock", slot.id, "--for", "1m", "--lock-key", "mine")
    assert second["already_held"] is True
    assert second["fencing_token"] == first["fencing_token"]


def test_force_unlocks_whoever_holds_it(answer: Callable[..., Any], slot: Slot, lock_engine: LockEngine) -> None:
    """An operator needs no key."""
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    assert answer("unlock", slot.id, "--force")["released"] is True
    assert lock_engine.list_locks() == []


def test_wait_waits_for_the_slot(answer: Callable[..., Any], slot: Slot, lock_engine: LockEngine) -> None:
    """A slot that comes free in time is locked, with a higher fencing token."""
    held = lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=300))
    assert answer("lock", slot.id, "--for", "1m", "--wait", "10s")["fencing_token"] > held.fencing_token


@pytest.mark.parametrize("command", ["lock", "hold"])
def test_fair_waits_in_line(
    raw: redis.Redis, lock_namespace: str, start: Callable[..., Running], slot: Slot, lock_engine: LockEngine,
    command: str,
) -> None:  # fmt: skip
    """What the command waits for goes to it, and to nobody who comes later."""
    held = lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    words = ["--", "sh", "-c", f"echo runs; {BUSY}"] if command == "hold" else []
    waiting = start(command, slot.id, "--for", "1m", "--wait", "1m", "--fair", *words)
    until(lambda: raw.zcard(Keys(lock_namespace).queue(slot.id)) == 1)
    lock_engine.unlock(held)
    with pytest.raises(SlotLocked):
        lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    if command == "hold":
        assert waiting.hear() == "runs"
        assert waiting.end(signal.SIGTERM)[0] == 143
    else:
        assert waiting.end()[0] == 0


def test_fair_needs_wait(call: Run, slot: Slot) -> None:
    """In the words of the command line."""
    done = call("lock", slot.id, "--for", "1m", "--fair")
    assert done.returncode == 2
    assert "--fair needs --wait" in done.stderr


def test_locks_shows_who_holds_what(answer: Callable[..., Any], slot: Slot, lock_engine: LockEngine) -> None:
    """Each lock has its date, its age and a hash of its key."""
    lock = lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    [live] = lock_engine.list_locks()
    [shown] = answer("locks")
    assert datetime.fromisoformat(shown["locked_until"]) == lock.locked_until
    assert datetime.fromisoformat(shown["locked_since"]) <= datetime.now(UTC)
    assert (shown["slot_id"], shown["fencing_token"], shown["key_hash"]) == (slot.id, lock.fencing_token, live.key_hash)


def test_unregistered_slots_can_be_allowed(answer: Callable[..., Any], call: Run) -> None:
    """An id that was never created is locked only where this is asked for."""
    assert call("lock", "nowhere", "--for", "1m").returncode == 4
    assert answer("lock", "nowhere", "--for", "1m", "--unregistered", "allow")["slot"] is None


def test_it_brings_a_server_of_its_own(environment: Environment, run: Run) -> None:
    """Without a URL the data outlives each command in the user's data folder, and no server stays behind."""
    del environment["OVERBOOKED_LOCK_URL"]
    lock = json.loads(run("lock", "s", "--for", "1m", "--unregistered", "allow", "--json").stdout)["data"]
    folder = Path(environment["XDG_DATA_HOME"]) / "overbooked-lock"
    assert (folder / "server.json").exists()
    assert not (folder / "server.pid").exists()
    assert run("lock", "s", "--for", "1m", "--unregistered", "allow").returncode == 3
    assert run("unlock", "s", "--lock-key", lock["lock_key"]).stdout == "unlocked\n"


# API keys


def test_an_api_key_from_creation_to_its_end(answer: Callable[..., Any], lock_engine: LockEngine) -> None:
    """It is shown when it is made; from then on it has an id."""
    public = answer("keys", "create", "--public")
    secret = answer("keys", "create", "--secret", "--name", "shop 7")
    assert re.fullmatch("pk_[0-9a-f]{64}", public["key"])
    assert re.fullmatch("sk_[0-9a-f]{64}", secret["key"])
    assert secret.keys() == {"id", "kind", "name", "created_at", "key"}
    assert (secret["kind"], secret["name"]) == ("secret", "shop 7")
    listed = answer("keys", "list")
    assert sorted(one["id"] for one in listed) == sorted([public["id"], secret["id"]])
    assert next(one for one in listed if one["id"] == secret["id"]) | {"key": secret["key"]} == secret
    assert answer("keys", "revoke", secret["id"]) == {"id": secret["id"], "revoked": True}
    assert lock_engine.find_api_key(secret["key"]) is None
    assert lock_engine.find_api_key(public["key"]) is not None


def test_a_key_is_shown_once(call: Run) -> None:
    """A person is told so beside the key, and finds it in no other answer."""
    shown = call("keys", "create", "--secret", "--name", "shop").stdout
    *facts, warning = shown.splitlines()
    made = dict(re.split(r"  +", line) for line in facts)
    assert made.keys() == {"id", "kind", "name", "created_at", "key"}
    assert warning == "This key is not shown again: keep it now."
    outputs = [call("keys", "list"), call("keys", "revoke", made["key"]), call("keys", "revoke", made["id"])]
    assert made["id"] in outputs[0].stdout
    assert [done.returncode for done in outputs] == [0, 2, 0]
    assert made["key"][3:] not in "".join(done.stdout + done.stderr for done in outputs)
    assert call("keys", "list").stdout == "there is no API key\n"


def test_an_api_key_that_is_not_there(call: Run) -> None:
    """Exit code 4 says that there is none to revoke."""
    done = call("keys", "revoke", "0123456789abcdef")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "overbooked-lock: no API key has the id '0123456789abcdef'\n"


# Exit codes and errors


def refusals(slot_id: str) -> dict[int, tuple[str, ...]]:
    """A command for each exit code, on a slot that another key holds."""
    free = ("--for", "1m", "--unregistered", "allow")
    return {
        0: ("locks",),
        2: ("lock", slot_id, "--for", "soon"),
        3: ("lock", slot_id, "--for", "1m"),
        4: ("slot", "delete", "nowhere"),
        5: ("lock", "closed", "--for", "1m"),
        6: ("unlock", slot_id, "--lock-key", "another"),
        8: ("slot", "create", "--id", slot_id, "--resource", "x", "--start", "2030-01-01", "--end", "2030-01-02"),
        9: ("lock", "spoilt", *free),
    }


@pytest.mark.parametrize("code", refusals(""))
def test_each_outcome_has_its_exit_code(
    code: int,
    run: Run,
    raw: redis.Redis,
    slot: Slot,
    lock_engine: LockEngine,
    lock_namespace: str,
    new_slot: Callable[..., Any],
) -> None:
    """A script can tell from the exit code alone what happened, and a reader from one line on stderr."""
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    lock_engine.create_slot(new_slot(id="closed", status="disabled"))
    raw.set(Keys(lock_namespace).record("spoilt"), "something else")
    done = run(*refusals(slot.id)[code])
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == (code != 0)
    if code:
        assert not done.stdout
        assert re.fullmatch(r"overbooked-lock: .+\n", done.stderr)


def test_a_lost_lock_cannot_be_extended(call: Run, slot: Slot) -> None:
    """Exit code 6 says that the lock is gone."""
    assert call("extend", slot.id, "--for", "1m", "--lock-key", "late").returncode == 6


def test_active_bookings_keep_a_slot(call: Run, raw: redis.Redis, slot: Slot, lock_namespace: str) -> None:
    """Exit code 8 says that the slot is in use."""
    name = Keys(lock_namespace).record(slot.id)
    raw.set(name, str(raw.get(name)).replace("3LA 0 0 1 ", "3LA 1 0 1 "))
    done = call("slot", "delete", slot.id)
    assert (done.returncode, "active bookings" in done.stderr) == (8, True)


def test_a_store_that_refuses_us_is_unavailable(environment: Environment, run: Run, tmp_path: Path) -> None:
    """Exit code 7 says that it was the store."""
    with EmbeddedServer(tmp_path / "server") as server:
        client = redis.Redis.from_url(server.url)
        client.config_set("requirepass", "secret")
        done = run("locks", "--url", server.url)
        client.config_set("requirepass", "")
        client.close()
    assert (done.returncode, "asks for a password" in done.stderr) == (7, True)


def test_a_data_folder_of_somebody_else_is_left_alone(environment: Environment, run: Run) -> None:
    """Exit code 7 says that the own server could not start."""
    del environment["OVERBOOKED_LOCK_URL"]
    folder = Path(environment["XDG_DATA_HOME"]) / "overbooked-lock"
    folder.mkdir(parents=True)
    (folder / "diary.txt").touch()
    done = run("locks")
    assert (done.returncode, "holds other files" in done.stderr) == (7, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_the_unexpected_ends_in_1(environment: Environment) -> None:
    """An answer that can't be written is no success."""
    # Unbuffered: what Python can't write at its very end it turns into a status of its own.
    env = environment | {"PYTHONUNBUFFERED": "1"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([PROGRAM, "locks"], env=env, stdout=full, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("lock", "s", "--for", "5"), "--for must be a duration like 90s"),
        (("lock", "s", "--for", "0s"), "--for must be a duration of at least 1 ms"),
        (("lock", "s", "--for", "90d"), "--for must be at most"),
        (("lock", "s", "--until", "2020-01-01"), "--until must be in the future"),
        (("lock", "s", "--until", "noon"), "--until must be an ISO 8601 date like 2030-06-01T18:00Z"),
        (("lock", "s"), "--until or --for must be given"),
        (("lock", "", "--for", "1m"), "SLOT must be a string of 1 to 255 characters"),
        (("lock", "s", "--for", "1m", "--url", "http://x"), "--url must start with redis://"),
        (("locks", "--url", "redis://127.0.0.1/shop"), "--url must have a number as its database"),
        (("locks", "--url", "redis://127.0.0.1?x=1"), "--url has a parameter that redis-py does not know"),
        (("serve", "--origin", "shop.example"), "--origin must be like https://shop.example"),
        (("serve", "--trusted-proxy", "abc"), "--trusted-proxy must be networks like 10.0.0.0/8"),
        (("serve", "--tls-cert", __file__), "--tls-cert and --tls-key must be given both"),
        (
            ("sidecar", "--name", "s", "--health-file", "/nowhere/at/all"),
            "--health-file must be a file in a folder that exists",
        ),
        (("lock",), "Missing argument 'SLOT'"),
        (("extend", "s", "--for", "1m"), "--lock-key must be given"),
        (("unlock", "s"), "--lock-key or --force must be given"),
        (("unlock", "s", "--force", "--fencing-token", "1"), "--fencing-token can't be given with --force"),
        (("slot", "list", "--limit", "0"), "--limit must be an integer from 1 to 512"),
        (("hold", "s", "--for", "2s", "--max-lifetime", "1s", "--", "true"), "--max-lifetime must be at least --for"),
        (("keys", "create"), "--public or --secret must be given, and not both"),
        (("keys", "create", "--public", "--secret"), "--public or --secret must be given, and not both"),
        (("keys", "create", "--public", "--name", "x" * 101), "--name must be a string of at most 100 characters"),
        (("keys", "revoke", "abc"), "ID must be the id of an API key"),
        (("lokc", "s"), "Did you mean"),
    ],
)
def test_errors_name_the_option_and_what_is_allowed(words: tuple[str, ...], says: str, call: Run) -> None:
    """A wrong command line is refused in the words of the command line."""
    done = call(*words)
    assert done.returncode == 2
    assert says in done.stderr


def test_json_errors_are_envelopes_on_stdout(call: Run, slot: Slot, lock_engine: LockEngine) -> None:
    """With --json a program reads one document from stdout, whatever happens."""
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    for words, code, status, exit_code in [
        (("lock", slot.id, "--for", "1m"), "E045", 422, 3),
        (("slot", "show", "nowhere"), "E025", 404, 4),
        (("lock", slot.id, "--for", "soon"), "E013", 400, 2),
    ]:
        done = call(*words, "--json")
        envelope = json.loads(done.stdout)
        message = envelope["error"].pop("message")
        assert envelope == {"error": {"code": code, "status": status}, "success": False}
        assert message
        assert (done.returncode, done.stderr) == (exit_code, "")


def test_ctrl_c_is_quiet(raw: redis.Redis, start: Callable[..., Running], slot: Slot, lock_engine: LockEngine) -> None:
    """One who gives up waiting gets no traceback."""
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    waiting = waits_in_line(raw, start, "lock", slot.id, "--for", "1m", "--wait", "1m")
    assert waiting.end(signal.SIGINT) == (130, "", "")


def test_without_its_extra_it_says_what_to_install() -> None:
    """One line says how to get the command line."""
    code = "import sys; sys.modules['typer'] = None; from overbooked_lock.cli import main"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith('pip install "overbooked-lock[cli]"\n')
    assert done.stderr.count("\n") == 1


def test_exit_codes_are_documented(run: Run) -> None:
    """The help and the reference page list each exit code with its meaning."""
    reference, shown = DOCS.read_text(), run("--help").stdout
    for code, (meaning, _) in EXITS.items():
        assert f"| {code} | {meaning} |" in reference
        assert f" {code}  {meaning} " in shown


# What people see


def test_ids_are_whole_in_a_pipe(call: Run, lock_engine: LockEngine, new_slot: Callable[..., Any]) -> None:
    """No id is cut, wrapped or taken for markup, however long it is."""
    long = "[bold]" + "x" * 200 + ":smile:"
    lock_engine.create_slot(new_slot(id=long, resource_id=long))
    lock_engine.lock(long, lock_for=timedelta(minutes=1))
    for words in (("slot", "list"), ("slot", "show", long), ("locks",)):
        assert long in call(*words).stdout


def test_lock_prints_what_unlock_needs(call: Run, slot: Slot) -> None:
    """A person finds the key where it is made."""
    shown = dict(re.split(r"  +", line) for line in call("lock", slot.id, "--for", "1m").stdout.splitlines())
    assert shown.keys() == {"slot", "locked until", "fencing token", "lock key"}
    assert call("unlock", slot.id, "--lock-key", shown["lock key"]).stdout == "unlocked\n"


def test_no_other_output_has_a_lock_key(run: Run, call: Run, slot: Slot) -> None:
    """A key shows where it was made, and nowhere else."""
    mine, other = "mine-2f7c", "other-91ab"
    outputs = [
        run("lock", slot.id, "--for", "1m", OVERBOOKED_LOCK_KEY=mine),
        run("hold", slot.id, "--for", "1s", "--", "true", OVERBOOKED_LOCK_KEY=mine),
    ] + [
        call(*words, OVERBOOKED_LOCK_KEY=key)
        for words, key in [
            (("lock", slot.id, "--for", "1m", "--json"), mine),
            (("lock", slot.id, "--for", "1m"), other),
            (("unlock", slot.id), other),
            (("extend", slot.id, "--for", "2m", "--json"), other),
            (("slot", "show", slot.id, "--json"), mine),
            (("locks", "--json"), mine),
        ]
    ]
    assert [done.returncode for done in outputs] == [0, 1, 0, 3, 6, 6, 0, 0]
    printed = "".join(done.stdout + done.stderr for done in outputs)
    assert mine not in printed
    assert other not in printed


# hold


def test_hold_exits_as_its_command_does(run: Run, slot: Slot, lock_engine: LockEngine) -> None:
    """The exit code is the command's; the slot is locked as long as it runs, and it knows the fencing token."""
    command = f"echo $OVERBOOKED_LOCK_SLOT $OVERBOOKED_LOCK_FENCING_TOKEN; {PROGRAM} locks --json; exit 7"
    done = run("hold", slot.id, "--for", "30s", "--", "sh", "-c", command)
    assert done.returncode == 7, done.stderr
    told, shown = done.stdout.splitlines()
    [live] = json.loads(shown)["data"]
    assert told == f"{slot.id} {live['fencing_token']}"
    assert live["slot_id"] == slot.id
    assert lock_engine.list_locks() == []


def test_hold_tells_of_an_end_as_a_shell_does(run: Run, slot: Slot) -> None:
    """A command that died of a signal adds 128 to it."""
    assert run("hold", slot.id, "--for", "30s", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_hold_of_what_cannot_be_run(run: Run, slot: Slot, lock_engine: LockEngine, tmp_path: Path) -> None:
    """There is 127 for a command that is not there, 126 for one that can't be run, and no lock left of either."""
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert run("hold", slot.id, "--for", "30s", "--", "/no/such/program").returncode == 127
    assert run("hold", slot.id, "--for", "30s", "--", str(plain)).returncode == 126
    assert lock_engine.list_locks() == []


@pytest.mark.parametrize(("words", "code"), [((), 1), (("--conflict-exit-code", "75"), 75)])
def test_hold_of_a_held_slot(words: tuple[str, ...], code: int, run: Run, slot: Slot, lock_engine: LockEngine) -> None:
    """As flock(1) has it, the conflict has an exit code of its own; the command does not run."""
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    done = run("hold", slot.id, "--for", "30s", *words, "--json", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (code, "")
    assert json.loads(done.stderr)["error"]["code"] == "E045"


def test_hold_renews_its_lock(start: Callable[..., Running], slot: Slot, lock_engine: LockEngine) -> None:
    """A command may take longer than its lock lasts."""
    holding = start("hold", slot.id, "--for", "1s", "--", "sh", "-c", "echo runs; read line; echo $line")
    assert holding.hear() == "runs"
    [first] = lock_engine.list_locks()
    until(lambda: lock_engine.list_locks()[0].locked_until > first.locked_until + timedelta(seconds=1))
    assert holding.process.stdin is not None
    holding.process.stdin.write("done\n")
    assert holding.end() == (0, "done\n", "")


def test_a_lost_lock_ends_the_command(start: Callable[..., Running], slot: Slot, lock_engine: LockEngine) -> None:
    """The command is ended with all its processes before it harms the next holder's work."""
    # The second process keeps the output open: end() returns only when it has ended, too.
    holding = start("hold", slot.id, "--for", "500ms", "--", "sh", "-c", "sleep 60 & echo runs; wait")
    assert holding.hear() == "runs"
    lock_engine.force_unlock(slot.id)
    code, _, errors = holding.end()
    assert (code, "is lost" in errors) == (6, True)


def test_a_command_that_does_not_end_is_killed(
    start: Callable[..., Running], slot: Slot, lock_engine: LockEngine
) -> None:
    """SIGTERM can be ignored, SIGKILL can't."""
    command = f"trap 'echo asked' TERM; echo runs; {BUSY}"
    holding = start("hold", slot.id, "--for", "500ms", "--kill-after", "200ms", "--", "sh", "-c", command)
    assert holding.hear() == "runs"
    lock_engine.force_unlock(slot.id)
    code, output, _ = holding.end()
    assert (code, output) == (6, "asked\n")


def test_max_lifetime_ends_the_command(run: Run, slot: Slot) -> None:
    """A command that hangs does not hold its slot for ever."""
    assert run("hold", slot.id, "--for", "300ms", "--max-lifetime", "500ms", "--", "sleep", "60").returncode == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(
    number: signal.Signals, start: Callable[..., Running], slot: Slot, lock_engine: LockEngine
) -> None:
    """Who ends hold means the command; its end is waited for, and then the slot is unlocked."""
    trap = f"trap 'echo {number.name}; exit 9' {number.name.removeprefix('SIG')}"
    holding = start("hold", slot.id, "--for", "30s", "--", "sh", "-c", f"{trap}; echo runs; {BUSY}")
    assert holding.hear() == "runs"
    code, output, _ = holding.end(number)
    assert (code, output) == (9, f"{number.name}\n")
    assert lock_engine.list_locks() == []


def test_sigterm_ends_a_hold_that_waits(
    raw: redis.Redis, start: Callable[..., Running], slot: Slot, lock_engine: LockEngine
) -> None:
    """Nothing is run, and nothing stays locked, when the end comes before the lock."""
    lock = lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    waiting = waits_in_line(raw, start, "hold", slot.id, "--for", "1m", "--wait", "1m", "--", "echo", "ran")
    assert waiting.end(signal.SIGTERM) == (143, "", "")
    assert lock_engine.unlock(lock).released
    assert lock_engine.list_locks() == []


TAKE_TERMINAL = """
import os, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))  # a session takes the first terminal that its leader opens
os.execv(sys.argv[1], sys.argv[1:])
"""
COUNT_INTERRUPTS = """
import signal
# Waited for, and not handled: a handler is not run if the signal comes just before the read, until something is read.
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
print("runs", flush=True)
signal.sigwait([signal.SIGINT])
print("interrupted", flush=True)
signal.sigwait([signal.SIGTERM])  # passed on by `hold`, and so after what it had to pass on before
print("heard", input(), "after", 1 + len(signal.sigpending()), flush=True)
input()  # what a terminal has not shown yet is lost with its session
"""


def test_a_terminal_is_the_commands(environment: Environment, slot: Slot) -> None:
    """What is typed reaches the command: lines, and Ctrl-C, which does not come twice."""
    ours, theirs = os.openpty()
    modes = termios.tcgetattr(theirs)
    modes[3] |= termios.NOFLSH  # else Ctrl-C throws away what is on its way, and that may be the answer to it
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    hold = [PROGRAM, "hold", slot.id, "--for", "30s", "--", sys.executable, "-c", COUNT_INTERRUPTS]
    holding = subprocess.Popen(
        [sys.executable, "-c", TAKE_TERMINAL, *hold],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    screen = ""

    def read_to(text: str) -> None:
        nonlocal screen
        while text not in screen:
            assert select.select([ours], [], [], PATIENCE)[0], screen
            screen += os.read(ours, 1024).decode()

    try:
        read_to("runs")
        os.write(ours, b"\x03")
        read_to("interrupted")
        holding.send_signal(signal.SIGTERM)
        os.write(ours, b"hello\n")
        read_to("heard hello after 1")
        os.write(ours, b"\n")
        assert holding.wait(PATIENCE) == 0
    finally:
        holding.kill()
        holding.wait()
        os.close(ours)


# watch


def watching(start: Callable[..., Running], *words: str) -> Running:
    """Starts a watch, and returns when it listens."""
    running = start("watch", *words)
    assert running.process.stderr is not None
    assert "watching" in running.process.stderr.readline()
    return running


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_watch_shows_what_happens(
    start: Callable[..., Running], slot: Slot, lock_engine: LockEngine, how: signal.Signals, code: int
) -> None:
    """A line an event, in local time, until it is told to end."""
    running = watching(start)
    lock = lock_engine.lock(slot.id, lock_for=timedelta(minutes=1), lock_key="what only the holder knows")
    lock_engine.unlock(lock)
    locked, unlocked = running.hear(), running.hear()
    local = lock.locked_until.astimezone().isoformat(" ", "milliseconds")[:23]
    assert re.fullmatch(
        rf"\S+ \S+  locked        {slot.id} of {slot.resource_id}, until {local}, token {lock.fencing_token}", locked
    )
    assert abs(datetime.fromisoformat(locked[:23]).astimezone() - datetime.now(UTC)) < timedelta(minutes=1)
    assert "unlocked" in unlocked
    assert running.end(how) == (code, "", "")


def test_watch_as_json(start: Callable[..., Running], slot: Slot, lock_engine: LockEngine) -> None:
    """An event a line, from whichever one wants; only what is wanted."""
    lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=50))
    running = watching(start, "--json", "--since", "0-0.0", "--slot", slot.id)
    seen = [Event.model_validate_json(running.hear()) for _ in range(3)]
    assert [event.type for event in seen] == ["slot_changed", "locked", "expired"]
    assert running.end(signal.SIGINT)[0] == 130
    after = watching(start, "--json", "--since", seen[1].id, "--resource", slot.resource_id)
    assert Event.model_validate_json(after.hear()) == seen[2]


def test_watch_says_where_there_is_no_store(call: Run) -> None:
    """As every other command does. One that goes away later is waited for."""
    done = call("watch", "--url", "redis://127.0.0.1:1")
    assert done.returncode == 7
    assert "the lock store is unavailable" in done.stderr


def test_watch_ends_with_its_reader(start: Callable[..., Running], slot: Slot, lock_engine: LockEngine) -> None:
    """As in a pipe to head(1)."""
    running = watching(start)
    assert running.process.stdout is not None
    running.process.stdout.close()
    lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    assert running.process.wait(PATIENCE) == 141


def test_watch_on_a_private_server(start: Callable[..., Running], run: Run, environment: Environment) -> None:
    """Beside the commands that change it."""
    del environment["OVERBOOKED_LOCK_URL"]
    running = watching(start, "--json")
    assert run("lock", "seat", "--for", "1m", "--unregistered", "allow").returncode == 0
    assert json.loads(running.hear())["resource_id"] is None
    assert running.end(signal.SIGINT)[0] == 130


def test_a_closed_terminal_leaves_no_server_behind(start: Callable[..., Running], environment: Environment) -> None:
    """As after every other end: the last one out stops the private server."""
    del environment["OVERBOOKED_LOCK_URL"]
    running = watching(start)
    server = Path(environment["XDG_DATA_HOME"]) / "overbooked-lock" / "server.pid"
    assert server.exists()
    assert running.end(signal.SIGHUP)[0] == 129
    assert not server.exists()


def test_watch_since(call: Run, slot: Slot, raw: redis.Redis, lock_namespace: str) -> None:
    """What is wrong, and what is gone, is said."""
    assert call("watch", "--since", "yesterday").returncode == 2
    raw.xadd(f"{lock_namespace}:slots:events", {"events": "locked\ts\tr\t0\t7"})
    gone = call("watch", "--since", "1-0.0", "--json")
    assert (gone.returncode, json.loads(gone.stdout)["error"]["code"]) == (1, "E013")
