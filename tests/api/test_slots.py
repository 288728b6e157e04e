"""Slots and locks over HTTP, as the published API has them."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from .tools import Served, data_of, error_of, soon

UTC_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z").fullmatch
FIELDS = [
    "_object", "available", "resource_id", "capacity", "created_at", "end_date", "id", "lockable", "locked_until",
    "metadata", "num_active_bookings", "num_bookings", "num_cancelled_bookings", "start_date", "status", "updated_at",
]  # fmt: skip


def test_a_lock_reads_as_the_published_page_has_it(api: Served) -> None:
    """The same keys in the same order, the same types, the same forms of dates."""
    resource = str(uuid.uuid4())
    slot = api.slot(resource_id=resource)
    until = soon(minutes=15)
    answer = api.lock(slot["id"], "lock_key_1234", lock_until=until)
    assert answer.text.startswith('{"data":{"_object":"slot","available":true,')
    data = data_of(answer)
    assert list(data) == FIELDS
    assert data == slot | {"available": True, "locked_until": until}
    assert (data["start_date"], data["end_date"]) == ("2030-10-21T22:30:00+02:00", "2030-10-21T22:50:00+02:00")
    assert all(UTC_DATE(data[name]) for name in ("created_at", "updated_at", "locked_until"))
    assert (data["resource_id"], data["capacity"], data["metadata"], data["status"]) == (resource, 1, {}, "active")
    assert data["lockable"] is True
    assert [data[f"num_{kind}bookings"] for kind in ("active_", "", "cancelled_")] == [0, 0, 0]
    assert str(uuid.UUID(data["id"])) == data["id"]
    assert answer.json()["meta"] == {}
    assert int(answer.headers["x-fencing-token"]) > 0


def test_the_same_key_locks_again_and_never_shortens(api: Served) -> None:
    """A retry that arrives late gets the same token, and the later date."""
    slot = api.slot()
    late = soon(minutes=30)
    first = api.lock(slot["id"], lock_until=late)
    again = api.lock(slot["id"], lock_until=soon(minutes=5))
    assert data_of(again)["locked_until"] == late
    assert again.headers["x-fencing-token"] == first.headers["x-fencing-token"]


def test_e045_another_key_is_told_until_when(api: Served) -> None:
    """In the body for programs, in ``Retry-After`` for clients that know HTTP only."""
    slot = api.slot()
    until = data_of(api.lock(slot["id"], "mine"))["locked_until"]
    refused = api.lock(slot["id"], "other")
    assert error_of(refused) == ("E045", 422)
    details = refused.json()["error"]["details"]
    assert details["locked_until"] == until
    assert 3_590_000 < details["retry_after_ms"] <= 3_600_000
    assert 0 <= int(refused.headers["retry-after"]) - details["retry_after_ms"] / 1000 < 1


def test_retry_after_is_at_least_a_second(api: Served) -> None:
    """Zero would mean: at once, again and again."""
    slot = api.slot()
    api.lock(slot["id"], "mine", lock_until=soon(milliseconds=900))
    assert api.lock(slot["id"], "other").headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"lock_until": "2020-12-19T15:00:00.000Z"}, "lock_until"),
        ({"lock_until": "2999-12-19T15:00:00.000Z"}, "lock_until"),
        ({"lock_until": None}, "lock_until"),
        ({"lock_until": 1_900_000_000}, "lock_until"),
        ({"lock_until": "1900000000"}, "lock_until"),
        ({"lock_until": "tomorrow"}, "lock_until"),
        ({"lock_until": "2030-02-30T00:00:00Z"}, "lock_until"),
        ({"lock_until": "2030-12-19T15:00:00 02:00"}, "lock_until"),
        ({"lock_until": "2030-W10-1"}, "lock_until"),
        ({"lock_key": ""}, "lock_key"),
        ({"lock_key": "x" * 256}, "lock_key"),
        ({"lock_key": 7}, "lock_key"),
        ({"lock_key": None}, "lock_key"),
    ],
)
def test_e013_what_a_lock_does_not_take(api: Served, fields: dict[str, Any], param: str) -> None:
    """``param`` names the field, and nothing is locked."""
    slot = api.slot()
    refused = api.lock(slot["id"], **fields)
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == param
    assert data_of(api.call("GET", f"/slots/{slot['id']}"))["locked_until"] is None


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%dT%H:%M:%S.%f+00:00",
        "%Y-%m-%dT%H:%M:%S.%f0Z",
        "%Y-%m-%dT%H:%M:%S,%fZ",
        "%Y-%m-%dt%H:%M:%S.%fz",
        "%Y-%m-%d %H:%M:%S.%f",
        "%Y-%m-%dT%H:%M:%S.%f+0000",
        "%Y-%m-%dT%H:%M:%S.%f+00",
    ],
)
def test_the_forms_of_a_date(api: Served, form: str) -> None:
    """ISO 8601 in its common forms; without a zone it is in UTC."""
    date = datetime.now(UTC) + timedelta(minutes=5)
    locked = data_of(api.lock(api.slot()["id"], lock_until=date.strftime(form)))["locked_until"]
    assert locked == date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_dates_come_back_as_they_were_given(api: Served) -> None:
    """With the offset they had; those without one are in UTC. A date alone is its midnight."""
    slot = api.slot(start_date="2030-10-21", end_date="2030-10-21T10:30:00.5-03:30")
    assert (slot["start_date"], slot["end_date"]) == ("2030-10-21T00:00:00.000Z", "2030-10-21T10:30:00.500-03:30")


@pytest.mark.parametrize(("fields", "reason"), [({"lockable": False}, "not_lockable"), ({}, "disabled")])
def test_e044_says_why_a_slot_cant_be_locked(api: Served, fields: dict[str, Any], reason: str) -> None:
    """It is not lockable, or disabled."""
    slot = api.slot(**fields)
    if reason == "disabled":
        api.call("POST", f"/slots/{slot['id']}/disable")
    refused = api.lock(slot["id"])
    assert error_of(refused) == ("E044", 422)
    assert refused.json()["error"]["reason"] == reason


def test_unlock(api: Served) -> None:
    """Frees the slot; once more is no error; e059 for another's key."""
    slot = api.slot()
    api.lock(slot["id"], "mine")
    path = f"/slots/{slot['id']}/unlock"
    assert error_of(api.call("POST", path, {"lock_key": "other"}, key="public")) == ("E059", 403)
    for _ in range(2):
        assert data_of(api.call("POST", path, {"lock_key": "mine"}, key="public")) == slot
    assert error_of(api.call("POST", path, {}, key="public")) == ("E013", 400)


