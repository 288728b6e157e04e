"""Which sidecar works on a request, and what it answers: what goes to the scripts, and what the replies mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

from overbooked_lock import scripts
from overbooked_lock.calls import Call, Reply, Settings, rows
from overbooked_lock.errors import OverbookedError, StoreUnavailable


class RequestClaim(NamedTuple):
    """A request that a sidecar heard, ``name`` for short, and who would work on it."""

    name: str
    owner: str
    fingerprint: str
    lease_ms: int


class RequestAnswer(NamedTuple):
    """What a sidecar answers to a request; with ``keep_ms`` 0 it is not kept."""

    name: str
    owner: str
    fingerprint: str
    keep_ms: int
    channel: str
    text: str


class Claimed(NamedTuple):
    """What became of a claim.

    ``channel`` and ``text`` are the answer and who heard it, if there is one; ``lease_ms`` is what is left of another's
    claim.
    """

    state: Literal["claimed", "working", "answered", "other"]
    channel: str = ""
    text: str = ""
    lease_ms: int = 0


def claim_request(settings: Settings, requests: Sequence[RequestClaim]) -> Call[Claimed]:
    """The outcome is a :class:`Claimed`."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[Claimed | OverbookedError]:
        outcomes: list[Claimed | OverbookedError] = []
        for tag, channel, text in rows(reply, head=0, width=3):
            if tag == b"corrupt":
                outcomes.append(StoreUnavailable("not_applied", "a key of ours holds something else"))
            elif tag == b"answered":
                outcomes.append(Claimed("answered", channel.decode(), text.decode()))
            else:
                outcomes.append(Claimed(cast("Any", tag.decode()), lease_ms=int(text or 0)))
        return outcomes

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.CLAIM_REQUEST, keys, args, parse)


def answer_request(settings: Settings, requests: Sequence[RequestAnswer]) -> Call[int | None]:
    """The outcome is how many heard it; None if there was an answer already."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[int | None]:
        return [receivers if tag == b"published" else None for tag, receivers in rows(reply, head=0, width=2)]

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.ANSWER_REQUEST, keys, args, parse)
