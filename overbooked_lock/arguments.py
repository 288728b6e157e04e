"""What a caller may pass, checked before anything is sent: durations and types, never dates against a clock.

Each function takes the argument's value, and its name where it has several; it returns what goes into a
call and raises :class:`~overbooked_lock.errors.InvalidArgument`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic_core import from_json

from overbooked_lock.errors import InvalidArgument

MAX_SLOTS = 512
"""Most slots in one call: Lua's ``unpack`` and the server's patience both end somewhere above."""

MAX_CAPACITY = 1_000_000_000

MAX_ANSWER = 128 * 1024
"""Longest answer that is kept, in bytes."""

MAX_QUOTA = 1000
"""Most live locks that a quota can allow: a script looks at all of them when its holder is at the limit."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_UNITS = ((3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms"))
_YEAR_1_MS = -62_135_596_800_000

# Control characters separate the parts of an index entry, and a lone surrogate is no text at all.
_is_id = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,255}").fullmatch
_is_key = re.compile(r"[^\ud800-\udfff]{1,255}", re.DOTALL).fullmatch
_is_api_key = re.compile(r"[ps]k_[0-9a-f]{64}").fullmatch
_is_api_key_id = re.compile(r"[0-9a-f]{16}").fullmatch
_is_name = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{0,100}").fullmatch
_is_namespace = re.compile(r"(?!(?:slots?|bookings?|holder|api|answer)$)[A-Za-z0-9_.-]{1,64}").fullmatch


def slot_id(value: object, name: str = "slot_id", at: int | None = None) -> str:
    """An id of a slot or a resource: 1 to 255 characters, none of them a control character; ``at`` where in a list."""
    # Mostly it is plain text, and to see that takes a third of the expression's time.
    if isinstance(value, str) and ((0 < len(value) <= 255 and value.isprintable()) or _is_id(value)):
        return value
    name = name if at is None else f"{name}[{at}]"
    raise InvalidArgument(name, "must be a string of 1 to 255 characters without control characters")


def slot_ids(values: object) -> list[str]:
    """1 to 512 ids, each once."""
    ids = [slot_id(value, "slot_ids", at) for at, value in enumerate(many(values, "slot_ids"))]
    if not 1 <= len(ids) <= MAX_SLOTS:
        raise InvalidArgument("slot_ids", f"must name 1 to {MAX_SLOTS} slots")
    if len(set(ids)) < len(ids):
        raise InvalidArgument("slot_ids", "must name each slot once")
    return ids


def server_url(value: object) -> str:
    """The URL of a Redis, as far as it can be judged without connecting. What it says may be secret: it is not told."""
    if not isinstance(value, str) or not value.startswith(("redis://", "rediss://", "unix://")):
        raise InvalidArgument("url", "must start with redis://, rediss:// or unix://")
    port_of(value)
    parts = urlsplit(value)
    # redis-py takes any other word for database 0.
    if parts.scheme != "unix" and not re.fullmatch(r"/?[0-9]*", parts.path):
        raise InvalidArgument("url", "must have a number as its database, like redis://localhost:6379/0")
    return value


def port_of(url: str) -> int | None:
    """The port that a URL names, if it names one."""
    try:
        return urlsplit(url).port
    except ValueError:
        raise InvalidArgument("url", "must have a number as its port, like redis://localhost:6379") from None


def many(values: object, name: str) -> Iterable[Any]:
    """A list of slot ids or locks."""
    # A string is a sequence of strings: its letters would be locked one by one.
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument(name, "must be a list of slot ids or locks")
    return values


def booking_id(value: object) -> str:
    return new_id() if value is None else slot_id(value, "booking_id")


def booking_ids(values: object, count: int) -> Sequence[str | None]:
    """One for each slot, each once; None for each if none are given."""
    if values is None:
        return [None] * count
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidArgument("booking_ids", "must be a list of ids, or None")
    ids = [slot_id(value, "booking_ids", at) for at, value in enumerate(values)]
    if len(ids) != count or len(set(ids)) < count:
        raise InvalidArgument("booking_ids", "must name one booking for each slot, each once")
    return ids