def test_force_ends_any_lock_for_a_secret_key_alone(api: Served) -> None:
    """A shopper can't, an operator can."""
    slot = api.slot()
    api.lock(slot["id"])
    path = f"/slots/{slot['id']}/unlock"
    assert error_of(api.call("POST", path, {"force": True}, key="public")) == ("E015", 401)
    assert data_of(api.call("POST", path, {"force": True}))["locked_until"] is None


def test_e025_no_such_slot(api: Served) -> None:
    """Whatever is asked of it."""
    path = f"/slots/{uuid.uuid4()}"
    lock = {"lock_until": soon(), "lock_key": "k"}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/enable", None),
        ("POST", "/disable", None), ("POST", "/lock", lock), ("POST", "/unlock", {"lock_key": "k"}),
    ]  # fmt: skip
    for method, verb, body in calls:
        assert error_of(api.call(method, path + verb, body)) == ("E025", 404), (method, verb)


def test_the_holder_sees_its_own_view(api: Served) -> None:
    """With ``X-Lock-Key``, on one slot and in lists; anybody else sees that it is taken."""
    slot = api.slot()
    api.lock(slot["id"], "mine-é")
    mine = {"X-Lock-Key": "mine-é".encode()}
    as_browser = {"X-Lock-Key": "mine-é".encode("latin-1")}
    path, listed = f"/slots/{slot['id']}", f"/slots?limit=1&page=1&resource_id={slot['resource_id']}"
    assert data_of(api.call("GET", path, key="public"))["available"] is False
    assert data_of(api.call("GET", path, key="public", headers=mine))["available"] is True
    assert data_of(api.call("GET", path, key="public", headers=as_browser))["available"] is True
    assert data_of(api.call("GET", listed, key="public"))[0]["available"] is False
    assert data_of(api.call("GET", listed, key="public", headers=mine))[0]["available"] is True
    refused = api.call("GET", path, headers={"X-Lock-Key": "x" * 256})
    assert refused.json()["error"]["param"] == "X-Lock-Key"


