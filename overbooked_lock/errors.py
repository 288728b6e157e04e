"""Everything this library raises, in one tree::

    OverbookedError
    ├── InvalidArgument (also a ValueError)   an argument is wrong; nothing was sent or changed
    ├── SlotNotFound                          no slot has this id
    ├── SlotExists                            another slot has this id already
    ├── SlotNotLockable                       not lockable, disabled, or full
    ├── SlotLocked                            somebody else holds it
    ├── TooManyLocks                          the holder of a quota has as many live locks as it may
    ├── LockKeyInvalid                        unlock: the lock belongs to another key
    ├── LockLost                              extend, hold: the lock is gone
    ├── CapacityTooSmall                      fewer places than active bookings
    ├── SlotHasBookings                       active bookings stand on the slot
    ├── SlotNotBookable                       no place can be booked: disabled, or full
    ├── BookingNotFound                       no booking has this id
    ├── BookingExists                         another booking has this id already
    ├── StoreCorrupt                          a key in Redis is not what we keep there
    ├── EventsMissed                          a reader of events fell too far behind
    ├── StoreUnavailable                      Redis could not be reached, or did not confirm
    └── EmbeddedServerError                   the embedded server can't be started

Each carries facts as attributes, and the ``code`` and HTTP ``status`` that the Overbooked API documents
for it. No message and no attribute ever holds a lock_key.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from overbooked_lock.models import Unlocked

Reason = Literal["not_lockable", "disabled", "full"]
Outcome = Literal["not_applied", "unknown"]


class OverbookedError(Exception):
    """The root of the tree: catch it to catch everything that this library raises."""

    code: str = "E001"
    status: int = 500

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is rebuilt from its args alone, and ours take keywords: a lock that failed in a
        # worker process must arrive whole in the one that waits for it.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[OverbookedError], args: tuple[Any, ...], facts: dict[str, Any]) -> OverbookedError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class InvalidArgument(OverbookedError, ValueError):
    """An argument is wrong: ``argument`` names it, the message says what is allowed."""

    status = 400

    def __init__(self, argument: str, allowed: str, *, code: str = "E013", status: int = 400) -> None:
        super().__init__(f"{argument} {allowed}")
        self.argument = argument
        self.code = code
        self.status = status


class SlotError(OverbookedError):
    """One slot is the reason: ``slot_id`` names it."""

    message: ClassVar[str]

    def __init__(self, slot_id: str) -> None:
        super().__init__(self.message.format(slot_id))
        self.slot_id = slot_id


class SlotNotFound(SlotError):
    """No slot has this id."""

    code, status = "E025", 404
    message = "slot {!r} not found"


class SlotExists(SlotError):
    """A slot with this id is registered already, and differs from the one to be created."""

    code, status = "E013", 400
    message = "slot {!r} exists already and is another one"


class SlotNotLockable(SlotError):
    """The slot can't be locked by anybody now: ``reason`` is ``not_lockable``, ``disabled`` or ``full``."""

    code, status = "E044", 422
    message = "slot {!r} can't be locked"

    def __init__(self, slot_id: str, reason: Reason) -> None:
        super().__init__(slot_id)
        self.args = (f"{self.args[0]}: {reason.replace('_', ' ')}",)
        self.reason: Reason = reason


class SlotLocked(SlotError):
    """Another key holds the slot.

    ``locked_until`` is when that ends if nobody unlocks or extends it, ``retry_after`` how long that is
    from now by Redis' clock. The code is E050 where it was to be booked.
    """

    code, status = "E045", 422
    message = "slot {!r} is already locked"

    def __init__(self, slot_id: str, locked_until: datetime, retry_after: timedelta, *, code: str = "E045") -> None:
        # The rush for a slot ends in many of these: what they say is put in words when somebody reads it.
        self.slot_id = slot_id
        self.code = code
        self.locked_until = locked_until
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message.format(self.slot_id)} until {self.locked_until.isoformat(timespec='milliseconds')}"


