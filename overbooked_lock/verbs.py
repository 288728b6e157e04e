"""All verbs of the engines: :class:`AsyncLockEngine` has them as they are, :class:`LockEngine` runs each to its end."""

from __future__ import annotations

from overbooked_lock.answers import Answers
from overbooked_lock.api_keys import ApiKeys
from overbooked_lock.bookings import Bookings
from overbooked_lock.locks import Locks
from overbooked_lock.slots import Slots
from overbooked_lock.stream import Stream


class Verbs(Locks, Slots, Bookings, ApiKeys, Answers, Stream):
    """What is awaited here, the verbs of the sync engine return."""
