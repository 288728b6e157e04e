"""What a store's failures mean, and when a call is tried again. Shared by both executors; no I/O.

Every operation is idempotent, so a call is tried again after any failure that may pass, until its deadline.
What remains to be told is whether it may have been carried out: not, if it was never sent or the server said
that it refused; unknown, once a reply is missing.
"""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Any

import hiredis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from overbooked_lock import arguments
from overbooked_lock.errors import InvalidArgument, StoreUnavailable

log = logging.getLogger("overbooked_lock")

CLOSED = "this engine is closed"
OLDEST_SERVER = (6, 2)
FAILURES = (RedisError, OSError)
"""What a redis-py connection raises when something is wrong with the store, or with the way to it."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
_SHORTEST_TRY = 0.5
_LEAST_TRY = 0.005  # less would not reach a server and come back

# The server says that it did not run the script, or that its first write was refused: our scripts read
# everything before they write, so nothing was changed. Text is ours: the server's may quote arguments.
_PASSING = {
    "LOADING": "it is loading its data",
    "BUSY": "it is busy with another script",
    "READONLY": "it is a read-only replica",
    "MASTERDOWN": "its link with the master is down",
    "CLUSTERDOWN": "its cluster is down",
    "TRYAGAIN": "its cluster is moving keys",
    "OOM": "it is out of memory",
    "MISCONF": "it can't save to disk",
    "NOREPLICAS": "it has too few replicas",
    "NOSCRIPT": "it forgot a script",
    "MAXCLIENTS": "it has too many clients",
}
_FINAL = {
    "NOAUTH": "it asks for a password",
    "WRONGPASS": "user name or password are wrong",
    "NOPERM": "its user may not do this",
    "WRONGTYPE": "a key of ours holds something else",
    "CROSSSLOT": "it is a Redis Cluster, which is not supported",
    "MOVED": "it is a Redis Cluster, which is not supported",
}
_NESTED_CODE = re.compile(r"(?:-|: )([A-Z]{3,}) ")
_PHRASES = {
    "max number of clients": "MAXCLIENTS",
    "ACL failure in script": "NOPERM",
    "user executing the script can't": "NOPERM",
    "unauthenticated": "NOAUTH",  # what it says to a command of many words
}


def questions(channel: str) -> list[bytes]:
    """What a server is asked before the first call: who it is, and whether we may tell of events."""
    words: tuple[Any, ...] = ("PUBLISH", channel, "")
    return [hiredis.pack_command(("INFO",)), hiredis.pack_command(words)]


class Attempts:
    """The tries of one call with this timeout, in seconds, and deadline, by the monotonic clock.

    ``maybe_applied`` once a reply is missing.
    """

    # Mostly the first try is the only one: what it does not change need not be set for it.
    maybe_applied = False
    _failed = 0
    _why = ""

    def __init__(self, timeout: float, deadline: float) -> None:
        self._timeout = timeout
        self._deadline = deadline

    def time_left(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline - time.monotonic()

    def time_for_next(self) -> float:
        """Seconds that the next try may take."""
        return time_for_try(self._deadline - time.monotonic(), self._timeout)

    def failed(self, error: BaseException, *, sent: bool) -> float:
        """Takes note of a failed try; returns the seconds to pause before the next one.

        Raises :class:`~overbooked_lock.errors.StoreUnavailable` if there is none.
        """
        code = _code(error)
        if sent and code not in _PASSING and code not in _FINAL:
            self.maybe_applied = True
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self._failed) * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._failed += 1
        if code or not self._why:
            # What the server said tells more than a last try that ran out of time.
            self._why = _cause(error)
        if code in _FINAL or (code and code not in _PASSING) or self.time_left() <= pause + _LEAST_TRY:
            raise self.gave_up(self._why, sent=False) from (None if code else error)
        return pause

    def gave_up(self, why: str, *, sent: bool) -> StoreUnavailable:
        """The error that tells the caller what came of all tries; ``sent`` if a reply to the last one is missing."""
        return StoreUnavailable("unknown" if sent or self.maybe_applied else "not_applied", why)


def time_for_try(left: float, timeout: float) -> float:
    """Seconds that a try may take: half of what is left, so that a lost packet costs no call."""
    step = timeout / 16
    # A round figure is mostly the same as the one before, and a socket's time limit need not be set anew.
    half = left / 2 // step * step
    return half if half > _SHORTEST_TRY else max(half, min(left, _SHORTEST_TRY), 0.001)


class Spin:
    """Whether a connection looks for its reply before it sleeps: whichever was faster lately.

    To be woken often takes longer than a near server does. Where the server is far or busy, or we are in its way, it is
    better to sleep at once.
    """

    SECONDS = 0.00025
    _WORTH = 0.95
    """Part of the time that must be left of it: looking costs processor time."""
    _TRY_OTHER_EVERY = 64  # replies

    def __init__(self) -> None:
        self._looks = False
        self._replies = 0
        self._looked = self._slept = 0.0

    def is_due(self) -> bool:
        """To be asked once before each reply."""
        self._replies += 1
        better = self._looked < self._WORTH * self._slept
        self._looks = better if self._replies % self._TRY_OTHER_EVERY else not better
        return self._looks

    def took(self, seconds: float) -> None:
        """To be told once after each reply."""
        seconds = min(seconds, 4 * self.SECONDS)  # one that hung says little of the next
        if self._looks:
            self._looked += (seconds - self._looked) / 8
        else:
            self._slept += (seconds - self._slept) / 8


def _code(error: BaseException) -> str:
    """The first word of an error reply; empty if the error is not one."""
    text = str(error)
    code: str = getattr(error, "status_code", None) or ""
    if not code and isinstance(error, ResponseError):
        code = text.split(" ", 1)[0]
    if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
        # On connecting, redis-py cuts off the code, and its asyncio half wraps the error.
        code = "NOAUTH" if "required" in text else "WRONGPASS"
    if code == "ERR":
        # A server wraps the error of a command inside a script, or has no code for it.
        nested = _NESTED_CODE.search(text)
        known = (code for phrase, code in _PHRASES.items() if phrase in text)
        code = nested[1] if nested else next(known, code)
    return code


def is_forgotten_script(reply: Any) -> bool:
    """Whether the server asks for a script's source: it forgot it, or never knew it."""
    return isinstance(reply, ResponseError) and _code(reply) == "NOSCRIPT"


