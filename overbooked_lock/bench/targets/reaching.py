"""Whether a target is there and of use, asked before anything is made in it; if not, why, and what to try."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from overbooked_lock import store
from overbooked_lock.bench.targets import Where
from overbooked_lock.bench.targets.base import as_ours
from overbooked_lock.errors import InvalidArgument, OverbookedError, StoreUnavailable

_PATIENCE_S = 5.0

_OF_REDIS = {
    "Connect call failed|refused": ("nothing listens there", "Is the server running, and are host and port right?"),
    "No such file": ("there is no such file", "The paths of a socket and of certificates are those on this machine."),
    "nodename|Name or service|name resolution": ("no host of this name is known", "Is it spelled right?"),
    "asks for a password": (
        "it asks for a password",
        "Put it into the URL: redis://:PASSWORD@HOST, or redis://USER:PASSWORD@HOST.",
    ),
    "password are wrong": ("user name or password are wrong", "The URL takes both: redis://USER:PASSWORD@HOST."),
    "certificate verify failed: ([^(]*[^( .])": (
        r"its certificate is not accepted (\1)",
        "Name who signed it: rediss://HOST?ssl_ca_certs=FILE, and the host as the certificate does.",
    ),
    "WRONG_VERSION_NUMBER|record layer": ("it does not speak TLS", "Try redis:// in the place of rediss://."),
    "Protocol error|reset by peer|closed by|Connection lost|Broken pipe|writing to socket": (
        "what answers there does not speak as a Redis does",
        "If it is one that wants TLS, try rediss://; a server that speaks the API is asked as http://.",
    ),
    "in time": ("it did not answer in time", "Is a firewall on the way, or does rediss:// meet a server without TLS?"),
    "Redis Cluster": (
        "it is a Redis Cluster, which is not supported",
        "Give a Redis or Valkey that is not in cluster mode.",
    ),
    "no sidecar of the name": (
        "no sidecar of this name hears there",
        "Start one: overbooked-lock sidecar --name NAME --url URL.",
    ),
}
_OF_HTTP = {
    "ConnectError": ("no connection comes about", "Is the server running, and are host, port and http or https right?"),
    "Timeout": ("it did not answer in time", "Is a firewall on the way?"),
    "does not speak|the server did not answer": (
        "what answers there does not speak the Overbooked API",
        "Give the URL that overbooked-lock serve prints; a Redis is asked as redis://.",
    ),
    "^E015|^E055|^E056": (
        "it does not take the API key, or not as a secret one",
        "Make one: overbooked-lock keys create --help.",
    ),
}


async def reach(where: Where) -> float:
    """What the store's clock shows, in seconds since 1970, less our monotonic clock; 0 behind HTTP.

    Raises StoreUnavailable, which says what was tried, what came back and what to try next, and InvalidArgument for a
    URL that redis-py can't read.
    """
    try:
        offset_s = 0.0 if where.kind == "http" else await _store_offset_s(where)
        async with where.open(-1, 1) as target:
            await target.ping()
    except InvalidArgument:
        raise
    except OverbookedError as error:
        said = re.sub(r"^the lock store is unavailable \((.*)\): .*", r"\1", str(error), flags=re.DOTALL)
        why, advice = _explained(said, _OF_HTTP if where.kind == "http" else _OF_REDIS)
        unusable = StoreUnavailable("not_applied", why)
        unusable.args = (f"{where.address} can't be used: {why}. {advice}",)
        raise unusable from error
    return offset_s


def _explained(said: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    for pattern, (why, advice) in known.items():
        if found := re.search(pattern, said):
            return found.expand(why), advice
    return said, "Are the database and the rights of its user as they should be, and what does its log say?"


async def _store_offset_s(where: Where) -> float:
    once: dict[str, Any] = {
        "socket_timeout": _PATIENCE_S,
        "socket_connect_timeout": _PATIENCE_S,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # HELLO of 3 takes a missing password for a wrong one
    }
    offsets = []
    client: redis.asyncio.Redis = store.client_of_url(where.url, redis.asyncio.Redis, **once)
    async with client:
        with as_ours():
            for _ in range(5):
                asked = time.monotonic()
                seconds, microseconds = await client.time()
                offsets.append((time.monotonic() - asked, seconds + microseconds / 1e6 - asked))
    # Of the quickest answer, half of whose way lies before it.
    took, offset = min(offsets)
    return offset - took / 2
