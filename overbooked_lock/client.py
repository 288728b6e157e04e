"""A client for a server that speaks the Overbooked API: ours (``overbooked-lock serve``), or the published one.

Its shape is that of the published JavaScript client::

    overbooked = Overbooked(secret_key="sk_…", base_url="http://127.0.0.1:8000")
    result = overbooked.slot.lock(slot_id, lock_until=until, lock_key=key)
    result.data, result.error, result.meta, result.success

:class:`AsyncOverbooked` is the same with ``await``. Each method is written once: it describes a request, and the client
that it belongs to sends it, now or when awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Self, TypeAlias, TypeVar, overload
from urllib.parse import quote

try:
    import httpx
except ImportError as error:
    raise ImportError('the client is an extra: pip install "overbooked-lock[client]"') from error
from pydantic import ValidationError

from overbooked_lock import __version__, arguments
from overbooked_lock.bookings import Booking, BookingStatus
from overbooked_lock.errors import InvalidArgument, OverbookedError
from overbooked_lock.models import NewSlot, Slot, given_date, utc_date

T = TypeVar("T")
# What a method gives: the sync client's methods a Result, the async one's an Awaitable of it.
OneSlot = TypeVar("OneSlot")
Slots = TypeVar("Slots")
OneBooking = TypeVar("OneBooking")
Bookings = TypeVar("Bookings")
Nothing = TypeVar("Nothing")

DEFAULT_TIMEOUT_SECONDS = 10.0


class RequestFailed(OverbookedError):
    """A request that did not succeed, as ``result.unwrap()`` raises it. Carries the API's ``code`` and ``status``.

    Attributes:
        message: What the server said.
        reason: Why, where one code has several reasons: ``full``, ``disabled``, ``rate`` …
        param: The field of the request that is wrong.
        details: More facts: ``locked_until`` and ``retry_after_ms`` of E045, ``outcome`` of E070.
        request_id: What the server's log calls this request.
    """

    def __init__(
        self,
        code: str,
        message: str,
        status: int,
        *,
        reason: str | None = None,
        param: str | None = None,
        details: Mapping[str, Any] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status
        self.reason, self.param, self.request_id = reason, param, request_id
        self.details: Mapping[str, Any] = details or {}


@dataclass(frozen=True, slots=True)
class Result(Generic[T]):
    """What came of a request.

    Attributes:
        data: A Slot, a Booking, a list of them, or an empty dict where something was deleted; None if it failed.
        error: Why it failed, else None.
        meta: Of a list ``limit``, ``page`` and ``total``; of a booking whose lock had ended ``lock: expired``.
        success: Whether it succeeded.
        fencing_token: Of a lock.
    """

    data: T | None
    error: RequestFailed | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    success: bool = True
    fencing_token: int | None = None

    def unwrap(self) -> T:
        """The data; raises the error if there is none."""
        if self.error is not None:
            raise self.error
        assert self.data is not None  # noqa: S101 - one of the two is there
        return self.data


class _Request(NamedTuple):
    method: str
    path: str
    read: Callable[[Any], Any]
    body: Any = None
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}


class _Methods:
    """Methods that describe requests. ``send`` is the client's."""

    def __init__(self, send: Callable[[_Request], Any]) -> None:
        self._send = send


