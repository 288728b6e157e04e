"""What can be asked of a sidecar, and what it answers."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import AsyncLockEngine, LockEngine, NewSlot, Slot, __version__
from overbooked_lock.keys import Keys
from overbooked_lock.sidecar import Sidecar
from overbooked_lock.sidecar.operations import OPS

from .tools import PATIENCE, Client

HOUR = 3_600_000

MakeSlot = Callable[..., NewSlot]


async def test_ping_tells_that_it_is_there(sidecar: Sidecar, client: Client, name: str) -> None:
    """And so does the number that PUBLISH answers: 0 says that nobody listens."""
    assert await client.data("ping") == {"sidecar": name, "version": __version__}
    client.channels.requests = f"{client.channels.requests}-of-nobody"
    assert await client.publish(client.request("ping")) == 0


async def test_a_lock_from_its_making_to_its_booking(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """The answers are those of the HTTP API, with the fencing token that is a header there."""
    mine = {"slot_id": slot.id, "lock_key": "mine"}
    locked = await client.ask("lock", **mine, lock_for_ms=HOUR)
    token = locked["fencing_token"]
    assert list(locked["data"]) == list(slot.model_dump(mode="json"))
    assert locked["data"]["available"] is True

    taken = await client.error("lock", slot_id=slot.id, lock_key="another", lock_for_ms=HOUR)
    assert (taken["code"], taken["status"]) == ("E045", 422)
    assert taken["details"]["locked_until"] == locked["data"]["locked_until"]

    held = await client.ask("check", **mine, fencing_token=token)
    assert (held["meta"], held["fencing_token"]) == ({"held": True}, token)
    lost = await client.ask("check", slot_id=slot.id, lock_key="another")
    assert (lost["meta"], lost["data"]) == ({"held": False}, {})

    longer = await client.ask("extend", **mine, lock_for_ms=2 * HOUR)
    assert longer["fencing_token"] == token
    assert longer["data"]["locked_until"] > locked["data"]["locked_until"]

    booking = await client.data("book", **mine, metadata={"name": "Ada"})
    assert (booking["slot_id"], booking["status"], booking["metadata"]) == (slot.id, "active", {"name": "Ada"})
    assert (await client.data("get", slot_id=slot.id))["num_active_bookings"] == 1


async def test_unlock(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """Another's lock is refused; one that has ended is no error."""
    mine = {"slot_id": slot.id, "lock_key": "mine"}
    await client.data("lock", **mine, lock_for_ms=HOUR)
    assert (await client.error("unlock", slot_id=slot.id, lock_key="another"))["code"] == "E059"
    first, second = [await client.ask("unlock", **mine) for _ in range(2)]
    assert (first["meta"], second["meta"]) == ({"released": True}, {"released": False})
    assert first["data"]["locked_until"] is None


async def test_many_at_once(
    sidecar: Sidecar, client: Client, async_lock_engine: AsyncLockEngine, new_slot: MakeSlot
) -> None:
    """All or none, with a fencing token for each."""
    ids = [slot.id for slot in await async_lock_engine.create_slots(new_slot() for _ in range(3))]
    mine = {"slot_ids": ids, "lock_key": "mine"}
    locked = await client.ask("lock_many", **mine, lock_for_ms=HOUR)
    assert [slot["id"] for slot in locked["data"]] == ids
    again = await client.ask("extend_many", **mine, lock_for_ms=2 * HOUR)
    assert again["fencing_tokens"] == locked["fencing_tokens"]
    assert (await client.error("lock_many", slot_ids=ids[:1], lock_key="x", lock_for_ms=1000))["code"] == "E045"
    assert (await client.ask("unlock_many", **mine))["meta"] == {"released": [True, True, True]}


