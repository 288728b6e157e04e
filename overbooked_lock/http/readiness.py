"""Whether the store would take a lock now."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import timedelta
from typing import Any

from redis.exceptions import ResponseError

from overbooked_lock import AsyncLockEngine, store
from overbooked_lock.errors import OverbookedError, StoreUnavailable


class StoreEvicts(OverbookedError):
    """The store may drop live locks when its memory is short."""

    code, status = "E070", 503

    def __init__(self, policy: str) -> None:
        super().__init__(f"the lock store may drop live locks: set its maxmemory-policy to noeviction, not {policy}")


class Readiness:
    """Asks the store, at most once a second: the question is open to everybody."""

    EVERY = 1.0
    PATIENCE = 5.0

    def __init__(self, engine: AsyncLockEngine) -> None:
        self._engine = engine
        self._ready_until = 0.0

    async def check(self) -> None:
        """Raises StoreUnavailable or StoreEvicts."""
        if time.monotonic() < self._ready_until:
            return
        # A write: a replica, or a store that can't save, reads as well as ever.
        await self._engine.keep_answer(f"readyz-{uuid.uuid4()}", "", keep_for=timedelta(milliseconds=1))
        policy = await self._eviction_policy()
        if policy != "noeviction":
            raise StoreEvicts(policy)
        self._ready_until = time.monotonic() + self.EVERY

    async def _eviction_policy(self) -> str:
        pool: Any = self._engine._coalescer._pool  # noqa: SLF001 - our own
        connection = pool.connection_class(**store.connection_options(pool.connection_kwargs, self.PATIENCE))
        try:
            async with asyncio.timeout(self.PATIENCE):
                await connection.connect()
                await connection.send_command("INFO", "memory")
                info: bytes = await connection.read_response()
        except ResponseError:
            return "noeviction"  # who may not ask has seen all there is to see
        except store.FAILURES as error:
            raise StoreUnavailable("not_applied", "it did not tell of its memory") from error
        finally:
            await connection.disconnect(nowait=True)
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        return facts.get("maxmemory_policy", "noeviction")