class SlotMethods(_Methods, Generic[OneSlot, Slots, Nothing]):
    """What can be done with slots. Raises InvalidArgument for what can't be sent; all else is in the result."""

    @overload
    def create(self, slots: NewSlot, *, idempotency_key: str | None = None) -> OneSlot: ...

    @overload
    def create(self, slots: Iterable[NewSlot], *, idempotency_key: str | None = None) -> Slots: ...

    def create(self, slots: NewSlot | Iterable[NewSlot], *, idempotency_key: str | None = None) -> OneSlot | Slots:
        """Registers a slot, or several at once; several give a list. The server makes their ids."""
        headers = _header("Idempotency-Key", idempotency_key)
        if isinstance(slots, NewSlot):
            return self._send(_Request("POST", "/slots", Slot.model_validate, _new_slot(slots), headers=headers))
        return self._send(_Request("POST", "/slots", _slots, [_new_slot(slot) for slot in slots], headers=headers))

    def get(self, slot_id: str, *, lock_key: str | None = None) -> OneSlot:
        """A slot as somebody else sees it, or as the holder does whose ``lock_key`` is given."""
        return self._send(_slot("GET", slot_id, headers=_header("X-Lock-Key", lock_key)))

    def list(
        self,
        *,
        limit: int,
        page: int,
        available: bool | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        resource_id: str | None = None,
        lock_key: str | None = None,
    ) -> Slots:
        """A page of slots, counted from 1, with ``limit`` (1 to 50) on each: all, or those that fit what is given."""
        query = _query(
            limit=limit,
            page=page,
            available=None if available is None else str(available).lower(),
            start_date=None if start_date is None else _date(start_date, "start_date"),
            end_date=None if end_date is None else _date(end_date, "end_date"),
            resource_id=resource_id,
        )
        return self._send(_Request("GET", "/slots", _slots, query=query, headers=_header("X-Lock-Key", lock_key)))

    def update(
        self,
        slot_id: str,
        *,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        capacity: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        lockable: bool | None = None,
    ) -> OneSlot:
        """Changes what is given and leaves the rest."""
        body = {
            "start_date": None if start_date is None else _date(start_date, "start_date", given_date),
            "end_date": None if end_date is None else _date(end_date, "end_date", given_date),
            "capacity": capacity,
            "metadata": metadata,
            "lockable": lockable,
        }
        return self._send(_slot("PATCH", slot_id, {name: value for name, value in body.items() if value is not None}))

    def enable(self, slot_id: str) -> OneSlot:
        """Opens a slot for locks and bookings."""
        return self._send(_slot("POST", slot_id, verb="/enable"))

    def disable(self, slot_id: str) -> OneSlot:
        """Closes a slot for locks and bookings."""
        return self._send(_slot("POST", slot_id, verb="/disable"))

    def lock(self, slot_id: str, *, lock_until: datetime, lock_key: str) -> OneSlot:
        """Locks a slot until a date. The result carries the ``fencing_token``."""
        body = {"lock_until": _date(lock_until, "lock_until"), "lock_key": lock_key}
        return self._send(_slot("POST", slot_id, body, verb="/lock"))

    def unlock(self, slot_id: str, *, lock_key: str | None = None, force: bool = False) -> OneSlot:
        """Unlocks a slot by its ``lock_key``; with a secret key and ``force``, whoever holds it."""
        if (lock_key is None) is not force:
            raise InvalidArgument("lock_key", "or force must be given, and not both")
        return self._send(_slot("POST", slot_id, {"force": True} if force else {"lock_key": lock_key}, verb="/unlock"))

    def delete(self, slot_id: str) -> Nothing:
        """Removes a slot, the lock on it, and its cancelled bookings."""
        return self._send(_Request("DELETE", f"/slots/{_in_path(slot_id, 'slot_id')}", dict))


class BookingMethods(_Methods, Generic[OneBooking, Bookings, Nothing]):
    """What can be done with bookings. Raises InvalidArgument for what can't be sent; all else is in the result."""

    def create(
        self,
        *,
        slot_id: str,
        lock_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> OneBooking:
        """Books a place in a slot; the lock that the key holds is consumed."""
        body = {"slot_id": slot_id, "lock_key": lock_key, "metadata": metadata}
        body = {name: value for name, value in body.items() if value is not None}
        headers = _header("Idempotency-Key", idempotency_key)
        return self._send(_Request("POST", "/bookings", Booking.model_validate, body, headers=headers))

    def get(self, booking_id: str) -> OneBooking:
        """A booking."""
        return self._send(_booking("GET", booking_id))

    def list(
        self,
        *,
        limit: int,
        page: int,
        slot_id: str | None = None,
        resource_id: str | None = None,
        status: BookingStatus | None = None,
    ) -> Bookings:
        """A page of bookings, counted from 1, ``limit`` (1 to 50) on each: all, or those that fit what is given."""
        query = _query(limit=limit, page=page, slot_id=slot_id, resource_id=resource_id, status=status)
        return self._send(_Request("GET", "/bookings", _bookings, query=query))

    def update(self, booking_id: str, *, metadata: Mapping[str, Any]) -> OneBooking:
        """Puts other metadata in the place of a booking's."""
        return self._send(_booking("PATCH", booking_id, {"metadata": metadata}))

    def cancel(self, booking_id: str) -> OneBooking:
        """Cancels a booking: its place is free again."""
        return self._send(_booking("POST", booking_id, verb="/cancel"))

    def enable(self, booking_id: str, *, lock_key: str | None = None) -> OneBooking:
        """Makes a cancelled booking active again; ``lock_key`` where the caller has locked the slot."""
        return self._send(_booking("POST", booking_id, verb="/enable", headers=_header("X-Lock-Key", lock_key)))

    def reschedule(self, booking_id: str, *, target_slot_id: str, lock_key: str | None = None) -> OneBooking:
        """Moves a booking to another slot; ``lock_key`` where the caller has locked that."""
        body, headers = {"target_slot_id": target_slot_id}, _header("X-Lock-Key", lock_key)
        return self._send(_booking("POST", booking_id, body, verb="/reschedule", headers=headers))

    def delete(self, booking_id: str) -> Nothing:
        """Removes a booking."""
        return self._send(_Request("DELETE", f"/bookings/{_in_path(booking_id, 'booking_id')}", dict))


_OneSlot: TypeAlias = Result[Slot]
_Slots: TypeAlias = Result[list[Slot]]
_OneBooking: TypeAlias = Result[Booking]
_Bookings: TypeAlias = Result[list[Booking]]
_Nothing: TypeAlias = Result[dict[str, Any]]


class Overbooked:
    """The sync client. Thread-safe. Use it as a context manager, or close it.

    Args:
        base_url: Where the server is.
        secret_key, public_key: One of the two.
        timeout: How long a request may take, in seconds.
        options: Further arguments for ``httpx.Client``: proxies, certificates, limits.
    """

    def __init__(
        self,
        *,
        base_url: str,
        secret_key: str | None = None,
        public_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Any,
    ) -> None:
        self._http = httpx.Client(**_options(base_url, secret_key, public_key, timeout, options))
        self.slot = SlotMethods[_OneSlot, _Slots, _Nothing](self._send)
        self.booking = BookingMethods[_OneBooking, _Bookings, _Nothing](self._send)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: _Request) -> Result[Any]:
        try:
            answer = self._http.send(_prepared(self._http, request))
        except httpx.TransportError as error:
            return _failed(error)
        return _result(request, answer)


