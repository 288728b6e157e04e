"""What answers look like: ``{"data", "meta", "success"}`` or ``{"error", "success"}``, and nothing else.

The one place that knows how an error of the engine reads over HTTP.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel

from overbooked_lock.errors import InvalidArgument, OverbookedError, SlotLocked, StoreUnavailable
from overbooked_lock.models import utc_date


class RouteNotFound(OverbookedError):
    """Nothing is here, or nothing that takes this method."""

    code, status = "E002", 404

    def __init__(self) -> None:
        super().__init__("no such route; GET /openapi.json lists them")


class ApiKeyMissing(OverbookedError):
    """No API key was sent."""

    code, status = "E056", 401

    def __init__(self) -> None:
        super().__init__("an API key is needed, in the header: Authorization: Bearer <key>")


class ApiKeyInvalid(OverbookedError):
    """Not one of our keys, or revoked."""

    code, status = "E055", 401

    def __init__(self) -> None:
        super().__init__("the API key is not valid")


class SecretKeyNeeded(OverbookedError):
    """A public key where a secret one is needed."""

    code, status = "E015", 401

    def __init__(self) -> None:
        super().__init__("a secret API key is needed for this")


class TooManyRequests(OverbookedError):
    """More requests than the limit allows; ``retry_after_seconds`` until the next one is taken."""

    code, status = "E062", 429
    reason = "rate"

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("too many requests: slow down")
        self.retry_after_seconds = retry_after_seconds


class InternalError(OverbookedError):
    """Our own fault. It says nothing of the cause: the log does, under the request id."""

    def __init__(self) -> None:
        super().__init__("internal error; the request id leads to it in the log")


Headers = Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """What a handler has to say: ``data``, a text where it is JSON already, and what goes beside it."""

    data: BaseModel | Sequence[BaseModel] | str | None
    meta: Mapping[str, Any] = MappingProxyType({})
    headers: Headers = ()

    def body(self) -> bytes:
        """The envelope. Each payload is written as JSON once, by pydantic."""
        if self.data is None:
            data = "{}"
        elif isinstance(self.data, str):
            data = self.data
        elif isinstance(self.data, BaseModel):
            data = self.data.model_dump_json()
        else:
            data = f"[{','.join([item.model_dump_json() for item in self.data])}]"
        meta = json.dumps(self.meta, separators=(",", ":")) if self.meta else "{}"
        return f'{{"data":{data},"meta":{meta},"success":true}}'.encode()


def failure(error: OverbookedError, request_id: str) -> tuple[bytes, Headers]:
    """The envelope of an error, and the headers that go with it."""
    facts: dict[str, Any] = {"code": error.code, "message": str(error), "status": error.status}
    if (reason := getattr(error, "reason", None)) is not None:
        facts["reason"] = reason
    if isinstance(error, InvalidArgument):
        facts["param"] = error.argument
    if isinstance(error, SlotLocked):
        milliseconds = max(0, math.ceil(error.retry_after.total_seconds() * 1000))
        facts["details"] = {"locked_until": utc_date(error.locked_until), "retry_after_ms": milliseconds}
    if isinstance(error, StoreUnavailable):
        facts["details"] = {"outcome": error.outcome}
    facts["request_id"] = request_id
    seconds = _retry_after(error)
    headers = [] if seconds is None else [(b"retry-after", b"%d" % max(1, math.ceil(seconds)))]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    # Ids may hold anything; ASCII is safe wherever an answer is shown.
    return json.dumps({"error": facts, "success": False}).encode(), headers


def _retry_after(error: OverbookedError) -> float | None:
    """Seconds after which to ask again, where somebody knows."""
    if isinstance(error, TooManyRequests):
        return error.retry_after_seconds
    retry_after = getattr(error, "retry_after", None)
    return None if retry_after is None else float(retry_after.total_seconds())