def _cause(error: BaseException) -> str:
    """Why a try failed, in our words: a server's own may quote arguments."""
    code = _code(error)
    if code:
        return _PASSING.get(code) or _FINAL.get(code) or f"it replied {code}"
    if isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
        return "it did not answer in time"
    return str(error) or type(error).__name__


def connection_options(options: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The options of a client's connections, made fit for ours: replies as bytes, no retries but our own."""
    ours = {key: value for key, value in options.items() if not key.startswith(("maint_", "orig_", "oss_"))}
    connect_timeout = options.get("socket_connect_timeout") or timeout
    ours.update(
        decode_responses=False,
        health_check_interval=0,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        retry_on_timeout=False,
        socket_connect_timeout=min(connect_timeout, timeout),
        socket_timeout=timeout,
    )
    return ours


def examine(info: bytes | ResponseError, published: int | ResponseError) -> bool:
    """Looks at a server's answers: an old server is refused, an evicting one warned of, and so on.

    Returns whether it could be seen. Not if the server is busy; a user who may not ask has seen all there is to see.
    Raises :class:`~overbooked_lock.errors.StoreUnavailable`.
    """
    if isinstance(published, ResponseError) and _code(published) == "NOPERM":
        raise StoreUnavailable("not_applied", "its user may not publish on the channel of our events")
    if isinstance(info, ResponseError):
        return _code(info) == "NOPERM"
    facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
    version = facts.get("redis_version", "")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_SERVER:
        raise StoreUnavailable("not_applied", f"Redis {version} is too old: 6.2 or newer is needed")
    if facts.get("cluster_enabled") == "1":
        raise StoreUnavailable("not_applied", _FINAL["MOVED"])
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        log.warning(
            "Redis runs with maxmemory-policy %s: when memory is short it drops live locks, and two callers"
            " can hold one slot. Set maxmemory-policy to noeviction.",
            policy,
        )
    return True


def client_of_url(url: str, kind: Any, **options: Any) -> Any:
    """A client of this kind, sync or async, for a URL.

    Raises :class:`~overbooked_lock.errors.InvalidArgument` for what could never connect.
    """
    url = arguments.server_url(url)
    try:
        client = kind.from_url(url, **options)
        # redis-py looks at the names of parameters only when it makes a connection.
        pool = client.connection_pool
        pool.connection_class(**connection_options(pool.connection_kwargs, 1.0))
    except (TypeError, ValueError, RedisError) as error:
        raise InvalidArgument("url", "has a parameter that redis-py does not know, or can't read") from error
    return client


def client_of(client: object, kind: type) -> Any:
    """The client's own pool says how to connect; an engine keeps connections of its own.

    Raises :class:`~overbooked_lock.errors.InvalidArgument` if it is no client of this kind.
    """
    if not isinstance(client, kind):
        raise InvalidArgument(
            "client",
            f"must be a {kind.__module__.rsplit('.', 1)[0]}.{kind.__name__} (a cluster client is not)",
        )
    return client
