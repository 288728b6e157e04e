"""What verbs are made of, for both engines and without I/O.

The verbs are written once, each in its room: ``locks.py``, ``slots.py``, … A verb is a coroutine that awaits nothing
but what its engine lends it (:class:`Means`). The async engine awaits it. For the sync engine these block and never
suspend, so one ``send`` takes the verb to its end.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from overbooked_lock.calls import Builder, Call, Listed, Settings
from overbooked_lock.errors import OverbookedError, SlotNotFound, StoreUnavailable
from overbooked_lock.events import Waiter
from overbooked_lock.models import Unlocked

R = TypeVar("R")
T = TypeVar("T")

CHUNK = 512
"""How many slots a script looks at in one call of a longer piece of work."""


Operation = Coroutine[Any, Any, T]

Undoing = Callable[[Any], tuple[Builder[Any], Sequence[Any]]]
"""What ends what came of requests: a builder, and its requests."""


class Run(Protocol):
    """Calls a script: gives one outcome for each request.

    Requests for one builder may be merged into one call, unless they are to stay ``alone``. ``within`` is a deadline in
    seconds where the engine's own would be too late; who awaits need not give it, and can stop waiting.
    """

    def __call__(
        self, build: Builder[T], requests: Sequence[Any], *, alone: bool = False, within: float | None = None
    ) -> Awaitable[Sequence[T | OverbookedError]]: ...


@dataclass(frozen=True, slots=True)
class Means:
    """What an engine lends its operations.

    Attributes:
        run: Calls a script.
        pause: Waits so many seconds.
        listen: Tells from now on when a slot may be free: the waiter is to be closed. One with a ticket is also told
            when it gets the slot, and not when another does.
        wait: Until a waiter's bell rings, but no longer than so many seconds.
        load: Asks the host for a slot and registers it; whether it has one. None if the host offers none.
        in_background: Carries out another operation, and goes on at once.
    """

    run: Run
    pause: Callable[[float], Awaitable[None]]
    listen: Callable[[str, str], Waiter[Any]]
    wait: Callable[[Waiter[Any], float], Awaitable[None]]
    load: Callable[[str], Awaitable[bool]] | None
    in_background: Callable[[Callable[[], Operation[None]]], None]


class Operations:
    """What the rooms of verbs have in common. ``timeout`` is in seconds."""

    def __init__(self, settings: Settings, timeout: float, means: Means) -> None:
        self._settings = settings
        self._timeout = timeout
        self._means = means
        self._run = means.run

    async def _one(
        self,
        build: Callable[[Settings, Sequence[R]], Call[T]],
        request: R,
        *,
        alone: bool = False,
        within: float | None = None,
    ) -> T:
        """Calls a script for one request: its outcome, raised if it is an error."""
        outcomes = await self._run(build, [request], alone=alone, within=within)
        return one_of(outcomes)

    async def _all(
        self, build: Callable[[Settings, Sequence[R]], Call[T]], requests: Sequence[R], *, alone: bool = False
    ) -> list[T]:
        """Calls a script for many requests: their outcomes. Raises the first error among them."""
        outcomes = await self._run(build, requests, alone=alone)
        return all_of(outcomes)

    async def _attempt(
        self, build: Builder[T], requests: Sequence[Any], undoing: Undoing | None = None, *, alone: bool = False
    ) -> list[T]:
        """The outcomes of a call. Slots that it lacks are asked of the host.

        With ``undoing`` it is undone in the background if it stays unknown what came of it, or its caller no longer
        waits. That is for keys and ids that were made for this very call: nobody else could end what came of them.
        """
        asked: tuple[str, ...] = ()
        while True:
            answer = self._run(build, requests, alone=alone)  # if it can't be asked at all, nothing was applied
            try:
                outcomes = await answer
            except GeneratorExit:
                raise  # nobody awaits it any more, and its loop may be gone: nothing can be carried out
            except BaseException as error:
                applied = not isinstance(error, StoreUnavailable) or error.outcome == "unknown"
                if applied and undoing is not None:
                    self._means.in_background(partial(self._undo, *undoing(requests)))
                raise
            refusal = first_error(outcomes)
            if refusal is None:
                return outcomes  # type: ignore[return-value]  # none is an error
            load = self._means.load
            if isinstance(refusal, SlotNotFound) and load is not None and refusal.slot_id not in asked:
                asked += (refusal.slot_id,)
                if await load(refusal.slot_id):
                    continue
            try:
                raise refusal
            finally:
                # A frame that an error's traceback holds must not hold the error: only the garbage collector would free
                # them, and a rush for a slot ends in very many.
                del answer, outcomes, refusal

    async def _undo(self, build: Builder[Any], requests: Sequence[Any]) -> None:
        """Ends what a call of unknown outcome may have made, or may yet make.

        A request that hangs on its way can arrive after the first try; hence the second look.
        """
        give_up_at = time.monotonic() + self._settings.max_lock_ms / 1000
        looks = 0
        while looks < 2 and time.monotonic() < give_up_at:
            try:
                outcomes = await self._run(build, requests)
            except StoreUnavailable:
                outcomes = []
            if outcomes:
                looks += 1
                if all(outcome is True or (isinstance(outcome, Unlocked) and outcome.released) for outcome in outcomes):
                    return
            await self._means.pause(self._timeout)

    async def _list(self, build: Builder[Listed[T]], request: Any) -> tuple[tuple[T, ...], int]:
        """What a list finds for a page, a chunk a call, and how many there are on all pages."""
        found, total = list[T](), 0
        while True:
            listed = await self._one(build, request, alone=True)
            found += listed.found
            total += listed.matched
            if not listed.next_cursor:
                return tuple(found), total
            request = request._replace(
                cursor=listed.next_cursor,
                skip=max(0, request.skip - listed.matched),
                limit=request.limit - len(listed.found),
            )


def first_error(outcomes: Iterable[object]) -> OverbookedError | None:
    """The first outcome that is an error."""
    for outcome in outcomes:
        if isinstance(outcome, OverbookedError):
            return outcome
    return None


def all_of(outcomes: Sequence[T | OverbookedError]) -> list[T]:
    """The outcomes of many requests. Raises the first error among them."""
    if (error := first_error(outcomes)) is not None:
        raise error
    return outcomes  # type: ignore[return-value]  # none is an error; to call `cast` takes as long as to look


def one_of(outcomes: Sequence[T | OverbookedError]) -> T:
    """The outcome of a single request, raised if it is an error."""
    [outcome] = outcomes
    if isinstance(outcome, OverbookedError):
        raise outcome
    return outcome
