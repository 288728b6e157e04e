"""What options of the command line take, where that is more than a word or a number."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import typer


def duration(text: str) -> timedelta:
    """``90s``, ``15m``, ``1h30m``, ``500ms``. Raises typer.BadParameter."""
    units = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", text, re.ASCII)
    with suppress(OverflowError, ValueError):  # more than a timedelta holds, or more digits than Python reads
        if units and text:
            days, hours, minutes, seconds, milliseconds = (int(number or 0) for number in units.groups())
            return timedelta(days, seconds, 0, milliseconds, minutes, hours)
    raise typer.BadParameter("must be a duration like 90s, 15m, 2h, 1h30m or 500ms")


def date(text: str) -> datetime:
    """An ISO 8601 date; one without a time zone is in UTC. Raises typer.BadParameter."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            "must be an ISO 8601 date like 2030-06-01T18:00Z or 2030-06-01T20:00+02:00; without a zone it is in UTC"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=UTC)


def json_object(text: str) -> dict[str, Any]:
    """An object in JSON. Raises typer.BadParameter."""
    with suppress(ValueError, RecursionError):
        given = json.loads(text)
        if isinstance(given, dict):
            return given
    raise typer.BadParameter('must be a JSON object like {"floor": 2}')


class Rate(NamedTuple):
    """So many requests at once, refilled within so many whole seconds; none at all stands for any number."""

    requests: int
    seconds: int


def rate(text: str) -> Rate:
    """``100/10s``, or ``off``. Raises typer.BadParameter."""
    if text == "off":
        return Rate(0, 0)
    requests, _, time = text.partition("/")
    if re.fullmatch(r"[1-9]\d{0,8}", requests, re.ASCII):
        seconds, rest = divmod(duration(time), timedelta(seconds=1))
        if seconds and not rest:
            return Rate(int(requests), seconds)
    raise typer.BadParameter("must be a number of requests in a duration of whole seconds, like 100/10s, or off")