async def test_waiting(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """Others are answered in the meantime."""
    await client.data("lock", slot_id=slot.id, lock_key="first", lock_for_ms=HOUR)
    second = client.request("lock", slot_id=slot.id, lock_key="second", lock_for_ms=HOUR, wait_ms=10_000)
    await client.publish(second)
    await client.data("unlock", slot_id=slot.id, lock_key="first")
    assert (await client.reply(second["id"]))["success"] is True


async def test_waiting_in_line(
    sidecar: Sidecar, client: Client, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Who came first gets the slot first, and nobody overtakes."""
    mine = {"slot_id": slot.id, "lock_for_ms": HOUR}
    await client.data("lock", **mine, lock_key="holder")
    waiting = [client.request("lock", **mine, lock_key=key, wait_ms=20_000, fair=True) for key in ("a", "b", "c")]
    for number, request in enumerate(waiting):
        await client.publish(request)
        async with asyncio.timeout(PATIENCE):
            while raw.zcard(Keys(lock_namespace).queue(slot.id)) <= number:  # noqa: ASYNC110 - it is another's connection
                await asyncio.sleep(0.002)
    for key, request in zip(("holder", "a", "b"), waiting, strict=True):
        await client.data("unlock", slot_id=slot.id, lock_key=key)
        assert (await client.error("lock", **mine, lock_key="overtaker"))["code"] == "E045"
        assert (await client.reply(request["id"]))["success"]
    refused = await client.error("lock", **mine, lock_key="d", fair=True)
    assert (refused["code"], refused["param"]) == ("E013", "fair")


async def test_a_row_is_booked_whole(
    sidecar: Sidecar, client: Client, async_lock_engine: AsyncLockEngine, new_slot: MakeSlot
) -> None:
    """All or none; and it tells of which slots the lock had ended."""
    ids = [slot.id for slot in await async_lock_engine.create_slots(new_slot() for _ in range(3))]
    mine = {"lock_key": "mine"}
    await client.data("lock_many", slot_ids=ids[:2], **mine, lock_for_ms=HOUR)
    booked = await client.ask("book_many", slot_ids=ids, **mine, metadata={"name": "Ada"})
    assert [(one["slot_id"], one["metadata"]) for one in booked["data"]] == [(id_, {"name": "Ada"}) for id_ in ids]
    assert booked["meta"] == {"expired": ids[2:]}
    assert len({one["id"] for one in booked["data"]}) == 3
    other = await async_lock_engine.create_slot(new_slot())
    assert (await client.error("book_many", slot_ids=[other.id, ids[0]]))["code"] == "E049"
    assert (await client.data("get", slot_id=other.id))["num_active_bookings"] == 0


async def test_the_end_of_a_lock_is_told_of_while_nobody_asks(
    sidecar: Sidecar, lock_engine: LockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """A sidecar looks for locks that ended by their date, as a server does."""
    lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=50))
    stream = f"{lock_namespace}:slots:events"
    async with asyncio.timeout(PATIENCE):
        while "expired" not in str(raw.xrange(stream)):  # noqa: ASYNC110 - it is another's connection
            await asyncio.sleep(0.01)


async def test_slots_and_bookings(sidecar: Sidecar, client: Client) -> None:
    """All of them from their making to their end."""
    dates = {"start_date": "2030-06-01T18:00:00Z", "end_date": "2030-06-01T19:00:00+02:00"}
    assert (await client.error("create_slot", resource_id="r", capacity=2, **dates))["code"] == "E023"
    dates["end_date"] = "2030-06-01T19:00:00Z"
    slot = await client.data("create_slot", resource_id="r", capacity=2, **dates)
    other = await client.data("create_slot", resource_id="r", capacity=1, slot_id="mine", **dates)
    assert other["id"] == "mine"
    named = {"slot_id": slot["id"]}
    assert (await client.data("update_slot", **named, capacity=3))["capacity"] == 3
    assert (await client.data("disable_slot", **named))["status"] == "disabled"
    assert (await client.error("book", **named))["code"] == "E051"
    assert (await client.data("enable_slot", **named))["status"] == "active"
    listed = await client.ask("list_slots", limit=1, page=2, available=True)
    assert (len(listed["data"]), listed["meta"]) == (1, {"limit": 1, "page": 2, "total": 2})

    booking = {"booking_id": (await client.data("book", **named))["id"]}
    assert (await client.data("cancel", **booking))["status"] == "cancelled"
    assert (await client.data("enable", **booking))["status"] == "active"
    assert (await client.data("reschedule", **booking, target_slot_id="mine"))["slot_id"] == "mine"
    assert (await client.data("update_booking", **booking, metadata={"n": 1}))["metadata"] == {"n": 1}
    assert (await client.data("get_booking", **booking))["metadata"] == {"n": 1}
    assert (await client.ask("list_bookings", limit=5, page=1, slot_id="mine"))["meta"]["total"] == 1
    assert (await client.error("delete_slot", slot_id="mine"))["code"] == "E060"
    for deleted in (True, False):
        assert (await client.ask("delete_booking", **booking))["meta"] == {"deleted": deleted}
        assert (await client.ask("delete_slot", slot_id="mine"))["meta"] == {"deleted": deleted}
    assert (await client.error("get_booking", **booking))["code"] == "E048"


async def test_slots_that_nobody_registered(lock_server: Any, lock_namespace: str, client: Client, name: str) -> None:
    """A service with a database of its own locks by its own ids: it is told until when, and the token."""
    async with (
        AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow") as engine,
        Sidecar(engine, name) as sidecar,
    ):
        await sidecar.wait_subscribed()
        locked = await client.ask("lock", slot_id="seat-1", lock_key="k", lock_for_ms=HOUR)
        assert locked["data"].keys() == {"id", "locked_until"}
        assert locked["fencing_token"] > 0
        unlocked = await client.data("unlock", slot_id="seat-1", lock_key="k")
        assert unlocked == {"id": "seat-1", "locked_until": None}


async def test_the_answer_goes_where_it_is_asked_for(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """To a channel of a process's own, say."""
    channel = f"{client.channels.replies}tests:process-7"
    await client.hear(channel)
    request = {"id": str(uuid.uuid4()), "op": "get", "slot_id": slot.id, "reply_to": channel}
    await client.publish(request)
    assert (await client.reply(request["id"]))["data"]["id"] == slot.id


async def test_the_deadline(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """A request that takes longer than its sender waits is told so, and may be sent again."""
    await client.data("lock", slot_id=slot.id, lock_key="first", lock_for_ms=HOUR)
    asked = {"slot_id": slot.id, "lock_key": "second", "lock_for_ms": HOUR}
    error = await client.error("lock", **asked, wait_ms=300, deadline_ms=1000)
    assert error["code"] == "E045"
    error = await client.error("lock", **asked, wait_ms=1000, deadline_ms=1000)
    assert (error["code"], error["param"]) == ("E013", "wait_ms")


@pytest.mark.parametrize("op", OPS)
def test_every_operation_has_an_example(op: str) -> None:
    """That the schema shows, and that is valid."""
    OPS[op].takes.model_validate_json(json.dumps({"id": "1", "op": op, "client": "c"} | dict(OPS[op].takes.example)))
