"""A small day to try the server on: courts, a doctor, a class and a row of seats, all of them tomorrow.

``overbooked-lock serve --sample-day`` opens it, and ``make run`` calls that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from overbooked_lock.engine import LockEngine
from overbooked_lock.errors import SlotExists
from overbooked_lock.models import NewSlot, utc_date

KEY_NAME = "sample day"
"""The name of the pair of API keys: each start makes a new one in place of the last."""

HOUR = timedelta(hours=1)


def open_day(engine: LockEngine, base_url: str) -> str:
    """Registers tomorrow's slots where they are missing, makes a fresh pair of API keys, and says what to try.

    What was locked and booked before stays. Raises StoreUnavailable.
    """
    now = datetime.now(UTC)
    tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    slots = list(_slots(tomorrow))
    with suppress(SlotExists):  # some were changed since; the others are registered all the same
        engine.create_slots(slots)
    for key in engine.list_api_keys():
        if key.name == KEY_NAME:
            engine.revoke_api_key(key.id)
    public = engine.create_api_key("public", name=KEY_NAME).key
    secret = engine.create_api_key("secret", name=KEY_NAME).key
    free = engine.list_slots(resource_id="court-1", available=True, start_date=tomorrow, limit=1).slots
    slot_id = free[0].id if free else slots[0].id
    return _greeting(base_url, public, secret, slot_id, len(slots), utc_date(now + HOUR))


def _slots(day: datetime) -> Iterator[NewSlot]:
    def slot(resource_id: str, start: timedelta, length: timedelta, name: str, capacity: int = 1) -> NewSlot:
        slot_id = f"{resource_id}-{day:%Y-%m-%d}-{name}"
        begin = day + start
        return NewSlot(
            id=slot_id, resource_id=resource_id, start_date=begin, end_date=begin + length, capacity=capacity
        )

    for hour in range(8, 20):
        for court in ("court-1", "court-2"):
            yield slot(court, hour * HOUR, HOUR, f"{hour:02}h")
    for number in range(9):
        minutes = 9 * 60 + 20 * number
        yield slot("dr-lovelace", minutes * HOUR / 60, HOUR / 3, f"{minutes // 60:02}h{minutes % 60:02}")
    for hour in (7, 18):
        yield slot("yoga", hour * HOUR, HOUR, f"{hour:02}h", 12)
    for seat in range(1, 9):
        yield slot("cinema", 20 * HOUR, 2 * HOUR, f"row-A-seat-{seat}")


def _greeting(base_url: str, public_key: str, secret_key: str, slot_id: str, number: int, until: str) -> str:
    def curl(path: str, body: dict[str, str]) -> str:
        return (
            f"curl -s {base_url}{path} \\\n"
            f"  -H 'Authorization: Bearer {public_key}' \\\n"
            f"  -H 'Content-Type: application/json' -d '{json.dumps(body)}'; echo"
        )

    def lock(key: str) -> str:
        return curl(f"/slots/{slot_id}/lock", {"lock_until": until, "lock_key": key})

    return f"""
Tomorrow has {number} slots: two courts, a doctor, a class, a row of seats.

  base URL    {base_url}
  public key  {public_key}
  secret key  {secret_key}

Paste these into another terminal, one after the other.

# Anna locks a court:
{lock("anna-4711")}

# Ben is refused, and told until when it is locked:
{lock("ben-0815")}

# Anna changes her mind:
{curl(f"/slots/{slot_id}/unlock", {"lock_key": "anna-4711"})}

# Ben books it:
{curl("/bookings", {"slot_id": slot_id})}

All endpoints, to read in a browser: {base_url}/docs
Ctrl-C stops the server; what was locked and booked is there again when it starts.
"""