def test_update_changes_what_is_given(api: Served) -> None:
    """What is absent, or null, stays."""
    slot = api.slot(metadata={"floor": 2})
    path = f"/slots/{slot['id']}"
    changed = data_of(api.call("PATCH", path, {"capacity": 3, "lockable": False, "metadata": None}))
    assert (changed["capacity"], changed["lockable"], changed["metadata"]) == (3, False, {"floor": 2})
    assert changed["start_date"] == slot["start_date"]
    assert data_of(api.call("PATCH", path, {"metadata": {}}))["metadata"] == {}


def test_enable_and_disable(api: Served) -> None:
    """With the content type and no body, as the published client sends them."""
    path = f"/slots/{api.slot()['id']}"
    typed = {"Content-Type": "application/json"}
    assert data_of(api.call("POST", f"{path}/disable", headers=typed))["status"] == "disabled"
    enabled = data_of(api.call("POST", f"{path}/enable", headers=typed))
    assert (enabled["status"], enabled["available"]) == ("active", True)


def test_delete(api: Served) -> None:
    """Answers with nothing, even for a locked slot."""
    slot = api.slot()
    api.lock(slot["id"])
    answer = api.call("DELETE", f"/slots/{slot['id']}")
    assert answer.json() == {"data": {}, "meta": {}, "success": True}
    assert error_of(api.call("GET", f"/slots/{slot['id']}")) == ("E025", 404)


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"start_date": "2030-10-21T22:50:00+02:00"}, ("E023", 422), "start_date"),
        ({"capacity": 0}, ("E047", 400), "capacity"),
        ({"capacity": 1.5}, ("E047", 400), "capacity"),
        ({"capacity": "1"}, ("E047", 400), "capacity"),
        ({"capacity": True}, ("E047", 400), "capacity"),
        ({"capacity": 10**30}, ("E047", 400), "capacity"),
        ({"metadata": {"x" * 101: 1}}, ("E042", 422), "metadata"),
        ({"metadata": {"x": "y" * 5000}}, ("E042", 422), "metadata"),
        ({"metadata": []}, ("E013", 400), "metadata"),
        ({"lockable": "yes"}, ("E013", 400), "lockable"),
        ({"resource_id": ""}, ("E013", 400), "resource_id"),
        ({"resource_id": "a\nb"}, ("E013", 400), "resource_id"),
        ({"start_date": "0000-01-01"}, ("E013", 400), "start_date"),
        ({"start_date": "0001-01-01T00:00:00+14:00"}, ("E013", 400), "start_date"),
    ],
)
def test_what_a_slot_does_not_take(api: Served, fields: dict[str, Any], error: tuple[str, int], param: str) -> None:
    """E023, E042, E047 or E013, and the field."""
    body = {"resource_id": "r", "start_date": "2030-10-21T22:30:00+02:00", "end_date": "2030-10-21T20:50:00Z"}
    refused = api.call("POST", "/slots", body | {"capacity": 1} | fields)
    assert error_of(refused) == error
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("second", "param"),
    [({"end_date": "x"}, "body[1].end_date"), ({"capacity": 0}, "body[1].capacity"), (7, "body[1]")],
)
def test_what_a_list_of_slots_does_not_take(api: Served, second: Any, param: str) -> None:
    """The item is named, too, counted from 0; nothing of the list is created."""
    resource = str(uuid.uuid4())
    good = {"resource_id": resource, "start_date": "2030-10-21", "end_date": "2030-10-22", "capacity": 1}
    refused = api.call("POST", "/slots", [good, good | second if isinstance(second, dict) else second])
    assert refused.json()["error"]["param"] == param
    assert data_of(api.call("GET", f"/slots?limit=1&page=1&resource_id={resource}")) == []


def test_metadata_holds_any_json(api: Served) -> None:
    """Booleans, strings, numbers and structures come back as they were."""
    metadata = {"a": True, "b": "é\U0001f600\x00", "c": 7, "d": 0.5, "e": {"f": [None, 1]}, "": -(2**62)}
    assert api.slot(metadata=metadata)["metadata"] == metadata


