"""One process of the fair waiting test: waiters of both engines in one slot's line, until each has had it.

    python -m chaos.fair_worker <url> <namespace> <journal> <name> <count> <slot>

Whoever gets the slot writes its key and its fencing token into the journal, works a moment, and unlocks.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from overbooked_lock import AsyncLockEngine, Lock, LockEngine

WORK = 0.03
"""Seconds that each has the slot."""


async def work(url: str, namespace: str, journal: Path, name: str, count: int, slot: str) -> None:
    options: dict[str, Any] = {"namespace": namespace, "unregistered": "allow"}
    asked: dict[str, Any] = {"lock_for": timedelta(seconds=1), "wait": timedelta(seconds=60), "fair": True}

    @contextmanager
    def noted(lock: Lock) -> Iterator[None]:
        with journal.open("a") as file:
            file.write(f"{lock.lock_key} {lock.fencing_token}\n")
        yield

    def wait(engine: LockEngine, key: str) -> None:
        lock = engine.lock(slot, lock_key=key, **asked)
        with noted(lock):
            time.sleep(WORK)
        engine.unlock(lock)

    async def wait_async(engine: AsyncLockEngine, key: str) -> None:
        lock = await engine.lock(slot, lock_key=key, **asked)
        with noted(lock):
            await asyncio.sleep(WORK)
        await engine.unlock(lock)

    with LockEngine.from_url(url, **options) as engine:
        async with AsyncLockEngine.from_url(url, **options) as async_engine, asyncio.TaskGroup() as group:
            for number in range(count):
                key = f"{name}.{number}"
                group.create_task(wait_async(async_engine, key) if number % 2 else asyncio.to_thread(wait, engine, key))


def main() -> None:
    url, namespace, journal, name, count, slot = sys.argv[1:]
    asyncio.run(work(url, namespace, Path(journal), name, int(count), slot))


if __name__ == "__main__":
    main()
