"""What the server itself says of its work: time by command, CPU, and the calls that held it long."""

from __future__ import annotations

from typing import NamedTuple

import redis

SLOW_MICROSECONDS = 1000


class Scripts(NamedTuple):
    """Runs of scripts. The time of the commands that a script calls is within its own."""

    calls: int
    microseconds: int


def forget(admin: redis.Redis) -> None:
    """Starts the counts of commands anew."""
    admin.config_resetstat()


def scripts(admin: redis.Redis) -> Scripts:
    """All runs of scripts since the counts began."""
    stats = admin.info("commandstats")
    runs = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
    return Scripts(sum(run["calls"] for run in runs), sum(run["usec"] for run in runs))


def microseconds_a_call(admin: redis.Redis, command: str) -> float:
    """What a run of a command took, since the counts began."""
    took: float = admin.info("commandstats")[f"cmdstat_{command}"]["usec_per_call"]
    return took


def cpu_seconds(admin: redis.Redis) -> float:
    """What the server has used of the machine since it started."""
    used = admin.info("cpu")
    seconds: float = used["used_cpu_user"] + used["used_cpu_sys"]
    return seconds


def watch_slow_calls(admin: redis.Redis) -> None:
    """From now on notes the calls that take ``SLOW_MICROSECONDS`` or more."""
    admin.config_set("slowlog-log-slower-than", SLOW_MICROSECONDS)
    admin.config_set("slowlog-max-len", 10_000)
    admin.slowlog_reset()


def longest_call(admin: redis.Redis) -> int | None:
    """The microseconds of the longest of them; None if there was none."""
    return max((entry["duration"] for entry in admin.slowlog_get(10_000)), default=None)
