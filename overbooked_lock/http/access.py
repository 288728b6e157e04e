"""Who may do what, and how often: API keys, rights, and the limits of public keys."""

from __future__ import annotations

import hashlib
import re
import time
from datetime import timedelta
from typing import Literal

from throttled import MemoryStore, Throttled
from throttled.rate_limiter import per_duration

from overbooked_lock import AsyncLockEngine
from overbooked_lock.api_keys import ApiKeyInfo
from overbooked_lock.http.envelopes import ApiKeyInvalid, ApiKeyMissing, SecretKeyNeeded, TooManyRequests

Rights = Literal["any", "any, but strict", "secret"]
"""Which keys may call an endpoint: any, any unless the server is strict, a secret key."""

_is_key = re.compile(r"(?:pk|sk)_[0-9a-f]{64}").fullmatch


class Keyring:
    """The API keys of an engine, remembered for two seconds: so long does one live after it was revoked."""

    REMEMBERED = 2.0
    MOST = 10_000

    def __init__(self, engine: AsyncLockEngine) -> None:
        self._engine = engine
        self._known: dict[bytes, tuple[float, ApiKeyInfo | None]] = {}

    async def identify(self, authorization: str | None) -> ApiKeyInfo:
        """The key in the ``Authorization`` header. Raises ApiKeyMissing, ApiKeyInvalid, StoreUnavailable."""
        if authorization is None:
            raise ApiKeyMissing
        digest = hashlib.sha256(authorization.encode()).digest()  # not the key itself: it stays here for long
        known = self._known.get(digest)
        if known is None or known[0] < time.monotonic():
            known = time.monotonic() + self.REMEMBERED, await self._engine.find_api_key(_key_in(authorization))
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[digest] = known
        if known[1] is None:
            raise ApiKeyInvalid
        return known[1]


def _key_in(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise ApiKeyMissing
    if not _is_key(key):
        raise ApiKeyInvalid
    return key


def check_rights(rights: Rights, key: ApiKeyInfo, *, strict: bool) -> None:
    """Raises SecretKeyNeeded."""
    if key.kind == "public" and (rights == "secret" or (strict and rights == "any, but strict")):
        raise SecretKeyNeeded


class RateLimit:
    """An allowance of ``requests`` for each holder, which fills up again evenly within ``seconds``.

    Kept in this process, so it costs no round trip; several workers have one each.
    """

    MOST = 100_000  # holders; those who asked longest ago are forgotten first

    def __init__(self, requests: int, seconds: int) -> None:
        quota = per_duration(timedelta(seconds=seconds), requests, burst=requests)
        self._allowance = Throttled(using="gcra", quota=quota, store=MemoryStore(options={"MAX_SIZE": self.MOST}))

    def take(self, holder: str) -> None:
        """Counts a request. Raises TooManyRequests."""
        taken = self._allowance.limit(holder)
        if taken.limited:
            raise TooManyRequests(taken.state.retry_after)
