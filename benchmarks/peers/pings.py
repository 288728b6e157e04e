"""No peer: two PINGs through redis-py, the least that a lock and its unlock through it can take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

PACKAGES = ("redis", "hiredis")


@contextmanager
def connect(url: str, _callers: int) -> Iterator[Callable[[str], None]]:
    with redis.Redis.from_url(url) as client:

        def pair(_name: str) -> None:
            client.ping()
            client.ping()

        yield pair
