"""What the benchmarks share: a private server, sides that are measured in turns, and figures with their spread."""

from __future__ import annotations

import gc
import os
import platform
import socket
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Literal, NamedTuple, TypeVar

import redis
from redis.exceptions import ResponseError

import overbooked_lock
from overbooked_lock import EmbeddedServer, NewSlot

CALLERS = 200
LOCK_FOR = timedelta(seconds=30)
WARM_UP = 0.3  # seconds, for connections, scripts and caches

Transport = Literal["tcp", "unix"]
Circumstances = dict[str, str | int | float]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A median. Half of the values lie within ``middle_half``, and all within ``range``."""

    median: float
    middle_half: tuple[float, float]
    range: tuple[float, float]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one value or more."""
        values = sorted(values)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
        return cls(median, (lower, upper), (values[0], values[-1]))

    @classmethod
    def of_ratios(cls, ours: Iterable[float], theirs: Iterable[float]) -> Spread:
        """Of the rounds' own ratios: what else the machine does mostly hits both sides of a round."""
        return cls.of(mine / other for mine, other in zip(ours, theirs, strict=True))


def in_turns(sides: Sequence[S], measure: Callable[[S], T], rounds: int) -> dict[S, list[T]]:
    """What each side's measurements gave, round after round. Each round begins with the next side, for whoever comes
    later finds warmer caches, or a hotter machine.
    """
    found: dict[S, list[T]] = {side: [] for side in sides}
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            gc.collect()  # nobody pays for the other's garbage
            found[side].append(measure(side))
    return found


def settle() -> None:
    """Takes what stands now out of the collector's sight: it need not be looked through again before each turn."""
    gc.collect()
    gc.freeze()


def registered_slot(slot_id: str) -> NewSlot:
    """The slot that the benchmarks lock, with metadata as a booking system has it."""
    start = datetime(2030, 6, 1, 18, tzinfo=UTC)
    metadata = {"court": "Center", "price": {"amount": 3200, "currency": "EUR"}, "members_only": False}
    return NewSlot(
        id=slot_id, resource_id="court-1", start_date=start, end_date=start + timedelta(hours=1), metadata=metadata
    )


class PrivateServer(NamedTuple):
    url: str
    circumstances: Circumstances
    """What is to be known about the machine, the server and the libraries."""


@contextmanager
def private_server(transport: Transport) -> Iterator[PrivateServer]:
    """A server of our own, that writes nothing to disk."""
    with (
        tempfile.TemporaryDirectory(prefix="overbooked-bench-") as folder,
        EmbeddedServer(folder, fsync="everysec") as server,
        redis.Redis.from_url(server.url) as admin,
    ):
        admin.config_set("appendonly", "no")
        url = server.url if transport == "unix" else f"redis://127.0.0.1:{_listen(admin)}"
        info = admin.info("server")
        yield PrivateServer(
            url,
            {
                "overbooked-lock": overbooked_lock.__version__,
                "python": platform.python_version(),
                "redis-py": version("redis"),
                "hiredis": version("hiredis"),
                "uvloop": version("uvloop"),
                "server": f"{'valkey' if 'valkey_version' in info else 'redis'} {server.version}",
                "cores": os.cpu_count() or 0,
                "transport": "TCP over loopback" if transport == "tcp" else "Unix socket",
            },
        )


def _listen(admin: redis.Redis) -> int:
    """Lets the server, which has a Unix socket alone, listen on this machine's loopback too; returns the port."""
    try:
        admin.config_set("bind", "127.0.0.1")
        for _ in range(10):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port: int = free.getsockname()[1]
            try:
                admin.config_set("port", port)
            except ResponseError as error:
                if "listen" not in str(error):  # else somebody took the port in between
                    raise
            else:
                return port
    except ResponseError as error:
        raise SystemExit(f"this server can't be told to listen ({error}): use --transport unix") from error
    raise SystemExit("no free port was found: use --transport unix")