def new_id() -> str:
    return str(uuid.uuid4())


def lock_key(value: object) -> str:
    """The owner's secret: any 1 to 255 characters."""
    if isinstance(value, str) and _is_key(value):
        return value
    raise InvalidArgument("lock_key", "must be a string of 1 to 255 characters")


def optional_lock_key(value: object) -> str:
    """The same, or empty for None."""
    return "" if value is None else lock_key(value)


_spare_keys: list[str] = []
os.register_at_fork(after_in_child=_spare_keys.clear)  # or parent and child would give out the same ones


def new_lock_key() -> str:
    """A random lock_key of 128 bits."""
    # From the system's generator, of which a call costs more than all else that is done to a lock's arguments.
    try:
        return _spare_keys.pop()
    except IndexError:
        key, *others = secrets.token_bytes(16 * 64).hex(" ", 16).split()
        _spare_keys.extend(others)
        return key


def fencing_token(value: object) -> str:
    """A token as text; empty for None, which stands for any."""
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**53:
        return str(value)
    raise InvalidArgument("fencing_token", "must be a positive int below 2^53")


def milliseconds(value: object, name: str) -> int:
    """A date as ms since 1970; a fraction of a ms is cut off."""
    if isinstance(value, datetime) and value.utcoffset() is not None:
        ms = to_milliseconds(value)
        if ms >= _YEAR_1_MS:
            return ms
    raise InvalidArgument(name, "must be a datetime with a time zone, in the year 1 UTC or later")


def to_milliseconds(date: datetime) -> int:
    """The same, of a date of our own."""
    return (date - _EPOCH) // _MILLISECOND


@lru_cache(maxsize=4096)  # the locks of one call mostly end at the same date
def from_milliseconds(ms: int) -> datetime:
    """The other way round, in UTC."""
    return _EPOCH + ms * _MILLISECOND


def seconds(value: object, name: str) -> float:
    """A duration of 0 or more, in seconds."""
    if isinstance(value, timedelta) and value >= timedelta(0):
        return value.total_seconds()
    raise InvalidArgument(name, "must be a timedelta that is not negative")


