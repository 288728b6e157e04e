"""A request as handlers see it: read from ASGI, with nothing taken on trust."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from overbooked_lock import arguments
from overbooked_lock.errors import InvalidArgument

T = TypeVar("T")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_BODY = 65_536
"""Bytes."""

BODY_PATIENCE = 10.0
"""Seconds that a body may take to arrive."""

_JSON = b"application/json"
_is_request_id = re.compile(rb"[!-~]{1,128}").fullmatch
_is_idempotency_key = re.compile(r"[!-~]{1,255}").fullmatch


ABORT = "overbooked_lock.abort"
"""Under this name our server leaves in the scope what cuts a connection."""


class Disconnected(Exception):
    """The client went away before its request was complete."""


class Request:
    """One request.

    Attributes:
        id: From ``X-Request-Id`` if that is 1 to 128 visible ASCII characters, else made here.
        method: ``GET`` and so on; what is asked with HEAD is answered as GET.
        wants_body: False for HEAD.
        segments: The path below the root it is mounted at, in its parts, still percent-encoded.
        address: Where it comes from, behind the proxies that are trusted. IPv6 without what a client chooses: its /64.
    """

    def __init__(self, scope: Scope, receive: Receive, trusted_proxies: Sequence[Network]) -> None:
        self._receive = receive
        self._scope = scope
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self._headers.get(b"x-request-id")
        self.id = given.decode() if given is not None and _is_request_id(given) else secrets.token_hex(16)
        self.method: str = "GET" if scope["method"] == "HEAD" else scope["method"]
        self.wants_body: bool = scope["method"] != "HEAD"
        self.segments = _segments(scope)
        self.address = _address(scope, trusted_proxies)

    def header(self, name: bytes) -> str | None:
        """A header by its lower-case name. Browsers send Latin-1, everything else UTF-8."""
        value = self._headers.get(name)
        if value is None:
            return None
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.decode("latin-1")

    @property
    def item_id(self) -> str:
        """The id in the path. Raises InvalidArgument."""
        segment = self.segments[1]
        try:
            if "%" in segment:
                segment = unquote_to_bytes(segment).decode()
            return arguments.slot_id(segment, "id")
        except UnicodeDecodeError:
            raise InvalidArgument("id", "must be UTF-8, percent-encoded") from None

    @property
    def lock_key(self) -> str | None:
        """The holder's key from ``X-Lock-Key``. Raises InvalidArgument."""
        key = self.header(b"x-lock-key")
        if key is None or 1 <= len(key) <= 255:
            return key
        raise InvalidArgument("X-Lock-Key", "must be 1 to 255 characters")

    @property
    def idempotency_key(self) -> str | None:
        """``Idempotency-Key``. Raises InvalidArgument."""
        key = self.header(b"idempotency-key")
        if key is None or _is_idempotency_key(key):
            return key
        raise InvalidArgument("Idempotency-Key", "must be 1 to 255 visible ASCII characters")

    @property
    def came_directly_from_here(self) -> bool:
        """Whether a process of this machine sent it, and no proxy passed it on."""
        client = self._scope.get("client")
        forwarded = b"x-forwarded-for" in self._headers or b"forwarded" in self._headers
        return client is not None and not forwarded and _ip(client[0]).is_loopback

    def query(self) -> dict[str, str]:
        """The parameters in the URL. Raises InvalidArgument, also for one that comes twice."""
        try:
            pairs = parse_qsl(
                self._scope["query_string"].decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100
            )
        except ValueError:
            raise InvalidArgument("query", "must be UTF-8, percent-encoded, with at most 100 parameters") from None
        given = dict(pairs)
        if len(given) < len(pairs):
            raise InvalidArgument("query", "must have each parameter once")
        return given

    async def body(self) -> bytes:
        """The whole body. Raises InvalidArgument if it is too long, before it is read whole, or too slow."""
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 9 or int(length) > MAX_BODY:
            raise _too_long()
        reading = self._whole()
        try:
            # Mostly it is all there. A timer would take longer than to read it, and is set only if there is a wait.
            waits_for = reading.send(None)
        except StopIteration as whole:
            body: bytes = whole.value
        else:
            body = await self._rest(reading, waits_for)
        if len(body) > MAX_BODY:
            raise _too_long()
        if body and not _is_json(self._headers.get(b"content-type", _JSON)):
            raise InvalidArgument("Content-Type", "must be application/json")
        return body

    async def _rest(self, reading: Coroutine[Any, None, bytes], waits_for: Any) -> bytes:
        # From the first byte on: else one that never comes is waited for, for ever.
        try:
            async with asyncio.timeout(BODY_PATIENCE):
                return await _resumed(reading, waits_for)
        except TimeoutError:
            raise InvalidArgument("body", f"must arrive within {BODY_PATIENCE:g} s") from None

    async def gone(self) -> None:
        """Returns when the client has hung up."""
        with contextlib.suppress(Disconnected):
            while True:
                await self._next()

    def abort(self) -> None:
        """Cuts the connection, if the server is ours: what nobody reads would else be kept for ever."""
        if ABORT in self._scope:
            self._scope[ABORT]()

    async def _whole(self) -> bytes:
        message = await self._next()
        first: bytes = message.get("body", b"")
        if not message.get("more_body"):
            return first  # nearly always
        body = bytearray(first)
        while message.get("more_body"):
            if len(body) > MAX_BODY:
                raise _too_long()
            message = await self._next()
            body += message.get("body", b"")
        return bytes(body)

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        return message


@types.coroutine
def _resumed(begun: Coroutine[Any, None, T], waits_for: Any) -> Generator[Any, None, T]:
    """Awaits the rest of a coroutine that was begun by hand, and waits for what it gave then."""
    try:
        while True:
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is for the coroutine to see
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(None)
    except StopIteration as end:
        return cast("T", end.value)


def _too_long() -> InvalidArgument:
    return InvalidArgument("body", f"must be at most {MAX_BODY:,} bytes")


def _is_json(kind: bytes) -> bool:
    if kind == _JSON:
        return True  # nearly always
    kind = kind.split(b";")[0].strip().lower()
    return kind == _JSON or kind.endswith(b"+json")


def _segments(scope: Scope) -> list[str]:
    # Where it is mounted is known decoded, the path is needed as it came: an id may hold an encoded slash.
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root: str = scope.get("root_path", "").rstrip("/")
    parts = raw.decode("latin-1").split("/")[1:]
    return parts[root.count("/") :] if root and scope["path"].startswith(root) else parts


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ipaddress.IPv6Address(0)  # a Unix socket, or what a proxy made up
    return getattr(address, "ipv4_mapped", None) or address


def _address(scope: Scope, trusted: Sequence[Network]) -> str:
    client = scope.get("client")
    peer = client[0] if client else ""
    if not trusted and ":" not in peer:
        return peer  # nearly always
    address = _ip(peer)
    if _is_trusted(address, trusted):
        # Each proxy adds whom it heard from at the right: what stands left of the first stranger, a stranger wrote.
        lines = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-forwarded-for"]
        for hop in reversed(",".join(lines).split(",") if lines else []):
            address = _ip(hop.strip())
            if not _is_trusted(address, trusted):
                break
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _is_trusted(address: ipaddress.IPv4Address | ipaddress.IPv6Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)