def test_lists_have_pages(api: Served) -> None:
    """In ``meta`` stands which, and how many slots there are."""
    resource = str(uuid.uuid4())
    slots = [
        api.slot(resource_id=resource, start_date=f"2031-01-01T0{hour}:00:00Z", end_date=f"2031-01-01T0{hour}:30:00Z")
        for hour in range(3)
    ]
    answer = api.call("GET", f"/slots?limit=2&page=2&resource_id={resource}", key="public")
    assert answer.json() == {"data": slots[2:], "meta": {"limit": 2, "page": 2, "total": 3}, "success": True}
    api.lock(slots[0]["id"])
    for query, expected in {
        "available=true": slots[1:],
        "start_date=2031-01-01T01:00:00.000Z": slots[1:],
        "end_date=2031-01-01T01:30:00.000Z&available=true": slots[1:2],
        "end_date=2031-01-01T02:30:00%2B01:00&available=true": slots[1:2],
    }.items():
        listed = data_of(api.call("GET", f"/slots?limit=50&page=1&resource_id={resource}&{query}"))
        assert listed == expected, query


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("page=1", "limit"),
        ("limit=1", "page"),
        ("limit=0&page=1", "limit"),
        ("limit=51&page=1", "limit"),
        ("limit=x&page=1", "limit"),
        ("limit=1&page=0", "page"),
        ("limit=1&page=99999999999999999999999", "page"),
        ("limit=1&page=1&available=yes", "available"),
        ("limit=1&page=1&start_date=1900000000", "start_date"),
        ("limit=1&page=1&resource_id=", "resource_id"),
        ("limit=1&limit=2&page=1", "query"),
        ("limit=1&page=1&resource_id=%ff", "query"),
    ],
)
def test_e013_what_a_list_does_not_take(api: Served, query: str, param: str) -> None:
    """The parameter is named; nothing is guessed."""
    refused = api.call("GET", f"/slots?{query}")
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == param


def test_locks_are_listed_for_operators(api: Served) -> None:
    """By their end, with the hash of their key and nothing that gives it away."""
    slot = api.slot()
    token = api.lock(slot["id"], "very-secret").headers["x-fencing-token"]
    assert error_of(api.call("GET", "/locks?limit=50&page=1", key="public")) == ("E015", 401)
    answer = api.call("GET", "/locks?limit=50&page=1")
    [mine] = [lock for lock in data_of(answer) if lock["slot_id"] == slot["id"]]
    assert list(mine) == ["slot_id", "locked_until", "locked_since", "fencing_token", "key_hash"]
    assert mine["fencing_token"] == int(token)
    assert "very-secret" not in answer.text
    assert json.loads(answer.text)["meta"]["total"] >= 1


def test_slots_are_created_in_a_list_as_the_published_client_sends_them(api: Served) -> None:
    """A list gives a list, in its order; one that is wrong refuses all, and is named."""
    body = {"resource_id": str(uuid.uuid4()), "start_date": soon(hours=1), "end_date": soon(hours=2), "capacity": 3}
    made = data_of(api.call("POST", "/slots", [body, body | {"capacity": 4}]))
    assert [slot["capacity"] for slot in made] == [3, 4]
    assert [list(slot) for slot in made] == [FIELDS, FIELDS]
    refused = api.call("POST", "/slots", [body, body | {"capacity": 0}])
    assert error_of(refused) == ("E047", 400)
    assert error_of(api.call("POST", "/slots", [body, body | {"end_date": body["start_date"]}])) == ("E023", 422)
    nothing: list[Any]
    for nothing in ([], [[]], [None], [{}] * 513):
        assert error_of(api.call("POST", "/slots", nothing)) == ("E013", 400)
    listed = api.call("GET", f"/slots?limit=50&page=1&resource_id={body['resource_id']}")
    assert sorted(slot["id"] for slot in data_of(listed)) == sorted(slot["id"] for slot in made)


def test_a_list_of_slots_is_created_once(api: Served) -> None:
    """Under one ``Idempotency-Key``."""
    body = {"resource_id": str(uuid.uuid4()), "start_date": soon(hours=1), "end_date": soon(hours=2), "capacity": 3}
    once = {"Idempotency-Key": str(uuid.uuid4())}
    first = api.call("POST", "/slots", [body, body], headers=once)
    assert api.call("POST", "/slots", [body, body], headers=once).json() == first.json()
    assert error_of(api.call("POST", "/slots", [body], headers=once)) == ("E013", 400)
    listed = api.call("GET", f"/slots?limit=50&page=1&resource_id={body['resource_id']}")
    assert listed.json()["meta"]["total"] == 2