def positive_milliseconds(value: object, name: str) -> int:
    """A duration of at least 1 ms, in ms."""
    if isinstance(value, timedelta) and (ms := value // _MILLISECOND) >= 1:
        return ms
    raise _no_duration(name)


def _no_duration(name: str) -> InvalidArgument:
    return InvalidArgument(name, "must be a timedelta of at least 1 ms")


def in_words(ms: int) -> str:
    """A duration in its largest whole unit: ``24 h``, ``90 min``, ``1500 ms``."""
    size, unit = next((size, unit) for size, unit in _UNITS if ms % size == 0)
    return f"{ms // size} {unit}"


def holder(value: object) -> str:
    """Whoever a quota is for: any 1 to 255 characters."""
    if isinstance(value, str) and _is_key(value):
        return value
    raise InvalidArgument("holder", "must be a string of 1 to 255 characters")


def most_locks(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_QUOTA:
        return value
    raise InvalidArgument("most", f"must be an int from 1 to {MAX_QUOTA:,}")


def kind_of_key(value: object) -> Literal["P", "S"]:
    """The kind of an API key, as the scripts have it."""
    if value == "public":
        return "P"
    if value == "secret":
        return "S"
    raise InvalidArgument("kind", "must be 'public' or 'secret'")


def new_api_key(kind: Literal["P", "S"]) -> str:
    """A random API key of 256 bits."""
    return f"{kind.lower()}k_{secrets.token_hex(32)}"


def is_api_key(value: object) -> bool:
    return isinstance(value, str) and _is_api_key(value) is not None


def api_key_id(value: object) -> str:
    # What was given is not shown: it may be the key itself.
    if isinstance(value, str) and _is_api_key_id(value):
        return value
    raise InvalidArgument("key_id", "must be the id of an API key, 16 lower-case hex digits")


def name(value: object) -> str:
    """What people call a thing: at most 100 characters, none of them a control character."""
    if isinstance(value, str) and _is_name(value):
        return value
    raise InvalidArgument("name", "must be a string of at most 100 characters without control characters")


def answer_name(value: object) -> str:
    """The name that an answer is kept under: any 1 to 255 characters."""
    if isinstance(value, str) and _is_key(value):
        return value
    raise InvalidArgument("name", "must be a string of 1 to 255 characters")


def answer(value: object) -> str:
    """Any text of at most 128 KiB in UTF-8."""
    # What has more characters has more bytes, too: nothing huge is encoded only to be counted.
    with suppress(UnicodeEncodeError):  # a lone surrogate is no text
        if isinstance(value, str) and len(value) <= MAX_ANSWER and len(value.encode()) <= MAX_ANSWER:
            return value
    raise InvalidArgument("answer", f"must be a string of at most {MAX_ANSWER // 1024} KiB in UTF-8")


def until(lock_until: datetime | None, lock_for: timedelta | None, max_lock_ms: int) -> str:
    """The end of a lock as the scripts take it: a date in ms, or ``+ms`` from Redis' now."""
    if lock_for is not None and lock_until is None:
        if isinstance(lock_for, timedelta):
            return _of_duration(lock_for, max_lock_ms)
        raise _no_duration("lock_for")
    if lock_until is not None and lock_for is None:
        return str(milliseconds(lock_until, "lock_until"))
    raise InvalidArgument("lock_until", "or lock_for must be given, and not both")


@lru_cache(maxsize=64)  # a caller's locks mostly take equally long
def _of_duration(duration: timedelta, max_lock_ms: int) -> str:
    ms = positive_milliseconds(duration, "lock_for")
    if ms > max_lock_ms:
        raise InvalidArgument("lock_for", f"must be at most {in_words(max_lock_ms)}, the longest lock")
    return f"+{ms}"


def capacity(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_CAPACITY:
        return str(value)
    raise InvalidArgument("capacity", f"must be an int from 1 to {MAX_CAPACITY:,}", code="E047")


def flag(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidArgument(name, "must be True or False")


def page(limit: object, number: object, most: int = MAX_SLOTS) -> tuple[int, int]:
    """A page as (its size, how many items stand before it)."""
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= most:
        raise InvalidArgument("limit", f"must be an int from 1 to {most}")
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 10**9:
        raise InvalidArgument("page", "must be an int from 1 to 1,000,000,000")
    return limit, (number - 1) * limit


def metadata(value: object) -> str:
    """An object of JSON values, as text: keys of at most 100 characters, values of at most 5,000 as JSON."""
    if not isinstance(value, Mapping):
        raise InvalidArgument("metadata", "must be a mapping of strings to JSON values")
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidArgument("metadata", "must have strings as keys")
        if len(key) > 100:
            raise InvalidArgument("metadata", "must have keys of at most 100 characters", code="E042", status=422)
        if len(_json(item)) > 5000:
            raise InvalidArgument(
                "metadata", "must have values of at most 5,000 characters as JSON", code="E042", status=422
            )
    return _json(dict(value))


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        from_json(f"[{text}]")  # as it will be read, inside a payload: lone surrogates and great depth end here
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            "metadata", "must hold JSON values only, nested less than 200 deep: no NaN, no infinity, no lone surrogate"
        ) from error
    return text


def namespace(value: object) -> str:
    """What goes before the keys. Without colons, and never the first word of a key: see ``keys.py``."""
    if isinstance(value, str) and _is_namespace(value):
        return value
    raise InvalidArgument(
        "namespace", "must be 1 to 64 letters, digits, '_', '.' or '-', and no first word of our own keys, like 'slot'"
    )


def max_lock(value: object) -> int:
    """The longest lock, 1 ms to 10 years, in ms."""
    if isinstance(value, timedelta) and _MILLISECOND <= value <= timedelta(days=3660):
        return value // _MILLISECOND
    raise InvalidArgument("max_lock", "must be a timedelta from 1 ms to 10 years")


def scope(unregistered: object) -> Literal["registered", "any"]:
    """What the scripts call the choice of ``unregistered``."""
    if unregistered == "refuse":
        return "registered"
    if unregistered == "allow":
        return "any"
    raise InvalidArgument("unregistered", "must be 'refuse' or 'allow'")
