"""What the server can do at most: with plain SET NX PX, and with our own scripts, one slot a call.

Two measures. The server's own time for a call comes from ``INFO commandstats``, and is always there. What it answers a
second is counted by redis-benchmark (or valkey-benchmark), a client in C, if there is one on PATH.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from datetime import timedelta
from urllib.parse import urlsplit

import redis

from benchmarks import server_stats
from benchmarks.measuring import registered_slot
from benchmarks.report import Ceiling
from overbooked_lock import Lock, LockEngine, Unlocked, locks
from overbooked_lock.calls import Call, Settings
from overbooked_lock.keys import Keys

PROGRAM = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
CONNECTIONS = 50
REQUESTS_A_SECOND = 100_000  # how many to send, for each second that is asked for
DRAWN = "__rand_int__"  # stands for twelve random digits each time
PER_CALL = 512

LOCK_FOR_MS = 3_600_000
REGISTERED = "slot-0"
LOCK_KEY = "the-key-of-the-ceiling"
SETTINGS = Settings(Keys(), LOCK_FOR_MS, "registered")

BARE_LOCK = """
local reply = {}
for i = 1, #KEYS do
  reply[i] = redis.call('SET', KEYS[i], ARGV[i + 1], 'NX', 'PX', ARGV[1])
end
return reply"""
BARE_UNLOCK = """
local reply = {}
for i = 1, #KEYS do
  reply[i] = redis.call('DEL', KEYS[i])
end
return reply"""


def bare_pair_microseconds(admin: redis.Redis, slots_a_call: int, runs: int) -> float:
    """The server's time for a bare SET NX PX and DEL, in scripts for that many keys: what coalescing alone gives."""
    lock, unlock = admin.register_script(BARE_LOCK), admin.register_script(BARE_UNLOCK)
    names = [f"bare:{number}" for number in range(slots_a_call)]
    keys = [f"{number:032x}" for number in range(slots_a_call)]
    for run in range(runs + 1):
        lock(keys=names, args=[LOCK_FOR_MS, *keys])
        unlock(keys=names)
        if run == 0:
            server_stats.forget(admin)  # what came before was for the caches
    return server_stats.scripts(admin).microseconds / (runs * slots_a_call)


def measure(url: str, seconds: float) -> list[Ceiling]:
    """On a server of its own: many locks are left there."""
    requests = max(1000, int(REQUESTS_A_SECOND * seconds))
    with LockEngine.from_url(url) as engine, redis.Redis.from_url(url) as admin:
        engine.create_slot(registered_slot(REGISTERED))
        lock, unlock = (_command(admin, call) for call in _calls())
        plain = ["SET", f"plain:{DRAWN}", LOCK_KEY, "NX", "PX", str(LOCK_FOR_MS)]
        # Drawn, a slot is hit twice now and then; with five times as many, nine of ten unlocks find their lock.
        many = 5 * requests
        own_lock = _own_time(admin, lock, 2000)
        own_unlock = _own_time(admin, unlock, 2000)
        own_plain = _own_time(admin, plain, 2000)
        if PROGRAM is None:
            rates: dict[str, list[float | None]] = {name: [None, None] for name in ("plain", "lock", "unlock")}
        else:
            rates = {"plain": [], "lock": [], "unlock": []}
            for pipelined in (1, 64):
                rates["plain"].append(_rate(url, plain, requests, 10**12, pipelined))
                rates["lock"].append(_rate(url, lock, requests, 10**12, pipelined))
                _lock_all(url, many)
                rates["unlock"].append(_rate(url, unlock, requests, many, pipelined))
    return [
        Ceiling(what=what, server_microseconds=own, one_by_one=rates[name][0], pipelined=rates[name][1])
        for what, name, own in (
            ("SET NX PX", "plain", own_plain),
            ("our lock script, one slot", "lock", own_lock),
            ("our unlock script, one slot", "unlock", own_unlock),
        )
    ]


def _calls() -> tuple[Call[Lock], Call[Unlocked]]:
    lock = locks.LockRequest(DRAWN, LOCK_KEY, f"+{LOCK_FOR_MS}", key_is_new=True)
    return locks.lock(SETTINGS, [lock]), locks.unlock(SETTINGS, [locks.ClaimRequest(DRAWN, LOCK_KEY)])


def _command(admin: redis.Redis, call: Call[Lock] | Call[Unlocked]) -> list[str]:
    """A call as a command line. Each place of the slot's id is drawn apart, so all read one record, which is there."""
    sha: str = admin.script_load(call.script.source)
    record = SETTINGS.keys.record(DRAWN)
    keys = [SETTINGS.keys.record(REGISTERED) if key == record else key for key in call.keys]
    return ["EVALSHA", sha, str(len(keys)), *keys, *map(str, call.args)]


def _own_time(admin: redis.Redis, command: Sequence[str], times: int) -> float:
    """Microseconds of the server a call. The slots are numbered, so an unlock finds what the same run of locks left."""
    server_stats.forget(admin)
    for first in range(0, times, PER_CALL):
        with admin.pipeline(transaction=False) as pipeline:
            for number in range(first, min(times, first + PER_CALL)):
                pipeline.execute_command(*(word.replace(DRAWN, f"own-{number}") for word in command))
            pipeline.execute()
    return server_stats.microseconds_a_call(admin, command[0].lower())


def _rate(url: str, command: Sequence[str], requests: int, drawn_from: int, pipelined: int) -> float:
    place = urlsplit(url)
    options = ["-h", str(place.hostname), "-p", str(place.port), "-c", str(CONNECTIONS), "-P", str(pipelined)]
    options += ["-n", str(requests), "-r", str(drawn_from), "--csv"]
    done = subprocess.run([PROGRAM or "", *options, *command], capture_output=True, text=True, check=True, timeout=60)
    *_, row = csv.DictReader(done.stdout.splitlines())
    return float(row["rps"])


def _lock_all(url: str, many: int) -> None:
    """Has all slots locked whose number may be drawn."""
    with LockEngine.from_url(url, unregistered="allow") as engine:
        for first in range(0, many, PER_CALL):
            ids = [f"{number:012d}" for number in range(first, min(many, first + PER_CALL))]
            engine.lock_many(ids, lock_key=LOCK_KEY, lock_for=timedelta(milliseconds=LOCK_FOR_MS))
