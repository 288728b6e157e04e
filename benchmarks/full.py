"""How fast is it, next to every peer, and next to what the server can do? The answer takes about five minutes.

Writes ``RESULTS.md``, ``results.json`` and ``results.svg`` in this folder, and the README's figures. See README.md in
this folder for what is measured, and how to read it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import redis
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks import ceilings, crowd, http, report, server_stats, workloads
from benchmarks.measuring import (
    CALLERS,
    WARM_UP,
    Circumstances,
    Spread,
    in_turns,
    private_server,
    registered_slot,
)
from benchmarks.report import Comparison, Peer, Report, Row
from benchmarks.worker import Missing, Turn, Worker
from overbooked_lock import LockEngine

OURS, REDIS_PY_ASYNCIO, GLIDE, REDLOCK = "overbooked-lock", "redis-py asyncio", "valkey-glide", "node-redlock"
REDIS_PY, PINGS = "redis-py", "two PINGs"
# Ours first: the others are what it is compared with.
ASYNC = {
    OURS: "benchmarks.peers.ours",
    REDIS_PY_ASYNCIO: "benchmarks.peers.redis_py_asyncio",
    GLIDE: "benchmarks.peers.valkey_glide",
    REDLOCK: "peers/redlock.mjs",
    "coredis": "benchmarks.peers.coredis_lock",
    "pottery AIORedlock": "benchmarks.peers.pottery_aioredlock",
}
SYNC = {
    OURS: "benchmarks.peers.ours_sync",
    REDIS_PY: "benchmarks.peers.redis_py",
    "python-redis-lock": "benchmarks.peers.python_redis_lock",
    "pottery Redlock": "benchmarks.peers.pottery_redlock",
    PINGS: "benchmarks.peers.pings",
}
FEW_SLOTS = 1_000
LISTED_SLOTS = 100_000
BARE_RUNS = 20  # pairs of bare scripts after each of our turns


@dataclass(eq=False)
class Side:
    """A process that is measured, and why it could not be if so."""

    name: str
    worker: Worker
    missing: str | None = None

    def prepare(self, callers: Sequence[int], seconds: float) -> None:
        """Waits until it is connected, and lets it warm up."""
        try:
            self.worker.connect()
            for crowd_size in callers:
                self.worker.turn(slot_names(crowd_size), seconds)
        except Missing as missing:
            self.missing = str(missing)


@dataclass
class ServerWork:
    """What the server did in our turns of many callers: one value a turn."""

    microseconds_a_pair: list[float] = field(default_factory=list)
    bare_microseconds: list[float] = field(default_factory=list)
    """The same for SET NX PX and DEL alone, in scripts for as many slots."""
    slots_a_call: list[float] = field(default_factory=list)
    cpu_percent: list[float] = field(default_factory=list)

    def watch(self, admin: redis.Redis, turn: Callable[[], Turn]) -> Turn:
        server_stats.forget(admin)
        cpu = server_stats.cpu_seconds(admin)
        done = turn()
        self.cpu_percent.append((server_stats.cpu_seconds(admin) - cpu) / done.seconds * 100)
        scripts = server_stats.scripts(admin)
        slots_a_call = 2 * done.pairs / scripts.calls
        self.microseconds_a_pair.append(scripts.microseconds / done.pairs)
        self.slots_a_call.append(slots_a_call)
        self.bare_microseconds.append(ceilings.bare_pair_microseconds(admin, max(1, round(slots_a_call)), BARE_RUNS))
        return done


def slot_names(callers: int) -> list[str]:
    return [f"slot-{number}" for number in range(callers)]


@contextmanager
def started(programs: dict[str, str], url: str, callers: Sequence[int], warm_up: float) -> Iterator[list[Side]]:
    """All sides, connected and warm."""
    with ExitStack() as stack:
        sides = [Side(name, stack.enter_context(Worker(program, url))) for name, program in programs.items()]
        for side in sides:
            side.prepare(callers, warm_up)
        yield sides


def compare(
    title: str,
    unit: Literal["pairs/s", "µs/pair"],
    sides: Sequence[Side],
    measure: Callable[[Side], Turn],
    rounds: int,
) -> Comparison:
    """Measures all sides in turns; the first is ours."""

    def figure(side: Side) -> float:
        seconds = measure(side).seconds_a_pair
        return 1 / seconds if unit == "pairs/s" else seconds * 1_000_000

    ours, *_ = present = [side for side in sides if side.missing is None]
    assert ours.name == OURS, sides[0].missing
    figures = in_turns(present, figure, rounds)
    peers = []
    for side in sides:
        peer = Peer(name=side.name, versions=side.worker.versions, missing=side.missing)
        if side.missing is None:
            peer.figure = Spread.of(figures[side])
            if side is not ours:
                peer.ratio = Spread.of_ratios(figures[ours], figures[side])
        peers.append(peer)
    return Comparison(title=title, unit=unit, peers=peers)


def peers(url: str, seconds: float, rounds: int) -> tuple[list[Comparison], ServerWork]:
    """Side by side: many callers, one, and one thread."""
    work = ServerWork()
    many, one = slot_names(CALLERS), slot_names(1)
    warm_up = min(WARM_UP, seconds)
    with LockEngine.from_url(url) as engine, redis.Redis.from_url(url) as admin:
        engine.create_slots(map(registered_slot, many))

        def of_many(side: Side) -> Turn:
            if side.name == OURS:
                return work.watch(admin, lambda: side.worker.turn(many, seconds))
            return side.worker.turn(many, seconds)

        def of_one(side: Side) -> Turn:
            return side.worker.turn(one, seconds)

        with started(ASYNC, url, (1, CALLERS), warm_up) as sides:
            say(f"lock and unlock, {CALLERS} async callers")
            crowded = compare(f"Async, {CALLERS} callers in one process", "pairs/s", sides, of_many, rounds)
            say("one async caller")
            alone = compare("Async, one caller", "µs/pair", sides, of_one, rounds)
        with started(SYNC, url, (1,), warm_up) as sides:
            say("one thread")
            sync = compare("Sync, one thread", "µs/pair", sides, of_one, rounds)
    return [crowded, alone, sync], work


def ratio_row(what: str, comparison: Comparison, peer: str, floor: float, aim: float) -> Row:
    ratio = comparison.of(peer).ratio
    return Row(
        what=what,
        unit="",
        value=None if ratio is None else ratio.median,
        spread=ratio,
        floor=floor,
        aim=aim,
        less_is_better=comparison.unit == "µs/pair",
    )


def spread_row(
    what: str,
    unit: str,
    spread: Spread,
    floor: float | None,
    aim: float | None,
    *,
    less_is_better: bool = False,
    note: str = "",
) -> Row:
    return Row(
        what=what,
        unit=unit,
        value=spread.median,
        spread=spread,
        floor=floor,
        aim=aim,
        less_is_better=less_is_better,
        note=note,
    )


def peer_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    many, one, sync = comparisons
    pings = sync.of(PINGS).figure
    redis_py = sync.of(REDIS_PY).figure
    rows = [
        ratio_row(f"async, {CALLERS} callers, pairs/s ÷ redis-py asyncio", many, REDIS_PY_ASYNCIO, 7, 10),
        ratio_row("the same ÷ valkey-glide", many, GLIDE, 3.5, 4),
        ratio_row("the same ÷ node-redlock", many, REDLOCK, 1.5, 2),
        ratio_row("async, one caller, time a pair ÷ redis-py asyncio", one, REDIS_PY_ASYNCIO, 1.0, 0.8),
        ratio_row("sync, one thread, time a pair ÷ redis-py", sync, REDIS_PY, 0.9, 0.75),
    ]
    if pings is not None and redis_py is not None:
        rows[-1].note = f"two bare PINGs: {report.number(pings.median / redis_py.median)}"
    return rows


def server_rows(work: ServerWork) -> list[Row]:
    own = spread_row(
        "server time a pair, coalesced", "µs", Spread.of(work.microseconds_a_pair), 14, 10, less_is_better=True,
        note=f"{report.number(Spread.of(work.slots_a_call).median)} slots a call",
    )  # fmt: skip
    ratio = spread_row(
        "the same ÷ bare SET NX PX + DEL in scripts for as many slots", "",
        Spread.of_ratios(work.microseconds_a_pair, work.bare_microseconds), 3, None, less_is_better=True,
        note=f"bare: {report.number(Spread.of(work.bare_microseconds).median)} µs; this floor or the one above",
    )  # fmt: skip
    own.instead, ratio.instead = ratio.reaches(ratio.floor), own.reaches(own.floor)
    cpu = spread_row("server CPU while one Python process drives it", "%", Spread.of(work.cpu_percent), 50, 80)
    return [own, ratio, cpu]


def own_rows(url: str, seconds: float, rounds: int) -> list[Row]:
    say(f"lock_many, {workloads.SEATS} seats")
    row = workloads.lock_a_row(url, seconds * 5)
    say(f"hotspot, {workloads.HOTSPOT_CALLERS:,} callers")
    rush = workloads.rush(url, rounds)
    seats = workloads.SEATS
    return [
        spread_row(
            f"lock_many, {seats} seats, all or nothing, each payload read", "ms", row.with_payload, 2, None,
            less_is_better=True, note=f"{report.number(row.alone.median)} ms before the payloads are read",
        ),
        Row(
            what="the same, slots/s", unit="slots/s", value=seats * 1000 / row.with_payload.median,
            floor=None, aim=100_000, note=f"{seats * 1000 / row.alone.median:,.0f} before the payloads are read",
        ),
        spread_row(f"hotspot, {workloads.HOTSPOT_CALLERS:,} callers on one slot", "answers/s", rush, 40_000, 80_000),
    ]  # fmt: skip


def crowd_rows(slots: int, seconds: float, rounds: int) -> list[Row]:
    say(f"{slots:,} slots, registered and locked")
    few_slots = min(FEW_SLOTS, slots)
    with private_server("tcp") as few, private_server("tcp") as many:
        crowd.hold(few.url, few_slots)
        bytes_a_slot = crowd.hold(many.url, slots)
        with Worker("benchmarks.crowd", few.url) as few_worker, Worker("benchmarks.crowd", many.url) as many_worker:
            for worker in (few_worker, many_worker):
                worker.connect()

            def lost(used: int) -> Spread:
                """The share of the pairs that the crowded server lacks, where its callers use so many of its slots."""
                names_of = {
                    few_worker: crowd.callers_of(few_slots, few_slots),
                    many_worker: crowd.callers_of(used, slots),
                }
                for worker, names in names_of.items():
                    worker.turn(names, 5 * seconds)  # until what registering left behind in the server's heap is gone
                rates = in_turns(
                    (few_worker, many_worker),
                    lambda worker: 1 / worker.turn(names_of[worker], seconds).seconds_a_pair,
                    rounds,
                )
                pairs = zip(rates[many_worker], rates[few_worker], strict=True)
                return Spread.of((1 - many / few) * 100 for many, few in pairs)

            by_reach, by_size = lost(slots), lost(few_slots)
    return [
        spread_row(
            f"{slots:,} slots registered and locked: throughput lost against {few_slots:,}", "%", by_reach, 15, 5,
            less_is_better=True,
        ),
        spread_row(
            f"the same, where callers use the same {few_slots:,} of them on both", "%", by_size, None, 5,
            less_is_better=True,
        ),
        Row(
            what="the same: bytes a held slot, record included", unit="bytes", value=bytes_a_slot, floor=1_200, aim=900,
            less_is_better=True,
        ),
    ]  # fmt: skip


def list_rows(slots: int) -> list[Row]:
    say(f"lists of {slots:,} slots")
    with private_server("tcp") as server:
        lists = workloads.read_lists(server.url, slots)
    none_noted = lists.longest_call is None
    return [
        spread_row(
            f"a page of {slots:,} slots in one resource", "ms", lists.unfiltered, 10, None, less_is_better=True
        ),
        spread_row(
            f"the same, `available` over a day of {min(slots, workloads.SLOTS_A_DAY):,}", "ms",
            lists.available, 30, None, less_is_better=True,
        ),
        Row(
            what="the same, the longest script call", unit="ms", value=lists.longest_call or 1, floor=None, aim=5,
            less_is_better=True, note="none took longer" if none_noted else "",
        ),
    ]  # fmt: skip


def http_rows(seconds: float, rounds: int) -> list[Row]:
    say("locks over HTTP")
    (ours, theirs), ratio, _ = http.compare(seconds, rounds, "none")
    return [
        spread_row(report.HTTP_RATIO, "", ratio, http.TARGET, None),
        Row(what=report.HTTP_RATE, unit="locks/s", value=ours.locks_per_second, floor=None, aim=10_000),
        Row(
            what="the same, p99 ÷ the reference app's", unit="", value=ours.p99_ms / theirs.p99_ms, floor=1, aim=None,
            less_is_better=True, note=f"{report.number(ours.p99_ms)} ms",
        ),
    ]  # fmt: skip


def measure(
    seconds: float, rounds: int, slots: int
) -> tuple[list[Row], list[Comparison], list[report.Ceiling], Circumstances]:
    with private_server("tcp") as (url, circumstances):
        comparisons, work = peers(url, seconds, rounds)
        rows = peer_rows(comparisons)
        rows[3:3] = server_rows(work)
        rows += own_rows(url, seconds, rounds)
    say("ceilings")
    with private_server("tcp") as (url, _):
        found = ceilings.measure(url, seconds)
    rows += crowd_rows(slots, seconds, 2 * rounds)  # a difference of two rates moves more than either
    rows += list_rows(min(slots, LISTED_SLOTS))
    rows += http_rows(seconds * 2, max(1, rounds // 3))
    return rows, comparisons, found, circumstances


def say(what: str) -> None:
    """Five minutes are long: tells what is measured now."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def show(found: Report) -> None:
    table = Table(box=SIMPLE, pad_edge=False)
    for heading in ("what", "found", "floor", "aim", ""):
        table.add_column(heading, justify="right" if heading in ("found", "floor", "aim") else "left")
    for row in found.rows:
        table.add_row(row.what, row.value_text(), row.limit_text(row.floor), row.limit_text(row.aim), row.verdict)
    console = Console(highlight=False, width=120)
    console.print(table)
    for comparison in found.comparisons:
        table = Table(title=comparison.title, title_justify="left", box=SIMPLE, pad_edge=False)
        for heading in ("", comparison.unit, "ours ÷ this"):
            table.add_column(heading, justify="left" if not heading else "right")
        for peer in comparison.peers:
            figure = f"missing: {peer.missing}" if peer.figure is None else report.number(peer.figure.median)
            table.add_row(peer.name, figure, "" if peer.ratio is None else report.number(peer.ratio.median))
        console.print(table)
    print(", ".join(f"{name} {value}" for name, value in found.circumstances.items()))


