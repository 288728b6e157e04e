"""The lock engine under booking systems: a slot is locked until a date, whatever crashes."""

from overbooked_lock.aio import AsyncLockEngine
from overbooked_lock.api_keys import ApiKey, ApiKeyInfo
from overbooked_lock.bookings import Booking, BookingPage
from overbooked_lock.embedded import EmbeddedServer
from overbooked_lock.engine import LockEngine
from overbooked_lock.errors import (
    BookingExists,
    BookingNotFound,
    CapacityTooSmall,
    EmbeddedServerError,
    EventsMissed,
    InvalidArgument,
    LockKeyInvalid,
    LockLost,
    OverbookedError,
    SlotError,
    SlotExists,
    SlotHasBookings,
    SlotLocked,
    SlotNotBookable,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    StoreUnavailable,
    TooManyLocks,
)
from overbooked_lock.events import Event
from overbooked_lock.holding import AsyncHold, Hold
from overbooked_lock.models import LiveLock, Lock, NewSlot, Quota, Slot, SlotPage, Unlocked

__version__ = "0.1.0"

__all__ = [
    "ApiKey",
    "ApiKeyInfo",
    "AsyncHold",
    "AsyncLockEngine",
    "Booking",
    "BookingExists",
    "BookingNotFound",
    "BookingPage",
    "CapacityTooSmall",
    "EmbeddedServer",
    "EmbeddedServerError",
    "Event",
    "EventsMissed",
    "Hold",
    "InvalidArgument",
    "LiveLock",
    "Lock",
    "LockEngine",
    "LockKeyInvalid",
    "LockLost",
    "NewSlot",
    "OverbookedError",
    "Quota",
    "Slot",
    "SlotError",
    "SlotExists",
    "SlotHasBookings",
    "SlotLocked",
    "SlotNotBookable",
    "SlotNotFound",
    "SlotNotLockable",
    "SlotPage",
    "StoreCorrupt",
    "StoreUnavailable",
    "TooManyLocks",
    "Unlocked",
]
