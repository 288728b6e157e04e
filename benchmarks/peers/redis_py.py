"""redis-py's Lock, sync: a lock for each use, by ``client.lock`` with a timeout, as its documentation shows.

https://redis.readthedocs.io/en/stable/lock.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("redis", "hiredis")


@contextmanager
def connect(url: str, _callers: int) -> Iterator[Callable[[str], None]]:
    with redis.Redis.from_url(url) as client:

        def pair(name: str) -> None:
            lock = client.lock(f"redis-py:{name}", timeout=LOCK_FOR.total_seconds())
            assert lock.acquire(blocking=False)
            lock.release()

        yield pair
