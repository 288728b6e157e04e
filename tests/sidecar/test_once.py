"""A request takes effect once and is answered alike, however often and by however many it is heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import redis

from overbooked_lock import AsyncLockEngine, EmbeddedServer, NewSlot, Slot, StoreUnavailable
from overbooked_lock.sidecar import Sidecar, claims
from overbooked_lock.sidecar.claims import RequestAnswer, RequestClaim
from overbooked_lock.sidecar.operations import MODELS
from overbooked_lock.sidecar.requests import read

from .tools import PATIENCE, Client

HOUR = 3_600_000


@pytest_asyncio.fixture
async def second(
    sidecar: Sidecar, lock_server: EmbeddedServer, lock_namespace: str, name: str
) -> AsyncIterator[Sidecar]:
    """Another one of the same name, beside ``sidecar``."""
    async with (
        AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine,
        Sidecar(engine, name) as other,
    ):
        await other.wait_subscribed()
        yield other


@pytest.fixture
def place(async_lock_engine: AsyncLockEngine, new_slot: Callable[..., NewSlot]) -> Callable[[], Any]:
    """Makes a slot with many places, where nothing but the number of bookings tells how often it was booked."""

    async def make() -> Slot:
        return await async_lock_engine.create_slot(new_slot(capacity=1000))

    return make


async def run(engine: AsyncLockEngine, build: Any, request: Any) -> Any:
    """The outcome of a script for one request."""
    [outcome] = await engine._coalescer.enqueue(build, [request])
    return outcome


async def claim(engine: AsyncLockEngine, client: Client, request: dict[str, Any], **lease: Any) -> RequestClaim:
    """Claims a request in the name of a sidecar that dies of it."""
    heard = read(json.dumps(request).encode(), client.channels, MODELS)
    mine = RequestClaim(f"sidecar:{heard.key}", "dead", heard.fingerprint, lease.get("lease_ms", 1000))
    assert (await run(engine, claims.claim_request, mine)).state == "claimed"
    return mine


async def test_sent_twice(sidecar: Sidecar, client: Client, place: Any) -> None:
    """At once, and again when it was answered."""
    slot = await place()
    request = client.request("book", slot_id=slot.id)
    await client.publish(request)
    await client.publish(request)
    first = await client.reply(request["id"])
    again = await client.ask(**request)
    assert first == again
    assert (await client.data("get", slot_id=slot.id))["num_bookings"] == 1


async def test_sent_again_while_it_is_under_way(
    async_lock_engine: AsyncLockEngine, client: Client, name: str, slot: Slot
) -> None:
    """It is not one request more: who grows impatient is not told "busy" of what is being done."""
    held = await async_lock_engine.lock(slot.id, lock_for=timedelta(minutes=1))
    waiting = client.request("lock", slot_id=slot.id, lock_key="k", lock_for_ms=HOUR, wait_ms=20_000)
    async with Sidecar(async_lock_engine, name, max_requests=1) as sidecar:
        await sidecar.wait_subscribed()
        await client.publish(waiting)
        await client.publish(waiting)
        assert (await client.error("get", slot_id=slot.id))["reason"] == "busy"
        await async_lock_engine.unlock(held)
        assert (await client.reply(waiting["id"]))["success"]
        assert sidecar.counts["repeated"] == 1
    assert len(client.replies[waiting["id"]]) == 1


async def test_heard_by_two(sidecar: Sidecar, second: Sidecar, client: Client, place: Any) -> None:
    """Each works on what it claims; all answers to a request are alike."""
    slot = await place()
    asked = [client.request("book", slot_id=slot.id) for _ in range(100)]
    for request in asked:
        assert await client.publish(request) == 2
    for request in asked:
        assert (await client.reply(request["id"]))["success"]
    assert (await client.data("get", slot_id=slot.id))["num_bookings"] == 100
    assert all(len({str(reply) for reply in replies}) == 1 for replies in client.replies.values())


async def test_a_refusal_is_an_answer_too(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """It is not tried again under this id."""
    await client.data("lock", slot_id=slot.id, lock_key="first", lock_for_ms=HOUR)
    request = client.request("lock", slot_id=slot.id, lock_key="second", lock_for_ms=HOUR)
    refused = await client.ask(**request)
    await client.data("unlock", slot_id=slot.id, lock_key="first")
    assert await client.ask(**request) == refused
    assert (await client.ask(**request | {"id": "another"}))["success"]


async def test_another_request_with_the_same_id(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """Is refused, as long as the answer is kept, and also while the first is worked on."""
    request = client.request("lock", slot_id=slot.id, lock_key="k", lock_for_ms=HOUR)
    await client.data(**request)
    other = await client.error(**request | {"lock_for_ms": 1})
    assert (other["code"], other["param"]) == ("E013", "id")
    waiting = client.request("lock", slot_id=slot.id, lock_key="second", lock_for_ms=HOUR, wait_ms=9_000)
    await client.publish(waiting)
    other = await client.error(**waiting | {"lock_key": "third"})
    assert (other["code"], other["param"]) == ("E013", "id")
    await client.data("unlock", slot_id=slot.id, lock_key="k")
    assert (await client.reply(waiting["id"], 1))["success"]


async def test_what_has_no_say_in_what_is_asked_for(sidecar: Sidecar, client: Client, slot: Slot) -> None:
    """Where the answer goes, and how long it may take: a client that was started anew has another channel, perhaps."""
    channel = f"{client.channels.replies}tests:new"
    await client.hear(channel)
    request = client.request("lock", slot_id=slot.id, lock_key="k", lock_for_ms=HOUR)
    assert await client.ask(**request) == await client.ask(**request | {"reply_to": channel, "deadline_ms": 900})


async def test_ids_are_each_clients_own(sidecar: Sidecar, client: Client, place: Any, lock_server: Any) -> None:
    """Two clients that count from 1 do not meet."""
    slot = await place()
    async with Client(lock_server.url, client.channels.name, "others") as other:
        await client.data("book", id="1", slot_id=slot.id)
        await other.data("book", id="1", slot_id=slot.id)
    assert (await client.data("get", slot_id=slot.id))["num_bookings"] == 2


async def test_a_sidecar_died_at_its_work(
    sidecar: Sidecar, client: Client, place: Any, async_lock_engine: AsyncLockEngine
) -> None:
    """Another takes over when the lease is over. What was done before is not done again."""
    slot = await place()
    request = client.request("book", slot_id=slot.id)
    await claim(async_lock_engine, client, request, lease_ms=200)
    await client.publish(request)
    reply = await client.reply(request["id"])
    assert reply["success"]
    assert sidecar.counts["taken_over"] == 1

    done = client.request("book", slot_id=slot.id)
    booked = await claim(async_lock_engine, client, done, lease_ms=200)
    await async_lock_engine.book(slot.id, booking_id=booked.name.removeprefix("sidecar:"))
    await client.publish(done)
    assert (await client.reply(done["id"]))["success"]
    assert (await client.data("get", slot_id=slot.id))["num_bookings"] == 2


async def test_who_works_long_keeps_its_claim(sidecar: Sidecar, second: Sidecar, client: Client, slot: Slot) -> None:
    """A request that waits for longer than a lease is one sidecar's all the same."""
    await client.data("lock", slot_id=slot.id, lock_key="first", lock_for_ms=HOUR)
    error = await client.error("lock", slot_id=slot.id, lock_key="second", lock_for_ms=HOUR, wait_ms=2500)
    assert error["code"] == "E045"
    assert sidecar.counts["taken_over"] + second.counts["taken_over"] == 0
    assert sidecar.counts["E045"] + second.counts["E045"] == 1


