"""python-redis-lock: a lock for each use, with an expiry, acquired without blocking.

https://python-redis-lock.readthedocs.io/en/latest/readme.html#usage
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis
import redis_lock

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("python-redis-lock", "redis", "hiredis")


@contextmanager
def connect(url: str, _callers: int) -> Iterator[Callable[[str], None]]:
    expire = int(LOCK_FOR.total_seconds())
    with redis.Redis.from_url(url) as client:

        def pair(name: str) -> None:
            lock = redis_lock.Lock(client, f"python-redis-lock:{name}", expire=expire)
            assert lock.acquire(blocking=False)
            lock.release()

        yield pair
