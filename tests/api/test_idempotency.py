"""``Idempotency-Key``: what is created is created once."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from .tools import Served, data_of, error_of

SLOT = {"resource_id": "r", "start_date": "2030-01-01", "end_date": "2030-01-02", "capacity": 9}


def create(api: Served, once: str, path: str = "/slots", body: Any = SLOT, **more: Any) -> Any:
    """Creates something under an idempotency key."""
    return api.call("POST", path, body, headers={"Idempotency-Key": once}, **more)


def test_the_same_answer_again(api: Served) -> None:
    """To the letter, even if the slot has changed since."""
    once = str(uuid.uuid4())
    first = create(api, once)
    api.call("PATCH", f"/slots/{data_of(first)['id']}", {"capacity": 10})
    again = create(api, once, body=dict(reversed(SLOT.items())))
    assert again.text == first.text
    assert data_of(create(api, str(uuid.uuid4())))["id"] != data_of(first)["id"]


def test_another_body_is_refused(api: Served) -> None:
    """It would be answered with what was not asked for."""
    once = str(uuid.uuid4())
    create(api, once)
    refused = create(api, once, body=SLOT | {"capacity": 2})
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "Idempotency-Key"


async def keep_nothing(_: str, answer: str, *, keep_for: timedelta) -> str:
    """What is left of ``keep_answer`` if the process dies before it."""
    return answer


def test_an_answer_that_was_never_kept(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died between the two steps: what was created is found, not created again, nor taken for another."""
    once = str(uuid.uuid4())
    with monkeypatch.context() as dying:
        dying.setattr(api.engine, "keep_answer", keep_nothing)
        first = create(api, once)
    refused = create(api, once, body=SLOT | {"capacity": 2})
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert create(api, once).text == first.text


def test_racing_duplicates_create_one(api: Served) -> None:
    """All get the same answer."""
    resource, once = str(uuid.uuid4()), str(uuid.uuid4())
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: create(api, once, body=SLOT | {"resource_id": resource}), range(24)))
    assert len({answer.text for answer in answers}) == 1
    listed = api.call("GET", f"/slots?limit=50&page=1&resource_id={resource}")
    assert listed.json()["meta"]["total"] == 1


def test_keys_are_per_api_key_and_endpoint(api: Served) -> None:
    """Two customers may count from one."""
    other = api.ask(api.engine.create_api_key("secret"))
    assert data_of(create(api, "1"))["id"] != data_of(create(api, "1", key=other))["id"]


@pytest.mark.parametrize("once", ["", "x" * 256, "a b", "é"])
def test_e013_what_is_no_idempotency_key(api: Served, once: str) -> None:
    """1 to 255 visible characters."""
    refused = api.call("POST", "/slots", SLOT, headers={"Idempotency-Key": once.encode()})
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "Idempotency-Key"


def test_errors_are_not_kept(api: Served) -> None:
    """What failed may be tried again under the same key."""
    once = str(uuid.uuid4())
    assert error_of(create(api, once, body=SLOT | {"capacity": 0})) == ("E047", 400)
    assert create(api, once).is_success


def test_elsewhere_it_means_nothing(api: Served) -> None:
    """Other calls are safe to repeat as they are."""
    slot = data_of(create(api, "elsewhere"))
    path = f"/slots/{slot['id']}"
    headers = {"Idempotency-Key": "elsewhere"}
    for capacity in (2, 3):
        assert data_of(api.call("PATCH", path, {"capacity": capacity}, headers=headers))["capacity"] == capacity