class AsyncOverbooked:
    """The async client. Use it as an async context manager, or close it. Takes what :class:`Overbooked` takes."""

    def __init__(
        self,
        *,
        base_url: str,
        secret_key: str | None = None,
        public_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        **options: Any,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(base_url, secret_key, public_key, timeout, options))
        self.slot = SlotMethods[Awaitable[_OneSlot], Awaitable[_Slots], Awaitable[_Nothing]](self._send)
        self.booking = BookingMethods[Awaitable[_OneBooking], Awaitable[_Bookings], Awaitable[_Nothing]](self._send)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, request: _Request) -> Result[Any]:
        try:
            answer = await self._http.send(_prepared(self._http, request))
        except httpx.TransportError as error:
            return _failed(error)
        return _result(request, answer)


def _options(
    base_url: str, secret_key: str | None, public_key: str | None, timeout: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    if (secret_key is None) is (public_key is None):
        raise InvalidArgument("secret_key", "or public_key must be given, and not both")
    headers = {"Authorization": f"Bearer {secret_key or public_key}", "User-Agent": f"overbooked-lock/{__version__}"}
    return {"timeout": timeout, **options, "base_url": base_url, "headers": {**options.get("headers", {}), **headers}}


def _prepared(http: httpx.Client | httpx.AsyncClient, request: _Request) -> httpx.Request:
    content_type = {"Content-Type": "application/json"}
    return http.build_request(
        request.method,
        request.path,
        json=request.body,
        params=request.query or None,
        headers={**content_type, **request.headers},
    )


def _failed(error: httpx.TransportError) -> Result[Any]:
    """No answer came. The API's own code for that says whether the request may have been carried out."""
    outcome = "not_applied" if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) else "unknown"
    message = f"the server did not answer ({type(error).__name__})"
    return Result(None, RequestFailed("E070", message, 503, details={"outcome": outcome}), success=False)


def _result(request: _Request, answer: httpx.Response) -> Result[Any]:
    try:
        envelope = answer.json()
        if envelope["success"]:
            token = answer.headers.get("X-Fencing-Token")
            return Result(
                request.read(envelope["data"]), meta=envelope["meta"], fencing_token=int(token) if token else None
            )
        told = envelope["error"]
        facts = {name: told.get(name) for name in ("reason", "param", "details", "request_id")}
        return Result(None, RequestFailed(told["code"], told["message"], told["status"], **facts), success=False)
    except (ValueError, KeyError, TypeError, ValidationError):
        # Something on the way answered in the server's place: a proxy, or another program on its port.
        message = f"what answered does not speak the Overbooked API (status {answer.status_code})"
        outcome = {"outcome": "unknown"}
        return Result(None, RequestFailed("E070", message, answer.status_code, details=outcome), success=False)


def _in_path(value: str, name: str) -> str:
    return quote(arguments.slot_id(value, name), safe="")


def _slot(
    method: str, slot_id: str, body: Any = None, *, verb: str = "", headers: Mapping[str, str] | None = None
) -> _Request:
    path = f"/slots/{_in_path(slot_id, 'slot_id')}{verb}"
    return _Request(method, path, Slot.model_validate, body, headers=headers or {})


def _booking(
    method: str, booking_id: str, body: Any = None, *, verb: str = "", headers: Mapping[str, str] | None = None
) -> _Request:
    path = f"/bookings/{_in_path(booking_id, 'booking_id')}{verb}"
    return _Request(method, path, Booking.model_validate, body, headers=headers or {})


def _slots(data: list[Any]) -> list[Slot]:
    return [Slot.model_validate(slot) for slot in data]


def _bookings(data: list[Any]) -> list[Booking]:
    return [Booking.model_validate(booking) for booking in data]


def _new_slot(slot: NewSlot) -> dict[str, Any]:
    return {
        "resource_id": slot.resource_id,
        "start_date": given_date(slot.start_date),
        "end_date": given_date(slot.end_date),
        "capacity": slot.capacity,
        "metadata": dict(slot.metadata),
        "lockable": slot.lockable,
    }


def _date(value: datetime, name: str, write: Callable[[datetime], str] = utc_date) -> str:
    arguments.milliseconds(value, name)
    return write(value)


def _query(**values: str | int | None) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _header(name: Literal["X-Lock-Key", "Idempotency-Key"], value: str | None) -> dict[str, str]:
    return {} if value is None else {name: value}
