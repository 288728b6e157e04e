"""What is no request: its sender is told wherever it says who that is, and the sidecar goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overbooked_lock import AsyncLockEngine, Slot
from overbooked_lock.errors import InvalidArgument
from overbooked_lock.sidecar import Sidecar
from overbooked_lock.sidecar.operations import MODELS
from overbooked_lock.sidecar.requests import MAX_MESSAGE, Channels, Heard, Refused, read

from .tools import Client

CHANNELS = Channels("shop")
SECRET = "a-secret-lock-key-7f3a"  # noqa: S105 - of no lock
GOOD = {"id": "1", "op": "lock", "client": "web", "slot_id": "s", "lock_key": SECRET, "lock_for_ms": 1000}


def refused(message: bytes | str | dict[str, Any]) -> Refused:
    """What is said against a message."""
    if isinstance(message, dict):
        message = json.dumps(message)
    with pytest.raises(Refused) as caught:
        read(message if isinstance(message, bytes) else message.encode(), CHANNELS, MODELS)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value)
    return caught.value


def test_a_request() -> None:
    """As it is worked on: five seconds, unless it says another time."""
    heard = read(json.dumps(GOOD).encode(), CHANNELS, MODELS)
    assert (heard.op, heard.seconds) == ("lock", 5)
    assert (heard.address.id, heard.address.channel) == ("1", "overbooked:sidecar:shop:replies:web")
    assert read(json.dumps(GOOD | {"deadline_ms": 700}).encode(), CHANNELS, MODELS).seconds == 0.7
    assert read(json.dumps(GOOD | {"wait_ms": 700}).encode(), CHANNELS, MODELS).seconds == 5.7


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"op": "force_unlock"}, "op"),
        ({"op": None}, "op"),
        ({"op": ["lock"]}, "op"),
        ({"slot_id": None}, "slot_id"),
        ({"slot_id": ""}, "slot_id"),
        ({"slot_id": "\ud800"}, "slot_id"),
        ({"lock_key": None}, "lock_key"),
        ({"lock_key": SECRET * 99}, "lock_key"),
        ({"lock_key": {"k": SECRET}}, "lock_key"),
        ({"lock_for_ms": "1000"}, "lock_for_ms"),
        ({"lock_for_ms": 10**40}, "lock_for_ms"),
        ({"lock_until": SECRET}, "lock_until"),
        ({"wait_ms": -1}, "wait_ms"),
        ({"deadline_ms": 99}, "deadline_ms"),
        ({"deadline_ms": 120_001}, "deadline_ms"),
        ({"wait_ms": 500, "deadline_ms": 500}, "wait_ms"),
        ({"reply_to": "overbooked:sidecar:other:replies:web"}, "reply_to"),
        ({"reply_to": "slots:events"}, "reply_to"),
        ({"reply_to": "overbooked:sidecar:shop:replies:"}, "reply_to"),
        ({"reply_to": "overbooked:sidecar:shop:replies:a*"}, "reply_to"),
        ({"reply_to": "overbooked:sidecar:shop:replies:a\r\nb"}, "reply_to"),
        ({"reply_to": 7}, "reply_to"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    """And its sender is told, on the client's own channel where another is not allowed."""
    found = refused({name: value for name, value in (GOOD | change).items() if value is not None})
    assert found.error.argument == param
    assert found.address is not None
    assert found.address.channel == "overbooked:sidecar:shop:replies:web"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"", False),
        (b"\xff\xfe", False),
        (b"[]", False),
        (b"null", False),
        (b"[" * 60_000, False),
        (b'{"a":' * 10_000, False),
        (json.dumps(GOOD)[:-1], False),
        (json.dumps(GOOD | {"id": 7}), False),
        (json.dumps(GOOD | {"id": "a b"}), False),
        (json.dumps(GOOD | {"id": "x" * 129}), False),
        (json.dumps(GOOD | {"client": "a:b"}), False),
        (json.dumps({name: value for name, value in GOOD.items() if name != "client"}), False),
        (json.dumps(GOOD | {"metadata": "x" * MAX_MESSAGE}), False),
        (json.dumps(GOOD)[:-1] + ',"op":"unlock"}', True),
        (json.dumps(GOOD)[:-1] + ',"metadata":{"a":1,"a":2}}', True),
        (json.dumps(GOOD)[:-1] + ',"metadata":NaN}', True),
        (json.dumps(GOOD).encode()[:-1] + b',"metadata":"\xff"}', True),
    ],
)
def test_what_is_no_request_at_all(message: bytes | str, told: bool) -> None:
    """Told to whoever it names in a way that can be trusted."""
    found = refused(message)
    assert (found.address is not None) is told


