"""Waiting for a slot that somebody else holds: until it may be free, or in its line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from overbooked_lock import arguments, scripts
from overbooked_lock.calls import Call, Settings, fields, slots_of
from overbooked_lock.errors import SlotLocked, StoreUnavailable
from overbooked_lock.events import Waiter
from overbooked_lock.models import Lock
from overbooked_lock.operations import Means, Operation, Operations

if TYPE_CHECKING:
    from overbooked_lock.locks import LockRequest

RENEW_TICKET_EVERY = 1.0
"""Seconds after which a fair waiter renews its ticket, which lives for three: see ``lua/lock_fair.lua``."""


class Waiting(Operations):
    """What a lock does that may wait."""

    def __init__(self, settings: Settings, timeout: float, means: Means) -> None:
        super().__init__(settings, timeout, means)
        self._in_line: set[str] = set()
        """The tickets of those who wait fairly, or are about to: they leave the line before the engine closes."""

    async def _wait_for(
        self, attempt: Callable[[], Operation[list[Lock]]], request: LockRequest, wait: timedelta
    ) -> list[Lock]:
        """Tries until the slots are the caller's, or the time is over. Raises the last SlotLocked."""
        give_up_at = time.monotonic() + arguments.seconds(wait, "wait")
        waiter: Waiter[Any] | None = None
        if ticket := request.ticket:
            self._in_line.add(ticket)
        try:
            while True:
                try:
                    return await attempt()
                except SlotLocked as taken:
                    left = give_up_at - time.monotonic()
                    if left <= 0:
                        raise
                    if waiter is not None and waiter.slot_id == taken.slot_id:
                        # A message that was lost costs no more than what is left of the lock. Who waits in line gets
                        # the slot at its date without asking, and only renews its ticket.
                        free_in = taken.retry_after.total_seconds() + 0.001
                        await self._means.wait(waiter, min(left, RENEW_TICKET_EVERY if ticket else free_in))
                    else:
                        # Listen, and then try again: what came free in between told nobody who listened.
                        if waiter is not None:
                            waiter.close()
                        waiter = self._means.listen(taken.slot_id, ticket)
        except GeneratorExit:
            raise  # as in _attempt
        except BaseException:
            if ticket:
                leaving = LeaveRequest(request.slot_id, request.lock_key, ticket)
                self._means.in_background(partial(self._leave_queue, leaving))
            raise
        finally:
            self._in_line.discard(ticket)
            if waiter is not None:
                waiter.close()

    async def _leave_queue(self, request: LeaveRequest) -> None:
        """Leaves the line, so that the next need not wait until the ticket has died."""
        with contextlib.suppress(StoreUnavailable):
            await self._run(leave_queue, [request])


class LeaveRequest(NamedTuple):
    """Who no longer waits fairly for a slot."""

    slot_id: str
    lock_key: str
    ticket: str


def leave_queue(settings: Settings, requests: Sequence[LeaveRequest]) -> Call[bool]:
    """The outcome is True for a ticket that this call took out of its line."""
    keys = settings.keys.of_locks(slots_of(requests))
    return Call(scripts.LEAVE_QUEUE, keys, fields(requests), lambda reply, _: [tag == b"left" for tag in reply[1:]])
