"""API keys: what they are, their verbs, what goes to their scripts, and what the replies mean."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Literal, NamedTuple, cast

from overbooked_lock import arguments, scripts
from overbooked_lock.calls import Call, Reply, Settings, fields, own_removal
from overbooked_lock.operations import CHUNK, Operations

KeyKind = Literal["public", "secret"]


@dataclass(frozen=True, slots=True)
class ApiKeyInfo:
    """An API key, without what opens doors.

    Attributes:
        id: Names it, to revoke it: how the SHA-256 of the key begins.
        kind: ``public`` may be seen by anybody, in a browser; ``secret`` is for servers.
        name: What people call it; may be empty, and need not be the only one of that name.
        created_at: When it was made, by Redis' clock.
    """

    id: str
    kind: KeyKind
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey(ApiKeyInfo):
    """A new API key, with the key itself: ``pk_`` or ``sk_`` and 64 hex digits. Nothing can show it again.

    It is not in the ``repr``.
    """

    key: str = field(repr=False)


class ApiKeys(Operations):
    """The verbs of API keys."""

    async def create_api_key(self, kind: KeyKind, *, name: str = "") -> ApiKey:
        """Makes an API key, and registers its hash.

        Redis keeps no key, so this answer is the only place that ever shows it.

        Args:
            kind: ``"public"`` may be seen by anybody, ``"secret"`` is for servers.
            name: What people call it, at most 100 characters; several keys may share one.

        Raises InvalidArgument, StoreUnavailable.
        """
        request_kind = arguments.kind_of_key(kind)
        # Made before it is sent: however often that is, it is one key.
        key = arguments.new_api_key(request_kind)
        request = KeyRequest(_key_hash(key), request_kind, arguments.name(name))
        info = await self._one(create_api_key, request)
        assert info is not None  # noqa: S101 - for the type: the record is the one that this call wrote
        return ApiKey(info.id, info.kind, info.name, info.created_at, key)

    async def find_api_key(self, key: str) -> ApiKeyInfo | None:
        """Which API key this is; None if there is none, or the text can't be one.

        Raises StoreUnavailable.
        """
        if not arguments.is_api_key(key):
            return None
        return await self._one(find_api_key, _key_hash(key))

    async def list_api_keys(self) -> list[ApiKeyInfo]:
        """All API keys, the oldest first. Raises StoreUnavailable."""
        infos: dict[str, ApiKeyInfo] = {}
        cursor = 0
        while True:
            found, cursor = await self._one(list_api_keys, (cursor, CHUNK), alone=True)
            infos.update((info.id, info) for info in found)
            if not cursor:
                return sorted(infos.values(), key=lambda info: (info.created_at, info.id))

    async def revoke_api_key(self, key_id: str) -> bool:
        """Removes an API key, at once. True if it was there.

        Raises InvalidArgument if this is no id, StoreUnavailable.
        """
        return await self._one(revoke_api_key, arguments.api_key_id(key_id))


def _key_hash(key: str) -> str:
    # The store keeps this, and looks keys up by it: what leaks from the store opens nothing, and how long a look-up
    # takes tells of the hash and not of the key. A key of 256 random bits needs no slower hash.
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRequest(NamedTuple):
    """An API key to be registered: the SHA-256 of it, and never the key."""

    key_hash: str
    kind: Literal["P", "S"]
    name: str


def create_api_key(settings: Settings, requests: Sequence[KeyRequest]) -> Call[ApiKeyInfo | None]:
    hashes = [request.key_hash for request in requests]
    return Call(scripts.CREATE_API_KEY, [settings.keys.api_keys], fields(requests), partial(_api_keys, hashes))


def find_api_key(settings: Settings, requests: Sequence[str]) -> Call[ApiKeyInfo | None]:
    """Takes hashes; the outcome is None where no API key has it."""
    return Call(scripts.FIND_API_KEY, [settings.keys.api_keys], requests, partial(_api_keys, requests))


def list_api_keys(settings: Settings, requests: Sequence[tuple[int, int]]) -> Call[tuple[list[ApiKeyInfo], int]]:
    """Takes one (cursor, chunk); the outcome is (API keys, next cursor)."""

    def parse(reply: Reply, _: float) -> list[tuple[list[ApiKeyInfo], int]]:
        infos = (_api_key(key_hash.decode(), record) for key_hash, record in zip(reply[1::2], reply[2::2], strict=True))
        return [([info for info in infos if info is not None], int(reply[0]))]

    return Call(scripts.LIST_API_KEYS, [settings.keys.api_keys], requests[0], parse)


def revoke_api_key(settings: Settings, requests: Sequence[str]) -> Call[bool]:
    """Takes ids; the outcome is True for an API key that this call removed, False for one that was not there."""

    def parse(reply: Reply, _: float) -> list[bool]:
        return [tag == b"revoked" for tag in reply]

    return Call(scripts.REVOKE_API_KEY, [settings.keys.api_keys], requests, parse, own_removal)


def _api_keys(hashes: Sequence[str], reply: Reply, _: float) -> list[ApiKeyInfo | None]:
    return [_api_key(key_hash, record) for key_hash, record in zip(hashes, reply, strict=True)]


def _api_key(key_hash: str, record: bytes | None) -> ApiKeyInfo | None:
    """None for a record that we did not write, too: it opens nothing."""
    try:
        version_and_kind, created_ms, name = (record or b"").decode().split(" ", 2)
        kind = {"1P": "public", "1S": "secret"}[version_and_kind]
        return ApiKeyInfo(key_hash[:16], cast("KeyKind", kind), name, arguments.from_milliseconds(int(created_ms)))
    except (ValueError, KeyError, OverflowError):
        return None
