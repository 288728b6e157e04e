"""Every key that overbooked-lock has in Redis. No other module spells one.

A slot's keys end in their kind, so no slot id, colons included, can reach another's. A namespace has no
colon and is not one of our own first words, so no slot id of one namespace can reach a key of another.

======================== ========== ==============================================================
``slot:<id>:lock``       string     the lock_key, with the lock's end as its expiry
``slot:<id>:record``     string     the slot: see ``lua/lib/record.lua``
``slot:<id>:queue``      sorted set ticket of who waits fairly for the slot, by arrival in µs
``slot:<id>:tickets``    hash       ticket → its end in ms, fencing token if it has its turn, lock_key
``slots:locks``          hash       slot id → fencing token of its lock, after a plus sign if somebody may
                                    wait for it fairly, and the lock's end in ms; ``""``: the last token
``slots:expiry``         sorted set slot id by a date in ms, never later than the end of its lock but sooner
                                    perhaps: see ``lua/lib/lapsed.lua``
``slots:events``         stream     what happened: see ``lua/lib/events.lua``; a channel, too
``slots:starts``         sorted set slot id by its start in ms
``slots:resources``      sorted set resource, start and slot id as one text, in its order
``booking:<id>:record``  string     the booking: see ``lua/lib/bookings.lua``
``bookings:created``     sorted set booking id by when it was made in ms
``bookings:slots``       sorted set slot, when it was made and booking id as one text, in its order
``bookings:resources``   sorted set resource, when it was made and booking id as one text
``holder:<h>:locks``     hash       slot id → fencing token of the locks made under a holder's quota
``api:keys``             hash       SHA-256 of an API key → its record: see ``lua/create_api_key.lua``
``answer:<name>``        string     an answer that is kept for a while, or a sidecar's claim
======================== ========== ==============================================================
"""

from __future__ import annotations

from collections.abc import Iterable

from overbooked_lock import arguments

LOCK_SUFFIX, RECORD_SUFFIX, QUEUE_SUFFIX, TICKETS_SUFFIX = ":lock", ":record", ":queue", ":tickets"


class Keys:
    """The keys under one namespace; ``""`` is none, and the keys are those of the table above."""

    def __init__(self, namespace: str = "") -> None:
        prefix = f"{arguments.namespace(namespace)}:" if namespace else ""
        self.locks = f"{prefix}slots:locks"
        self.expiry = f"{prefix}slots:expiry"
        self.events = f"{prefix}slots:events"
        self.starts = f"{prefix}slots:starts"
        self.resources = f"{prefix}slots:resources"
        self.bookings = [f"{prefix}bookings:{kind}" for kind in ("created", "slots", "resources")]
        self.slot_prefix = f"{prefix}slot:"
        self.lock_suffix = LOCK_SUFFIX
        self.record_suffix = RECORD_SUFFIX
        self.naming = (self.slot_prefix, self.lock_suffix, self.record_suffix, f"{prefix}booking:")
        """How a script names the keys of a slot or a booking that it comes upon itself."""
        self.holder_prefix = f"{prefix}holder:"
        self.api_keys = f"{prefix}api:keys"
        self.answer_prefix = f"{prefix}answer:"

    def lock(self, slot_id: str) -> str:
        return f"{self.slot_prefix}{slot_id}{self.lock_suffix}"

    def record(self, slot_id: str) -> str:
        return f"{self.slot_prefix}{slot_id}{self.record_suffix}"

    def queue(self, slot_id: str) -> str:
        return f"{self.slot_prefix}{slot_id}{QUEUE_SUFFIX}"

    def tickets(self, slot_id: str) -> str:
        return f"{self.slot_prefix}{slot_id}{TICKETS_SUFFIX}"

    def locks_of(self, holder: str) -> str:
        return f"{self.holder_prefix}{holder}:locks"

    def answer(self, name: str) -> str:
        return f"{self.answer_prefix}{name}"

    def of_locks(self, slot_ids: Iterable[str]) -> list[str]:
        """What a script needs that deals with the locks of these slots."""
        slots, lock, record = [self.slot_prefix + slot_id for slot_id in slot_ids], self.lock_suffix, self.record_suffix
        return [
            self.locks,
            self.expiry,
            self.events,
            *[slot + record for slot in slots],
            *[slot + lock for slot in slots],
        ]

    def of_slots(self, slot_ids: Iterable[str]) -> list[str]:
        """What a script needs that registers, changes or removes these slots."""
        keys = self.of_locks(slot_ids)
        keys[3:3] = self.starts, self.resources
        return keys

    def of_bookings(self, slot_ids: Iterable[str] = ()) -> list[str]:
        """What a script needs that deals with bookings, on these slots or on those it comes upon."""
        keys = self.of_locks(slot_ids)
        keys[3:3] = self.bookings
        return keys

    def of_removal(self, slot_ids: Iterable[str] = ()) -> list[str]:
        """What a script needs that removes slots, and what was booked on them."""
        keys = self.of_slots(slot_ids)
        keys[3:3] = self.bookings
        return keys
