"""Events where processes die and stand still, and connections break: each once, in order, and none missing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
import redis

from overbooked_lock import EmbeddedServer, Event, LockEngine

from .tools import MINUTE, PATIENCE, milliseconds, until

SWEEP = """
import sys, time
from overbooked_lock import LockEngine

with LockEngine.from_url(sys.argv[1], namespace=sys.argv[2], unregistered="allow") as engine:
    print("sweeps", flush=True)
    while True:
        engine.sweep()
        time.sleep(0.001)
"""

READ_SYNC = """
import sys
from overbooked_lock import LockEngine

with LockEngine.from_url(sys.argv[1], namespace=sys.argv[2]) as engine:
    for event in engine.events(since=sys.argv[3]):
        print(event.model_dump_json(), flush=True)
"""

READ_ASYNC = """
import asyncio, sys
from overbooked_lock import AsyncLockEngine

async def read():
    async with AsyncLockEngine.from_url(sys.argv[1], namespace=sys.argv[2]) as engine:
        async for event in engine.events(since=sys.argv[3]):
            print(event.model_dump_json(), flush=True)

asyncio.run(read())
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program in a process of its own; what is left of it at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(program: str, *words: str) -> subprocess.Popen[str]:
            process = subprocess.Popen([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def test_a_wave_of_ends_is_told_once_whatever_becomes_of_the_sweepers(
    lock_server: EmbeddedServer, lock_namespace: str, raw: redis.Redis, redis_now: Callable[[], datetime], start: Start,
    soak: bool,
) -> None:  # fmt: skip
    """Three sweep; in the midst of it one is killed and one stands still, and goes on when all is over."""
    draw = random.Random("a wave")
    groups = [[f"{group}-{at}" for at in range(100)] for group in range(200 if soak else 20)]
    sweepers = [start(SWEEP, lock_server.url, lock_namespace) for _ in range(3)]
    for sweeper in sweepers:
        assert sweeper.stdout is not None
        assert sweeper.stdout.readline() == "sweeps\n"
    with LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        begins = redis_now() + milliseconds(6000 if soak else 600)
        made = [
            lock
            for group in groups
            for lock in engine.lock_many(group, lock_until=begins + milliseconds(draw.uniform(0, 1000)))
        ]
        assert redis_now() < begins
    told = Counter[tuple[str, str]]()
    for kind, slot_id, token in _expired(raw, lock_namespace):
        if kind == "expired":
            told[slot_id, token] += 1
            if told.total() == len(made) // 4:
                sweepers[0].kill()
                sweepers[1].send_signal(signal.SIGSTOP)
        if told.total() >= len(made):
            break
    os.kill(sweepers[1].pid, signal.SIGCONT)
    calls = _calls(raw)
    until(lambda: _calls(raw) > calls + 20)  # it has swept again
    everything = Counter(
        (slot_id, token) for kind, slot_id, token in _entries(raw, lock_namespace) if kind == "expired"
    )
    assert everything == told == Counter((lock.slot_id, str(lock.fencing_token)) for lock in made)


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    for line in text.split("\n"):
        kind, slot_id, _, _, token = line.split("\t")
        yield kind, slot_id, token


def _entries(raw: redis.Redis, namespace: str) -> Iterator[tuple[str, str, str]]:
    entries: Any = raw.xrange(f"{namespace}:slots:events")
    for _, fields in entries:
        yield from _lines(fields["events"])


def _expired(raw: redis.Redis, namespace: str) -> Iterator[tuple[str, str, str]]:
    """What the stream gets, as it gets it."""
    last, deadline = "0-0", time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        heard: Any = raw.xread({f"{namespace}:slots:events": last}, block=1000)
        for last, fields in heard[0][1] if heard else ():  # noqa: B007 - the next read begins after it
            yield from _lines(fields["events"])


def _calls(raw: redis.Redis) -> int:
    info: Any = raw.info("commandstats")
    return int(info["cmdstat_evalsha"]["calls"])


Told = dict[str, list[tuple[str, int | None]]]


def _write(engine: LockEngine, draw: random.Random, slots: list[str], told: Told, ends: float) -> None:
    """Does this and that to slots of its own, and notes what must be told of it."""
    while time.monotonic() < ends:
        slot = draw.choice(slots)
        what = draw.random()
        # With a key of another each time: the lock before may just be ending.
        lock = engine.lock(slot, lock_for=milliseconds(20) if what < 0.2 else MINUTE, wait=MINUTE)
        token = lock.fencing_token
        told[slot].append(("locked", token))
        if what < 0.2:
            told[slot].append(("expired", token))
            continue
        if what < 0.5:
            engine.extend(lock, lock_for=2 * MINUTE)
            told[slot].append(("extended", token))
        engine.unlock(lock)
        told[slot].append(("unlocked", token))
        time.sleep(draw.uniform(0, 0.002))


@pytest.mark.parametrize("program", [READ_SYNC, READ_ASYNC], ids=["sync", "async"])
def test_a_reader_that_is_cut_off_and_killed_hears_all(
    lock_server: EmbeddedServer, lock_namespace: str, raw: redis.Redis, start: Start, soak: bool, program: str
) -> None:
    """With ``since`` it goes on: each event once, in the order in which its slot had them."""
    draw = random.Random("a reader")
    seconds = 20 if soak else 2
    told: Told = defaultdict(list)
    ends = time.monotonic() + seconds
    over = threading.Event()
    heard: list[Event] = []

    def kill_connections() -> None:
        again = random.Random("connections")
        while not over.wait(again.uniform(0.01, 0.15)):
            clients: Any = raw.client_list()
            for client in clients:
                if client["name"] == "reader":
                    with contextlib.suppress(redis.ResponseError):  # it is gone already
                        raw.client_kill_filter(_id=client["id"])

    with contextlib.ExitStack() as stack:
        threads = [threading.Thread(target=kill_connections)]
        for number in range(2):
            engine = stack.enter_context(
                LockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow")
            )
            slots = [f"{number}-{at}" for at in range(4)]
            writing = (engine, random.Random(f"writer {number}"), slots, told, ends)
            threads.append(threading.Thread(target=_write, args=writing))
        stack.callback(over.set)
        for thread in threads:
            thread.start()

        def finish() -> None:
            for thread in threads[1:]:
                thread.join()
            engine.lock("the end", lock_for=MINUTE)

        finishing = threading.Thread(target=finish)
        finishing.start()
        since, starts = "0-0.0", 0
        while not heard or heard[-1].slot_id != "the end":
            reader = start(program, f"{lock_server.url}?client_name=reader", lock_namespace, since)
            starts += 1
            assert starts < 20 * seconds
            assert reader.stdout is not None
            lives = draw.uniform(0.05, 0.4)
            kill: threading.Timer | None = None
            for line in reader.stdout:
                if not line.endswith("\n"):
                    break  # killed while it wrote
                if kill is None:
                    kill = threading.Timer(lives, reader.kill)
                    kill.start()
                heard.append(Event.model_validate_json(line))
                since = heard[-1].id
                if heard[-1].slot_id == "the end" or (starts == 1 and len(heard) >= 10):
                    break  # the first is killed whatever else the machine has to do
            reader.kill()
            if kill is not None:
                kill.cancel()
        finishing.join()
        over.set()
        threads[0].join()
    assert starts >= 2
    found: Told = defaultdict(list)
    for event in heard[:-1]:
        found[event.slot_id].append((event.type, event.fencing_token))
    # The last lock of a slot may not have ended before the end was told of.
    for slot, events in told.items():
        if events[-1][0] == "expired" and found[slot] == events[:-1]:
            events.pop()
    assert found == told
    assert len({event.id for event in heard}) == len(heard)