async def test_of_two_answers_the_first_is_everybodys(
    async_lock_engine: AsyncLockEngine, client: Client, slot: Slot
) -> None:
    """One who was thought dead comes too late: nobody hears its answer. Who listens elsewhere hears the first."""
    request = client.request("get", slot_id=slot.id)
    late = await claim(async_lock_engine, client, request)
    here, there = client.channels.of("tests"), client.channels.of("tests:there")
    await client.hear(there)

    def answer(number: int, channel: str, keep_ms: int = 1000) -> RequestAnswer:
        return RequestAnswer(late.name, "o", late.fingerprint, keep_ms, channel, f'{{"id":"x","n":{number}}}')

    assert await run(async_lock_engine, claims.answer_request, answer(1, here)) == 1
    assert await run(async_lock_engine, claims.answer_request, answer(2, here)) is None
    assert await run(async_lock_engine, claims.answer_request, answer(3, there)) is None
    assert await run(async_lock_engine, claims.answer_request, answer(4, here, keep_ms=0)) == 1
    await client.reply("x", 2)
    assert [reply["n"] for reply in client.replies["x"]] == [1, 1, 4]


async def test_what_the_store_did_not_confirm_may_be_asked_again(
    sidecar: Sidecar, client: Client, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same id: that is no answer to keep."""

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("unknown", "it did not answer in time")

    request = client.request("get", slot_id=slot.id)
    with monkeypatch.context() as patch:
        patch.setattr(AsyncLockEngine, "get_slot", fail)
        error = await client.error(**request)
    assert (error["code"], error["details"]) == ("E070", {"outcome": "unknown"})
    assert await client.data(**request)


async def test_the_deadline(sidecar: Sidecar, client: Client, slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender is told that nobody knows, and may ask again."""

    async def hang(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    request = client.request("get", slot_id=slot.id, deadline_ms=150)
    with monkeypatch.context() as patch:
        patch.setattr(AsyncLockEngine, "get_slot", hang)
        error = await client.error(**request)
    assert (error["code"], error["details"]) == ("E070", {"outcome": "unknown"})
    assert await client.data(**request)


@pytest.mark.parametrize("op", ["book", "book_many"])
async def test_answers_are_kept_for_a_while(
    async_lock_engine: AsyncLockEngine, client: Client, name: str, place: Any, raw: redis.Redis, lock_namespace: str,
    op: str,
) -> None:  # fmt: skip
    """After that the same request may do its work again; what it created is there already."""
    slot = await place()
    async with Sidecar(async_lock_engine, name, keep_answers=timedelta(milliseconds=1)) as sidecar:
        await sidecar.wait_subscribed()
        request = client.request(op, **{"slot_id": slot.id} if op == "book" else {"slot_ids": [slot.id]})
        first = await client.ask(**request)
        async with asyncio.timeout(PATIENCE):
            while raw.keys(f"{lock_namespace}:answer:*"):  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.001)
        assert (await client.ask(**request))["data"] == first["data"]
    assert (await async_lock_engine.get_slot(slot.id)).num_bookings == 1


async def test_what_came_while_it_did_not_run(sidecar: Sidecar, client: Client, place: Any) -> None:
    """Is left alone: it may be older than any answer that is kept. Whoever still waits asks again."""
    slot = await place()
    assert sidecar._subscription is not None
    assert sidecar._subscription._wire is not None
    sidecar._subscription._wire.ran_at -= 60
    request = client.request("book", slot_id=slot.id)
    await client.publish(request)
    while sidecar.subscribed:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.002)
    await sidecar.wait_subscribed()
    assert (sidecar.counts["heard"], client.replies) == (0, {})
    assert await client.data(**request)


async def test_a_claim_that_was_long_on_its_way(
    sidecar: Sidecar, client: Client, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is made anew: another one may have done the work."""
    slot = await place()
    request = client.request("book", slot_id=slot.id)
    run, asked = sidecar._run, list[Any]()

    async def late(build: Any, step: Any) -> Any:
        outcome = await run(build, step)
        if build is claims.claim_request and not asked:
            asked.append(step)
            done = RequestAnswer(step.name, "another", step.fingerprint, 60_000, "x", json.dumps({"id": request["id"]}))
            await run(claims.answer_request, done)
            monkeypatch.setattr("overbooked_lock.sidecar.sidecar.LEASE", 0)
            asyncio.get_running_loop().call_soon(monkeypatch.setattr, "overbooked_lock.sidecar.sidecar.LEASE", 1.0)
        return outcome

    monkeypatch.setattr(sidecar, "_run", late)
    await client.publish(request)
    assert await client.reply(request["id"]) == {"id": request["id"]}
    monkeypatch.undo()
    assert (await client.data("get", slot_id=slot.id))["num_bookings"] == 0
