"""One process of the concurrency test: threads with a sync engine, and tasks with an async one, on a few slots.

    python -m chaos.worker <url> <namespace> <journal> <name> <seed> <slot> <slot> …

It works until its input ends, and writes all that it does into its journal.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import secrets
import sys
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from overbooked_lock import (
    AsyncLockEngine,
    Lock,
    LockEngine,
    LockKeyInvalid,
    LockLost,
    SlotLocked,
    StoreUnavailable,
    Unlocked,
)

from .history import Journal, Outcome, Verb

THREADS, TASKS = 2, 3
SHORTEST, LONGEST = 0.2, 0.5
"""Seconds that a lock lasts."""

WRONG_KEY = "a key that never locked anything"


class Call(NamedTuple):
    verb: Verb
    slot: str
    key: str
    token: int | None = None
    asked: float | None = None
    wait: float | None = None

    def options(self) -> dict[str, Any]:
        durations = {"lock_for": self.asked, "wait": self.wait}
        options: dict[str, Any] = {
            name: timedelta(seconds=value) for name, value in durations.items() if value is not None
        }
        if self.token is not None:
            options["fencing_token"] = self.token
        return options | {"lock_key": self.key}


class Pause(NamedTuple):
    seconds: float


Actor = Generator[Call | Pause, Any, None]


def act(draw: random.Random, slots: list[str], over: threading.Event) -> Actor:
    """What one client does, again and again: tries to lock a slot, works on what it holds, and leaves it."""
    while not over.is_set():
        slot = draw.choice(slots)
        if draw.random() < 0.05:
            yield Call(draw.choice(["unlock", "check"]), slot, WRONG_KEY)
            yield Call("extend", slot, WRONG_KEY, asked=LONGEST)
        key = secrets.token_hex(8)
        asked = draw.uniform(SHORTEST, LONGEST)
        wait = draw.uniform(0.01, 0.1) if draw.random() < 0.2 else None
        lock = yield Call("lock", slot, key, asked=asked, wait=wait)
        if not isinstance(lock, Lock):
            yield Pause(draw.uniform(0.01, 0.06))
            continue
        yield from _hold(draw, lock, asked)


def _hold(draw: random.Random, lock: Lock, asked: float) -> Actor:
    slot, key, token = lock.slot_id, lock.lock_key, lock.fencing_token
    for _ in range(draw.randrange(4)):
        yield Pause(draw.uniform(0.0, 0.1))
        what = draw.random()
        if what < 0.4:
            yield Call("extend", slot, key, token, asked=asked)
        elif what < 0.8:
            yield Call("check", slot, key, token)
        else:
            yield Call("lock", slot, key, asked=asked)
    yield Pause(draw.uniform(0.0, 0.1))
    if draw.random() < 0.75:  # the rest end by their date, as those of a client that crashed
        yield Call("unlock", slot, key, token)
        if draw.random() < 0.3:
            yield Call("extend", slot, key, token, asked=asked)


def judge(call: Call, result: object) -> tuple[Outcome, int, float]:
    """The outcome as the journal has it, with the fencing token and the caller's own deadline."""
    match result:
        case Lock():
            return "ok", result.fencing_token, time.monotonic() + result.remaining().total_seconds()
        case Unlocked(released=True):
            return "ok", call.token or 0, 0.0
        case None | Unlocked() | SlotLocked() | LockLost() | LockKeyInvalid():
            return "refused", 0, 0.0
        case StoreUnavailable():
            return result.outcome, 0, 0.0
    raise AssertionError(f"{call.verb}: {result!r}")


async def drive(actor: Actor, name: str, engine: LockEngine | AsyncLockEngine, journal: Journal) -> None:
    """Carries out what an actor wants, and writes it down. With a sync engine it never lets the loop run."""
    result: Any = None
    while True:
        try:
            step = actor.send(result)
        except StopIteration:
            return
        if isinstance(step, Pause):
            if isinstance(engine, LockEngine):
                time.sleep(step.seconds)  # noqa: ASYNC251 - in a thread of its own, with nothing else to run
            else:
                await asyncio.sleep(step.seconds)
            continue
        number = journal.called(name, step.verb, step.slot, step.key, step.asked or 0.0)
        try:
            result = getattr(engine, step.verb)(step.slot, **step.options())
            if inspect.isawaitable(result):
                result = await result
        except (SlotLocked, LockLost, LockKeyInvalid, StoreUnavailable) as error:
            result = error
        journal.returned(number, *judge(step, result))


async def work(url: str, namespace: str, journal: Journal, name: str, seed: int, slots: list[str]) -> None:
    over = threading.Event()
    options: dict[str, Any] = {"namespace": namespace, "unregistered": "allow", "timeout": timedelta(seconds=0.5)}

    def actor(number: int) -> Actor:
        return act(random.Random(f"{seed}.{number}"), slots, over)

    def run_until_the_input_ends() -> None:
        sys.stdin.read()
        over.set()

    with LockEngine.from_url(url, **options) as engine:
        async with AsyncLockEngine.from_url(url, **options) as async_engine, asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(run_until_the_input_ends))
            for number in range(THREADS):
                driven = drive(actor(number), f"{name}.thread-{number}", engine, journal)
                group.create_task(asyncio.to_thread(asyncio.run, driven))
            for number in range(THREADS, THREADS + TASKS):
                group.create_task(drive(actor(number), f"{name}.task-{number}", async_engine, journal))


def main() -> None:
    url, namespace, path, name, seed, *slots = sys.argv[1:]
    journal = Journal(Path(path))
    asyncio.run(work(url, namespace, journal, name, int(seed), slots))
    journal.close()


if __name__ == "__main__":
    main()
