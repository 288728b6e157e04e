"""pottery's Redlock, with one master: "It's safest to instantiate a new Redlock object every time".

https://github.com/brainix/pottery#redlock
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pottery
import redis

from benchmarks.measuring import LOCK_FOR

PACKAGES = ("pottery", "redis", "hiredis")


@contextmanager
def connect(url: str, _callers: int) -> Iterator[Callable[[str], None]]:
    with redis.Redis.from_url(url) as client:

        def pair(name: str) -> None:
            lock = pottery.Redlock(key=name, masters={client}, auto_release_time=LOCK_FOR.total_seconds())
            assert lock.acquire(blocking=False)
            lock.release()

        yield pair
