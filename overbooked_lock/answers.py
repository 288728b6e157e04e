"""Answers that are kept for a while: their verbs, what goes to their scripts, and what the replies mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

from overbooked_lock import arguments, scripts
from overbooked_lock.calls import Call, Reply, Settings
from overbooked_lock.errors import OverbookedError, StoreUnavailable
from overbooked_lock.operations import Operations


class Answers(Operations):
    """The verbs of answers that are kept."""

    async def keep_answer(self, name: str, answer: str, *, keep_for: timedelta) -> str:
        """Keeps an answer under a name, unless there is one already; returns the one that is kept.

        So of several who do the same work at the same time, or again, all give the same answer. By Redis' clock it
        is forgotten after its time.

        Args:
            name: Any 1 to 255 characters.
            answer: Any text of at most 128 KiB.
            keep_for: How long, at least 1 ms; counted for the first answer alone.

        Raises InvalidArgument, StoreUnavailable.
        """
        keep_ms = arguments.positive_milliseconds(keep_for, "keep_for")
        request = AnswerRequest(arguments.answer_name(name), arguments.answer(answer), keep_ms)
        return await self._one(keep_answer, request)

    async def get_answer(self, name: str) -> str | None:
        """The answer that is kept under a name, None if there is none. Raises InvalidArgument, StoreUnavailable."""
        return await self._one(get_answer, arguments.answer_name(name))


class AnswerRequest(NamedTuple):
    name: str
    answer: str
    keep_ms: int


def keep_answer(settings: Settings, requests: Sequence[AnswerRequest]) -> Call[str]:
    """The outcome is the answer that is kept."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[str | OverbookedError]:
        outcomes: list[str | OverbookedError] = []
        for request, tag, text in zip(requests, reply[::2], reply[1::2], strict=True):
            if tag == b"corrupt":
                outcomes.append(StoreUnavailable("not_applied", "a key of ours holds something else"))
            else:
                outcomes.append(request.answer if tag == b"kept" else text.decode(errors="replace"))
        return outcomes

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.KEEP_ANSWER, keys, args, parse)


def get_answer(settings: Settings, requests: Sequence[str]) -> Call[str | None]:
    """Takes names; the outcome is None where no answer is kept."""
    keys = [settings.keys.answer(name) for name in requests]

    def parse(reply: Reply, _: float) -> list[str | None]:
        return [None if text is None else text.decode(errors="replace") for text in reply]

    return Call(scripts.GET_ANSWER, keys, (), parse)
