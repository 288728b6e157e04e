"""What goes to a script, and what its reply means. No I/O.

Each room (``locks.py``, ``slots.py``, …) has one builder for each of its scripts. A builder takes many requests and
returns one :class:`Call`; its ``parse`` gives one outcome for each request, in their order: a value, or the error that
concerns this request alone. A single request is a list of one, which is what lets an executor merge the requests of
many callers into one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import hiredis

from overbooked_lock.errors import OverbookedError
from overbooked_lock.keys import Keys
from overbooked_lock.scripts import Script

Reply = list[Any]
T = TypeVar("T")

_HEADS = [f"\r\n${length}\r\n" for length in range(512)]
"""What stands before a word of so many bytes on the wire, with the end of the word before it (the Redis page
"Redis serialization protocol specification", bulk strings)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine adds to every call."""

    keys: Keys
    max_lock_ms: int
    scope: Literal["registered", "any"]


def as_told(_request: Any, outcome: Any) -> Any:
    """A verb that comes again finds what it made, and its outcome says so."""
    return outcome


def own_removal(_request: Any, outcome: Any) -> Any:
    """What is gone after a removal that may have been carried out was removed by it."""
    return True if outcome is False else outcome


class Call(NamedTuple, Generic[T]):
    """One run of a script.

    ``parse(reply, sent_at)`` takes the monotonic time from before the request was sent. ``own_work(request, outcome)``
    says what an outcome means if an earlier try of the same call may have been carried out.
    """

    script: Script
    keys: Sequence[str]
    args: Sequence[str | int]
    parse: Callable[[Reply, float], Sequence[T | OverbookedError]]
    own_work: Callable[[Any, Any], Any] = as_told

    def evalsha(self) -> bytes:
        """The command as it goes over the wire."""
        return self._pack("EVALSHA", self.script.sha)

    def eval(self) -> bytes:
        """The same for a server that does not know the script: it keeps it from then on."""
        return self._pack("EVAL", self.script.source)

    def _pack(self, command: str, script: str) -> bytes:
        words: list[Any] = [command, script, str(len(self.keys)), *self.keys, *self.args]
        # Nearly all words are short and plain. For such a one hiredis takes twice as long, mostly to print its length.
        try:
            heads = [_HEADS[len(word)] for word in words]
            parts = heads + words
            parts[0::2], parts[1::2] = heads, words
            text = f"*{len(words)}{''.join(parts)}\r\n"
            if text.isascii():
                return text.encode()
        except (IndexError, TypeError):  # a long word, a number
            pass
        packed: bytes = hiredis.pack_command(tuple(words))
        return packed

    def after_lost_reply(
        self, requests: Sequence[Any], outcomes: Sequence[T | OverbookedError]
    ) -> list[T | OverbookedError]:
        """What outcomes mean if the reply to an earlier try was lost. Of all or nothing there may be fewer."""
        return [self.own_work(request, outcome) for request, outcome in zip(requests, outcomes, strict=False)]


Builder = Callable[[Settings, Any], Call[T]]
"""Makes a call of requests. An executor calls it with those of all who ask for the same at a time."""


class Listed(NamedTuple, Generic[T]):
    """What one call of a list found, how many it counted, and where the next goes on; 0 at the end."""

    found: list[T]
    matched: int
    next_cursor: int


def slots_of(requests: Iterable[Any]) -> list[str]:
    return [request.slot_id for request in requests]


def fields(requests: Iterable[tuple[str | int, ...]]) -> list[str | int]:
    return list(chain.from_iterable(requests))


def rows(reply: Reply, head: int = 1, width: int = 4) -> Iterator[tuple[Any, ...]]:
    """The values that a script replies for each slot or booking."""
    values = islice(reply, head, None)
    return zip(*[values] * width, strict=True)


def rows_for(requests: Sequence[Any], reply: Reply, head: int = 1) -> Iterator[tuple[Any, ...]]:
    """Each request with its four values: without a tuple in a tuple, of which very many would be made."""
    values = islice(reply, head, None)
    return zip(requests, values, values, values, values, strict=True)
