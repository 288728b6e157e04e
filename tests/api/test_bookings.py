"""Bookings over HTTP, as the published API has them."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .tools import Served, data_of, error_of, soon

FIELDS = ["_object", "resource_id", "created_at", "id", "metadata", "slot_id", "status", "updated_at"]


def book(api: Served, slot_id: str, **fields: Any) -> httpx.Response:
    """Books a place with a public key."""
    return api.call("POST", "/bookings", {"slot_id": slot_id} | fields, key="public")


def slot_now(api: Served, slot: dict[str, Any]) -> dict[str, Any]:
    """A slot as anybody sees it now."""
    now: dict[str, Any] = data_of(api.call("GET", f"/slots/{slot['id']}"))
    return now


def test_a_booking_reads_as_the_published_one(api: Served) -> None:
    """The same keys in the same order; the slot counts it, and is full."""
    slot = api.slot()
    answer = book(api, slot["id"], metadata={"name": "Ada"})
    booking = data_of(answer)
    assert list(booking) == FIELDS
    assert (booking["_object"], booking["status"], booking["metadata"]) == ("booking", "active", {"name": "Ada"})
    assert (booking["slot_id"], booking["resource_id"]) == (slot["id"], slot["resource_id"])
    assert booking["created_at"] == booking["updated_at"]
    assert answer.json()["meta"] == {}
    now = slot_now(api, slot)
    assert (now["available"], now["num_active_bookings"], now["num_bookings"]) == (False, 1, 1)


def test_booking_with_the_locks_key_uses_up_the_lock(api: Served) -> None:
    """In one step."""
    slot = api.slot(capacity=2)
    api.lock(slot["id"], "mine")
    assert book(api, slot["id"], lock_key="mine").is_success
    assert slot_now(api, slot)["locked_until"] is None


def test_e050_locked_by_another(api: Served) -> None:
    """Without a key, or with a wrong one."""
    slot = api.slot()
    api.lock(slot["id"], "mine")
    for fields in ({}, {"lock_key": "other"}, {"lock_key": None}):
        refused = book(api, slot["id"], **fields)
        assert error_of(refused) == ("E050", 422)
        assert refused.json()["error"]["details"]["retry_after_ms"] > 0


def test_a_lock_that_had_ended_is_told(api: Served) -> None:
    """The place was free all the same."""
    assert book(api, api.slot()["id"], lock_key="mine").json()["meta"] == {"lock": "expired"}


def test_e049_full(api: Served) -> None:
    """And e044 with ``full``, for who would lock it."""
    slot = api.slot()
    book(api, slot["id"])
    refused = book(api, slot["id"])
    assert error_of(refused) == ("E049", 422)
    locked = api.lock(slot["id"])
    assert error_of(locked) == ("E044", 422)
    assert locked.json()["error"]["reason"] == "full"


def test_e051_disabled(api: Served) -> None:
    """No booking can be made."""
    slot = api.slot()
    api.call("POST", f"/slots/{slot['id']}/disable")
    assert error_of(book(api, slot["id"])) == ("E051", 422)


def test_e025_and_e042_of_a_booking(api: Served) -> None:
    """No such slot; metadata too long."""
    assert error_of(book(api, str(uuid.uuid4()))) == ("E025", 404)
    assert error_of(book(api, api.slot()["id"], metadata={"x": "y" * 5000})) == ("E042", 422)


@pytest.mark.parametrize("fields", [{"slot_id": ""}, {"slot_id": None}, {"lock_key": ""}, {"metadata": "x"}])
def test_e013_what_a_booking_does_not_take(api: Served, fields: dict[str, Any]) -> None:
    """The field is named."""
    refused = api.call("POST", "/bookings", {"slot_id": "x"} | fields)
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == next(iter(fields))


def test_e046_capacity_below_the_active_bookings(api: Served) -> None:
    """The two are checked in one step."""
    slot = api.slot(capacity=3)
    for _ in range(2):
        book(api, slot["id"])
    path = f"/slots/{slot['id']}"
    assert error_of(api.call("PATCH", path, {"capacity": 1})) == ("E046", 422)
    assert data_of(api.call("PATCH", path, {"capacity": 2}))["available"] is False


def test_e060_active_bookings_keep_a_slot(api: Served) -> None:
    """Cancelled ones go with it."""
    slot = api.slot()
    booking = data_of(book(api, slot["id"]))
    path = f"/slots/{slot['id']}"
    assert error_of(api.call("DELETE", path)) == ("E060", 422)
    api.call("POST", f"/bookings/{booking['id']}/cancel", key="public")
    assert data_of(api.call("DELETE", path)) == {}
    assert error_of(api.call("GET", f"/bookings/{booking['id']}")) == ("E048", 404)


def test_e048_no_such_booking(api: Served) -> None:
    """Whatever is asked of it."""
    path = f"/bookings/{uuid.uuid4()}"
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None), ("PATCH", "", {}), ("PATCH", "", {"metadata": {}}), ("DELETE", "", None),
        ("POST", "/cancel", None), ("POST", "/enable", None),
        ("POST", "/reschedule", {"target_slot_id": api.slot()["id"]}),
    ]  # fmt: skip
    for method, verb, body in calls:
        assert error_of(api.call(method, path + verb, body)) == ("E048", 404), (method, verb)


def test_cancel_and_enable(api: Served) -> None:
    """The place is free again; enabling takes it again, under the conditions of a new booking."""
    slot = api.slot()
    booking = data_of(book(api, slot["id"]))
    path = f"/bookings/{booking['id']}"
    assert data_of(api.call("POST", f"{path}/cancel", key="public"))["status"] == "cancelled"
    now = slot_now(api, slot)
    assert (now["available"], now["num_active_bookings"], now["num_cancelled_bookings"]) == (True, 0, 1)
    api.lock(slot["id"], "mine")
    typed = {"Content-Type": "application/json"}
    assert error_of(api.call("POST", f"{path}/enable", headers=typed)) == ("E050", 422)
    enabled = api.call("POST", f"{path}/enable", headers=typed | {"X-Lock-Key": "mine"})
    assert data_of(enabled)["status"] == "active"
    assert slot_now(api, slot)["locked_until"] is None


def test_reschedule(api: Served) -> None:
    """Both slots count it right; onto a slot that the caller has locked, with its key in the header."""
    here, there = api.slot(), api.slot()
    booking = data_of(book(api, here["id"]))
    api.lock(there["id"], "mine")
    path, body = f"/bookings/{booking['id']}/reschedule", {"target_slot_id": there["id"]}
    assert error_of(api.call("POST", path, body, key="public")) == ("E050", 422)
    moved = data_of(api.call("POST", path, body, key="public", headers={"X-Lock-Key": "mine"}))
    assert (moved["slot_id"], moved["resource_id"]) == (there["id"], there["resource_id"])
    assert [slot_now(api, slot)["num_active_bookings"] for slot in (here, there)] == [0, 1]
    missing = api.call("POST", path, {"target_slot_id": str(uuid.uuid4())})
    assert error_of(missing) == ("E025", 404)


def test_update_and_delete(api: Served) -> None:
    """Metadata is replaced; absent it stays. Deleting answers with nothing and frees the place."""
    slot = api.slot()
    booking = data_of(book(api, slot["id"], metadata={"a": 1}))
    path = f"/bookings/{booking['id']}"
    assert data_of(api.call("PATCH", path, {}, key="public")) == booking
    assert data_of(api.call("PATCH", path, {"metadata": {"b": 2}}, key="public"))["metadata"] == {"b": 2}
    assert api.call("DELETE", path).json() == {"data": {}, "meta": {}, "success": True}
    assert slot_now(api, slot) == slot


def test_lists_of_bookings(api: Served) -> None:
    """By slot, resource and status, in pages."""
    slot = api.slot(capacity=5)
    bookings = [data_of(book(api, slot["id"])) for _ in range(3)]
    cancelled = data_of(api.call("POST", f"/bookings/{bookings[0]['id']}/cancel"))
    for query, total in {
        f"slot_id={slot['id']}": 3,
        f"resource_id={slot['resource_id']}": 3,
        f"slot_id={slot['id']}&status=active": 2,
        f"resource_id={slot['resource_id']}&status=cancelled": 1,
    }.items():
        answer = api.call("GET", f"/bookings?limit=1&page=1&{query}", key="public")
        assert answer.json()["meta"] == {"limit": 1, "page": 1, "total": total}
        assert len(data_of(answer)) == 1
    listed = data_of(api.call("GET", f"/bookings?limit=50&page=1&slot_id={slot['id']}&status=cancelled"))
    assert listed == [cancelled]
    assert error_of(api.call("GET", "/bookings?limit=1&page=1&status=gone")) == ("E013", 400)
    assert error_of(api.call("GET", "/bookings?page=1")) == ("E013", 400)


def test_racing_duplicates_book_once(api: Served) -> None:
    """Under one ``Idempotency-Key`` one place is taken, and each hears of it."""
    slot = api.slot(capacity=10)
    api.lock(slot["id"], "mine", lock_until=soon())
    headers, body = {"Idempotency-Key": str(uuid.uuid4())}, {"slot_id": slot["id"], "lock_key": "mine"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.call("POST", "/bookings", body, headers=headers), range(16)))
    assert len({answer.text for answer in answers}) == 1
    assert data_of(answers[0])
    assert slot_now(api, slot)["num_active_bookings"] == 1
    other = api.call("POST", "/bookings", body | {"metadata": {"a": 1}}, headers=headers)
    assert other.json()["error"]["param"] == "Idempotency-Key"
