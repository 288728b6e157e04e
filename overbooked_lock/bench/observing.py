"""What is seen of the server and of this machine beside the load: who they are, and how busy."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from overbooked_lock.bench.results import Machine
from overbooked_lock.bench.targets import Where


class Server:
    """The server's own account of itself. None where it gives none."""

    def __init__(self, where: Where) -> None:
        # Asked once and no more: who waits here hears nothing from the processes meanwhile.
        options: dict[str, Any] = {"socket_timeout": 1, "retry": Retry(NoBackoff(), 0)}
        self._client = None if where.kind == "http" else redis.Redis.from_url(where.url, **options)

    def name(self) -> str | None:
        """Which server it is, and its version."""
        facts = self._info("server")
        if facts is None:
            return None
        name = facts.get("server_name", "redis")
        return f"{name} {facts.get(f'{name}_version', facts.get('redis_version', ''))}".strip()

    def cpu_s(self) -> float | None:
        """How much CPU it has used so far."""
        facts = self._info("cpu")
        if facts is None or "used_cpu_sys" not in facts:
            return None
        return float(facts["used_cpu_sys"]) + float(facts["used_cpu_user"])

    def close(self) -> None:
        """Asks no more."""
        if self._client is not None:
            self._client.close()

    def _info(self, section: str) -> dict[str, str] | None:
        if self._client is None:
            return None
        try:
            facts: dict[str, str] = self._client.info(section)
        except (RedisError, OSError):
            return None
        return facts


class Look(NamedTuple):
    """How much CPU had been used when: by the server, and by all that runs on this machine."""

    at: float
    server_s: float | None
    busy: float
    total: float

    @classmethod
    def now(cls, server: Server) -> Self:
        """What has been used by now."""
        return cls(time.monotonic(), server.cpu_s(), *_machine_times())

    def server_cpu_since(self, last: Look) -> float | None:
        """The server's share of a core."""
        if self.server_s is None or last.server_s is None or self.at <= last.at:
            return None
        return (self.server_s - last.server_s) / (self.at - last.at)

    def machine_cpu_since(self, last: Look) -> float | None:
        """The share of all cores that were busy."""
        return (self.busy - last.busy) / (self.total - last.total) if self.total > last.total else None


def machine() -> Machine:
    """The machine that the harness runs on."""
    cpu = None
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    memory = None
    with contextlib.suppress(OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu or platform.processor() or None,
        cores=cores,
        memory_bytes=memory,
    )


def _machine_times() -> tuple[float, float]:
    """What the cores of this machine did since it started: busy, and in all; zeros where that can't be told."""
    with contextlib.suppress(OSError, ValueError):
        user, nice, system, idle, waiting, *rest = map(
            float, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        busy = user + nice + system + sum(rest)
        return busy, busy + idle + waiting
    return 0.0, 0.0
