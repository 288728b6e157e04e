"""How fast is a lock and its unlock, against redis-py's own Lock? The answer comes in under a minute.

Each side is measured in turn, round after round, so that what else the machine does hits both alike; what counts is
the median of the rounds' ratios. See README.md in this folder for what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import redis
import redis.asyncio
import uvloop
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import (
    CALLERS,
    LOCK_FOR,
    WARM_UP,
    Circumstances,
    Spread,
    in_turns,
    private_server,
    registered_slot,
    settle,
)
from overbooked_lock import AsyncLockEngine, LockEngine

Side = Callable[[float], float]
"""Measures for this many seconds; returns the seconds that one pair took."""


@dataclass(frozen=True)
class Workload:
    """What is compared. A target of pairs a second is a least ratio, one of time a pair is a most."""

    name: str
    unit: Literal["pairs/s", "µs/pair"]
    target: float

    def figure(self, seconds_a_pair: float) -> float:
        return 1 / seconds_a_pair if self.unit == "pairs/s" else seconds_a_pair * 1_000_000

    def meets(self, ratio: float) -> bool:
        return ratio >= self.target if self.unit == "pairs/s" else ratio <= self.target

    def target_text(self) -> str:
        return f"{'≥' if self.unit == 'pairs/s' else '≤'} {self.target:g}"


ASYNC_MANY = Workload(f"async, {CALLERS} callers", "pairs/s", 5.0)
ASYNC_ONE = Workload("async, 1 caller", "µs/pair", 1.1)
SYNC_ONE = Workload("sync, 1 thread", "µs/pair", 1.1)


@dataclass(frozen=True)
class Result:
    """Medians over the rounds, in the workload's unit. ``ratio``, ours to redis-py's, is the median of the rounds'
    own ratios; half of those lie within ``middle_half``, and all within ``range``.
    """

    workload: str
    unit: str
    ours: float
    redis_py: float
    ratio: float
    middle_half: tuple[float, float]
    range: tuple[float, float]
    target: str
    met: bool


def compare(workload: Workload, ours: Side, theirs: Side, seconds: float, rounds: int) -> Result:
    for side in (ours, theirs):
        side(WARM_UP)
    settle()
    figures = in_turns((ours, theirs), lambda side: workload.figure(side(seconds)), rounds)
    ratio = Spread.of_ratios(figures[ours], figures[theirs])
    return Result(
        workload.name,
        workload.unit,
        statistics.median(figures[ours]),
        statistics.median(figures[theirs]),
        ratio.median,
        ratio.middle_half,
        ratio.range,
        workload.target_text(),
        workload.meets(ratio.median),
    )


# Ours: with keys made by the engine, and with all that a caller gets from a lock being looked at.


def our_sync(engine: LockEngine, slot_id: str) -> Side:
    def measure(seconds: float) -> float:
        pairs, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds or not pairs:
            lock = engine.lock(slot_id, lock_for=LOCK_FOR)
            slot = lock.slot
            assert slot is not None
            assert slot.available
            assert lock.fencing_token > 0
            engine.unlock(lock)
            pairs += 1
        return (now - start) / pairs

    return measure


def our_async(engine: AsyncLockEngine, slot_ids: list[str], runner: asyncio.Runner) -> Side:
    async def call(slot_id: str, end: float) -> int:
        pairs = 0
        while time.perf_counter() < end or not pairs:
            lock = await engine.lock(slot_id, lock_for=LOCK_FOR)
            slot = lock.slot
            assert slot is not None
            assert slot.available
            assert lock.fencing_token > 0
            await engine.unlock(lock)
            pairs += 1
        return pairs

    return _together(call, slot_ids, runner)


# Theirs: a lock for each use, as in redis-py's documentation.


def their_sync(client: redis.Redis, name: str) -> Side:
    def measure(seconds: float) -> float:
        pairs, start = 0, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds or not pairs:
            lock = client.lock(name, timeout=LOCK_FOR.total_seconds())
            assert lock.acquire(blocking=False)
            lock.release()
            pairs += 1
        return (now - start) / pairs

    return measure


def their_async(client: redis.asyncio.Redis, names: list[str], runner: asyncio.Runner) -> Side:
    async def call(name: str, end: float) -> int:
        pairs = 0
        while time.perf_counter() < end or not pairs:
            # Threads have no part in this, and a lock without their storage is the faster one.
            lock = client.lock(name, timeout=LOCK_FOR.total_seconds(), thread_local=False)
            assert await lock.acquire(blocking=False)
            await lock.release()
            pairs += 1
        return pairs

    return _together(call, names, runner)


def _together(
    call: Callable[[str, float], Coroutine[None, None, int]], names: list[str], runner: asyncio.Runner
) -> Side:
    """One caller for each name, all at the same time."""

    async def all_calls(seconds: float) -> float:
        start = time.perf_counter()
        pairs = await asyncio.gather(*(call(name, start + seconds) for name in names))
        return (time.perf_counter() - start) / sum(pairs)

    return lambda seconds: runner.run(all_calls(seconds))


def run(url: str, seconds: float, rounds: int) -> Iterator[Result]:
    ids = [f"slot-{number}" for number in range(CALLERS)]
    names = [f"redis-py:{slot_id}" for slot_id in ids]
    with LockEngine.from_url(url) as engine, redis.Redis.from_url(url) as client:
        engine.create_slots(registered_slot(slot_id) for slot_id in ids)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            # A connection for each caller: none waits for another's.
            async_client = redis.asyncio.Redis.from_url(url, max_connections=CALLERS)
            async_engine = AsyncLockEngine.from_url(url)
            ours, theirs = our_async(async_engine, ids, runner), their_async(async_client, names, runner)
            yield compare(ASYNC_MANY, ours, theirs, seconds, rounds)
            ours, theirs = our_async(async_engine, ids[:1], runner), their_async(async_client, names[:1], runner)
            yield compare(ASYNC_ONE, ours, theirs, seconds, rounds)
            runner.run(async_engine.close())
            runner.run(async_client.aclose())
        our_side, their_side = our_sync(engine, ids[0]), their_sync(client, names[0])
        yield compare(SYNC_ONE, our_side, their_side, seconds, rounds)


def show(results: list[Result], circumstances: Circumstances) -> None:
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("lock + unlock", "ours", "redis-py", "unit", "ratio", "middle half", "target", ""):
        of_numbers = heading in ("ours", "redis-py", "ratio", "middle half", "target")
        table.add_column(heading, justify="right" if of_numbers else "left", no_wrap=True)
    for result in results:
        lower, upper = result.middle_half
        table.add_row(
            result.workload,
            f"{result.ours:,.0f}",
            f"{result.redis_py:,.0f}",
            result.unit,
            f"{result.ratio:.2f}",
            f"{lower:.2f}-{upper:.2f}",
            result.target,
            "ok" if result.met else "missed",
        )
    Console(highlight=False, width=100).print(table)
    print(", ".join(f"{name} {value}" for name, value in circumstances.items()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description="Compare with redis-py's own Lock.")
    parser.add_argument("--seconds", type=float, default=0.25, help="per measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each side (default: %(default)s)")
    parser.add_argument("--transport", choices=["tcp", "unix"], default="tcp", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a target is missed")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or options.rounds < 1:
        parser.error("--seconds must be above 0, and --rounds 1 or more")
    with private_server(options.transport) as (url, circumstances):
        results = list(run(url, options.seconds, options.rounds))
    circumstances |= {"seconds": options.seconds, "rounds": options.rounds}
    if options.json:
        print(json.dumps({"results": [asdict(result) for result in results], "circumstances": circumstances}, indent=2))
    else:
        show(results, circumstances)
    return int(options.check and not all(result.met for result in results))


if __name__ == "__main__":
    sys.exit(main())