def machine() -> Circumstances:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "machine": f"{platform.system()} {platform.machine()}{f', {model}' if model else ''}",
        "load before": round(os.getloadavg()[0], 1),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.4, help="per measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each side (default: %(default)s)")
    parser.add_argument(
        "--slots", type=int, default=1_000_000, help="held at once in the largest crowd (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=report.FOLDER, help="the folder to write to (default: benchmarks/)"
    )
    parser.add_argument("--readme", type=Path, default=report.ROOT / "README.md", help="where the figures are put, too")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a floor is missed")
    options = parser.parse_args(argv)
    if options.seconds <= 0 or options.rounds < 1 or options.slots < FEW_SLOTS:
        parser.error(f"--seconds must be above 0, --rounds 1 or more, and --slots {FEW_SLOTS} or more")
    about = machine()
    rows, comparisons, found, circumstances = measure(options.seconds, options.rounds, options.slots)
    written = " ".join(f"--{name} {getattr(options, name):g}" for name in ("seconds", "rounds"))
    result = Report(
        command=f"python -m benchmarks.full {written} --slots {options.slots}",
        date=datetime.now(UTC).date().isoformat(),
        circumstances=about | circumstances,
        rows=rows,
        comparisons=comparisons,
        ceilings=found,
    )
    report.write(result, options.results, options.readme)
    if options.json:
        print(result.model_dump_json(indent=2))
    else:
        show(result)
    return int(options.check and bool(result.missed))


if __name__ == "__main__":
    sys.exit(main())