class TooManyLocks(SlotError):
    """The holder of a quota has as many live locks as it may: ``most``.

    ``reason`` is ``live_locks``; ``retry_after`` is how long it is, by Redis' clock, until the first of them ends if
    nobody unlocks or extends it.
    """

    code, status = "E062", 429
    message = "slot {!r} can't be locked: its taker has "

    def __init__(self, slot_id: str, most: int, retry_after: timedelta) -> None:
        super().__init__(slot_id)
        self.args = (f"{self.args[0]}{most} live locks, as many as the quota allows",)
        self.reason: Literal["live_locks"] = "live_locks"
        self.most = most
        self.retry_after = retry_after


class LockKeyInvalid(SlotError):
    """Unlock was refused: the slot is locked by another key, and stays so until ``locked_until``."""

    code, status = "E059", 403
    message = "slot {!r} can't be unlocked: the lock_key is not the lock's"

    def __init__(self, slot_id: str, locked_until: datetime, after: Unlocked | None = None) -> None:
        super().__init__(slot_id)
        self.locked_until = locked_until
        self.after = after
        """The slot as the refused unlock found it."""


class LockLost(SlotError):
    """The lock is gone: it expired, was unlocked, or its slot was deleted.

    ``locked_until`` tells until when another key holds the slot now, None if nobody does or nobody asked.
    """

    code, status = "E059", 403
    message = "the lock of slot {!r} is lost"

    def __init__(self, slot_id: str, locked_until: datetime | None = None) -> None:
        super().__init__(slot_id)
        self.locked_until = locked_until


class CapacityTooSmall(SlotError):
    """The slot has more active bookings than the capacity asked for."""

    code, status = "E046", 422
    message = "slot {!r} has more active bookings than this capacity"


class SlotHasBookings(SlotError):
    """The slot can't be deleted while active bookings stand on it."""

    code, status = "E060", 422
    message = "slot {!r} has active bookings"


class SlotNotBookable(SlotError):
    """No place of the slot can be booked now: ``reason`` is ``disabled`` or ``full``."""

    status = 422
    message = "slot {!r} can't be booked"

    def __init__(self, slot_id: str, reason: Literal["disabled", "full"]) -> None:
        super().__init__(slot_id)
        self.args = (f"{self.args[0]}: {reason}",)
        self.reason = reason
        self.code = {"full": "E049", "disabled": "E051"}[reason]


class BookingNotFound(OverbookedError):
    """No booking has this id: ``booking_id``."""

    code, status = "E048", 404

    def __init__(self, booking_id: str) -> None:
        super().__init__(f"booking {booking_id!r} not found")
        self.booking_id = booking_id


class BookingExists(OverbookedError):
    """A booking with this id is there already, and differs from the one to be made: ``booking_id``."""

    code, status = "E013", 400

    def __init__(self, booking_id: str) -> None:
        super().__init__(f"booking {booking_id!r} exists already and is another one")
        self.booking_id = booking_id


class EventsMissed(OverbookedError):
    """Events that came after ``since`` are no longer kept: look at the slots themselves, and listen anew."""

    code, status = "E013", 400

    def __init__(self, since: str) -> None:
        super().__init__(f"what happened after {since} is not kept any more")
        self.since = since


class StoreCorrupt(SlotError):
    """A key of the slot or booking in Redis holds something else than we keep there; others are not affected.

    ``slot_id`` is the booking's id where the booking's key is the one.
    """

    message = "{!r}: its keys in Redis hold something that overbooked-lock did not write"


class StoreUnavailable(OverbookedError):
    """Redis could not be reached, or did not confirm in time.

    ``outcome`` is ``not_applied`` when the call surely changed nothing, and ``unknown`` when it may have
    been carried out although no answer came. Every call can safely be made again with the same arguments.
    """

    code, status = "E070", 503

    def __init__(self, outcome: Outcome, cause: str) -> None:
        what = "nothing was changed" if outcome == "not_applied" else "whether it was applied is unknown"
        super().__init__(f"the lock store is unavailable ({cause}): {what}")
        self.outcome: Outcome = outcome


class EmbeddedServerError(OverbookedError):
    """The embedded server can't be started on this folder; the folder was left as it was."""
