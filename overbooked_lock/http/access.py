"""Who may do what, and how often: API keys, rights, and the limits of public keys."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Literal

from overbooked_lock import AsyncLockEngine
from overbooked_lock.http.envelopes import ApiKeyInvalid, ApiKeyMissing, SecretKeyNeeded, TooManyRequests
from overbooked_lock.models import ApiKeyInfo

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
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise ApiKeyMissing
        if not _is_key(secret):
            raise ApiKeyInvalid
        digest = hashlib.sha256(secret.encode()).digest()
        known = self._known.get(digest)
        if known is None or known[0] < time.monotonic():
            known = time.monotonic() + self.REMEMBERED, await self._engine.find_api_key(secret)
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[digest] = known
        if known[1] is None:
            raise ApiKeyInvalid
        return known[1]


def check_rights(rights: Rights, key: ApiKeyInfo, *, strict: bool) -> None:
    """Raises SecretKeyNeeded."""
    if key.kind == "public" and (rights == "secret" or (strict and rights == "any, but strict")):
        raise SecretKeyNeeded


class RateLimit:
    """An allowance of ``requests`` for each holder, which fills up again evenly within ``seconds``.

    This is the generic cell rate algorithm: one number a holder, when its allowance will be whole again.
    """

    MOST = 100_000

    def __init__(self, requests: int, seconds: float) -> None:
        self._step = seconds / requests
        self._most_ahead = seconds - self._step
        self._whole_at: dict[str, float] = {}

    def take(self, holder: str) -> None:
        """Counts a request. Raises TooManyRequests."""
        now = time.monotonic()
        whole_at = max(self._whole_at.get(holder, 0.0), now)
        if whole_at - now > self._most_ahead:
            raise TooManyRequests(whole_at - now - self._most_ahead)
        if holder not in self._whole_at and len(self._whole_at) >= self.MOST:
            self._forget(now)
        self._whole_at[holder] = whole_at + self._step

    def _forget(self, now: float) -> None:
        # Those who have not asked for long are as good as new; if everybody has, all begin anew.
        self._whole_at = {holder: at for holder, at in self._whole_at.items() if at > now}
        if len(self._whole_at) >= self.MOST:
            self._whole_at.clear()