@given(st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["id", "op", "client", "slot_id", "lock_key", "reply_to", "metadata", "x"]), inner
    ),
    max_leaves=20,
)))  # fmt: skip
def test_whatever_comes(message: Any) -> None:
    """It is a request, or it is refused: nothing else comes out."""
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    with contextlib.suppress(Refused):
        assert isinstance(read(raw, CHANNELS, MODELS), Heard)


def test_names() -> None:
    """They go into channels, and into the patterns of ACL rules."""
    for name in ("", "a:b", "a*", "a b", "x" * 65, "ä", "a\n"):
        with pytest.raises(InvalidArgument):
            Channels(name)


async def test_it_goes_on(sidecar: Sidecar, client: Client, slot: Slot, caplog: pytest.LogCaptureFixture) -> None:
    """Each is counted; the log has a line for the first, and no secret."""
    caplog.set_level(logging.INFO)
    bad: list[bytes | str] = [
        b"\xff", b"{}", b"[" * 70_000, b"x" * 2_000_000,
        json.dumps(GOOD | {"client": client.name, "lock_key": SECRET * 99}),
        json.dumps(GOOD | {"client": client.name, "op": SECRET}),
    ]  # fmt: skip
    for message in bad * 5:
        await client.publish(message)
    assert await client.data("get", slot_id=slot.id)
    assert (sidecar.counts["invalid"], sidecar.counts["untold"]) == (30, 20)
    assert len(client.replies["1"]) == 10
    assert SECRET not in json.dumps(client.replies)
    sidecar.report()
    assert len(caplog.records) == 2
    assert SECRET not in caplog.text + str([vars(record) for record in caplog.records])


async def test_too_many_at_a_time(
    async_lock_engine: AsyncLockEngine, client: Client, name: str, slot: Slot, lock_namespace: str
) -> None:
    """Are told at once, and may come again with the same id."""
    await async_lock_engine.lock(slot.id, lock_key="first", lock_for=timedelta(minutes=1))
    async with Sidecar(async_lock_engine, name, max_requests=3) as sidecar:
        await sidecar.wait_subscribed()
        asked = {"slot_id": slot.id, "lock_for_ms": 1000, "wait_ms": 20_000}
        waiting = [client.request("lock", lock_key=f"k{n}", **asked) for n in range(3)]
        for request in waiting:
            await client.publish(request)
        one_more = client.request("get", slot_id=slot.id)
        await client.publish(one_more)
        busy = (await client.reply(one_more["id"]))["error"]
        assert (busy["code"], busy["status"], busy["reason"]) == ("E062", 429, "busy")
        await async_lock_engine.delete_slot(slot.id)
        for request in waiting:
            assert (await client.reply(request["id"]))["error"]["code"] == "E025"
        await client.publish(one_more)
        assert (await client.reply(one_more["id"], 1))["error"]["code"] == "E025"


async def test_a_message_that_is_far_too_long(sidecar: Sidecar, client: Client) -> None:
    """Costs the subscription, which comes back, and not our memory."""
    await client.publish(b"x" * 20_000_000)
    while sidecar.subscribed:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.002)
    await sidecar.wait_subscribed()
    assert await client.data("ping")


async def test_a_failure_of_our_own(
    sidecar: Sidecar, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Says nothing of its cause, which is in the log, without what it was given."""

    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(AsyncLockEngine, "get_slot", fail)
    request_id = str(uuid.uuid4())
    error = await client.error("get", slot_id="s", lock_key=SECRET, id=request_id)
    assert error["code"] == "E001"
    assert request_id in caplog.text
    assert SECRET not in caplog.text + json.dumps(error)
