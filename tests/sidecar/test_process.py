"""``overbooked-lock sidecar``: processes of their own, from their start to their end, and what befalls them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine, NewSlot, Slot

from .tools import PATIENCE, PROGRAM, Client, Running

HOUR = 3_600_000

Start = Callable[..., Running]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_what_is_under_way_is_answered_before_the_end(
    start: Start, client: Client, slot: Slot, async_lock_engine: AsyncLockEngine, how: signal.Signals
) -> None:
    """It hears nobody new, and ends with 0: it was told to."""
    running = start()
    await client.data("lock", slot_id=slot.id, lock_key="first", lock_for_ms=HOUR)
    waiting = client.request("lock", slot_id=slot.id, lock_key="second", lock_for_ms=HOUR, wait_ms=10_000)
    await client.publish(waiting)
    await client.data("ping")
    running.process.send_signal(how)
    while await client.publish("{}"):
        pass
    await async_lock_engine.unlock(slot.id, lock_key="first")
    assert (await client.reply(waiting["id"]))["success"]
    assert await asyncio.to_thread(running.process.wait, PATIENCE) == 0


async def test_the_health_file(start: Start, client: Client, tmp_path: Path) -> None:
    """Is there, with the counts, while the sidecar hears requests, and gone at its end."""
    health = tmp_path / "health"
    running = start("--health-file", str(health), "--log-format", "json")
    await client.data("ping")
    await until(health.exists)
    facts = json.loads(health.read_text())
    assert abs(facts["at"] - time.time()) < 60
    assert facts.keys() >= {"at", "name", "under_way"}
    assert running.stop() == 0
    assert not health.exists()
    [line] = [json.loads(line) for line in running.log.read_text().splitlines()]
    assert (line["message"], line["heard"], line["answered"]) == ("sidecar", 1, 1)


async def test_it_waits_for_a_store_that_is_not_there(start: Start, name: str, tmp_path: Path) -> None:
    """And carries on by itself after it went away, with all that was locked."""
    folder = tmp_path / "server"
    with EmbeddedServer(folder) as server:
        url = server.url
    health = tmp_path / "health"
    running = start("--unregistered", "allow", "--health-file", str(health), wait=False, OVERBOOKED_LOCK_URL=url)
    await until(lambda: "broke" in running.log.read_text())
    assert not health.exists()
    with EmbeddedServer(folder) as server:
        await asyncio.to_thread(running.wait)
        async with Client(url, name) as client:
            token = (await client.ask("lock", slot_id="s", lock_key="k", lock_for_ms=HOUR))["fencing_token"]
        os.kill(server.pid, signal.SIGKILL)
        with EmbeddedServer(folder), redis.Redis.from_url(url) as operator:
            for _ in range(2):
                await until(lambda: listeners(operator, name))
                async with Client(url, name) as client:
                    again = await client.ask("lock", slot_id="s", lock_key="k", lock_for_ms=HOUR)
                    assert again["fencing_token"] == token
                operator.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                operator.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert await asyncio.to_thread(running.stop) == 0


def test_it_can_be_stopped_while_it_waits(start: Start) -> None:
    """For a store that never comes."""
    running = start(wait=False, OVERBOOKED_LOCK_URL="unix:///nowhere/at-all.sock")
    deadline = time.monotonic() + PATIENCE
    while "broke" not in running.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert running.stop() == 0


def listeners(operator: redis.Redis, name: str) -> int:
    """How many sidecars hear requests."""
    [(_, count)] = operator.pubsub_numsub(f"overbooked:sidecar:{name}:requests")
    return int(count)


async def until(happened: Callable[[], object]) -> None:
    """Waits for what has no event of its own."""
    async with asyncio.timeout(PATIENCE):
        while not happened():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_without_a_url_it_brings_its_own_store(start: Start, tmp_path: Path) -> None:
    """In the user's data folder, as every command does; it is stopped with it."""
    running = start(OVERBOOKED_LOCK_URL="", OVERBOOKED_LOCK_NAMESPACE="")
    assert running.stop() == 0
    assert (tmp_path / "data/overbooked-lock/server.json").exists()
    assert not (tmp_path / "data/overbooked-lock/server.pid").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name", "a:b"], "--name"),
        (["--name", "a", "--url", "http://x"], "redis://"),
        (["--name", "a", "--keep-answers", "0s"], "--keep-answers"),
        (["--name", "a", "--max-requests", "0"], "--max-requests"),
        ([], "--name"),
    ],
)
def test_what_it_refuses(environment: dict[str, str], words: list[str], says: str) -> None:
    """With a line that says what to do, and no traceback."""
    done = subprocess.run(
        [PROGRAM, "sidecar", *words],
        env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


async def test_no_secret_is_ever_written(start: Start, client: Client, slot: Slot, tmp_path: Path) -> None:
    """Not what was right, not what was wrong, not what stood in the wrong place: in no log, answer or health file."""
    health = tmp_path / "health"
    running = start("--health-file", str(health))
    mine, other, odd = (f"lock-key-{uuid.uuid4()}" for _ in range(3))
    asked = {"slot_id": slot.id, "lock_for_ms": HOUR}
    for key in (mine, other):
        for op in ("lock", "extend", "check", "get", "unlock", "book", "lock"):
            await client.ask(op, **asked, lock_key=key)
    await client.ask("lock_many", slot_ids=[slot.id], lock_key=other, lock_for_ms=HOUR)
    await client.ask("lock", **asked, lock_key=odd * 9)
    await client.ask("lock", **asked, lock_key=[odd])
    await client.ask(odd, **asked)
    await client.ask("lock", slot_id=slot.id, lock_until=odd, lock_key=odd)
    await client.ask("lock", **asked, lock_key=mine, reply_to=odd)
    twice = client.request("lock", **asked, lock_key=mine)
    await client.ask(**twice)
    await client.ask(**twice | {"lock_key": odd})
    await client.publish(f'{{"lock_key":"{odd}",{odd}')
    await until(health.exists)
    written = health.read_text()
    assert await asyncio.to_thread(running.stop) == 0
    written += running.log.read_text() + json.dumps(client.replies)
    for secret in (mine, other, odd):
        assert secret[:24] not in written


@pytest.fixture
def two(start: Start, lock_server: EmbeddedServer, name: str) -> list[Running]:
    """Two sidecars of one name, both there."""
    both = [start(wait=False) for _ in range(2)]
    for running in both:
        running.wait()
    return both


async def test_two_under_load_and_one_is_killed(
    two: list[Running],
    client: Client,
    lock_engine: LockEngine,
    new_slot: Callable[..., NewSlot],
    raw: redis.Redis,
    lock_namespace: str,
    soak: bool,
) -> None:
    """Requests are doubled, delayed and spoiled, and one of two sidecars gets SIGKILL in the middle.

    Every valid request takes effect once, and all its answers are alike. None is left without one.
    """
    dice = random.Random(7)
    count = 8_000 if soak else 1_500
    place = lock_engine.create_slot(new_slot(capacity=count))
    slots = [f"slot-{number}" for number in range(0, count, 2)]
    for first in range(0, len(slots), 500):
        lock_engine.create_slots(new_slot(id=slot_id) for slot_id in slots[first : first + 500])
    asked = []
    for slot_id in slots:
        asked.append(client.request("lock", slot_id=slot_id, lock_key="k", lock_for_ms=HOUR, deadline_ms=15_000))
        asked.append(client.request("book", slot_id=place.id, deadline_ms=15_000))
    spoiled = [b"\xff", b"{}", b"[" * 9999, b'{"id":"1","op":"lock","client":"tests"}', b"x" * 70_000]
    killed = asyncio.Event()

    async def send(request: dict[str, Any], number: int) -> None:
        for _ in range(dice.choice([1, 1, 2, 3])):
            await client.publish(request)
            if dice.random() < 0.3:
                await asyncio.sleep(dice.uniform(0, 0.2))
            if dice.random() < 0.2:
                await client.publish(dice.choice(spoiled))
        if number == count // 2:
            two[0].process.kill()
            killed.set()

    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await send(asked[number], number)

    await asyncio.gather(*(work() for _ in range(30)))
    assert killed.is_set()
    replies = [await client.reply(request["id"]) for request in asked]
    assert [reply for reply in replies if not reply["success"]] == []
    for request in asked:
        assert len({json.dumps(reply) for reply in client.replies[request["id"]]}) == 1
    entries: Any = raw.xrange(f"{lock_namespace}:slots:events")
    told = [line.split("\t")[:2] for _, entry in entries for line in entry["events"].split("\n")]
    assert Counter(slot_id for kind, slot_id in told if kind == "locked") == Counter(slots)
    assert Counter(slot_id for kind, slot_id in told if kind == "booked") == {place.id: count // 2}
    assert lock_engine.get_slot(place.id).num_bookings == count // 2
    assert await asyncio.to_thread(two[1].stop) == 0


async def test_a_frozen_sidecar_is_passed_by(two: list[Running], client: Client, slot: Slot) -> None:
    """Its claims end by their lease. When it goes on, nobody hears what it has to say."""
    two[0].process.send_signal(signal.SIGSTOP)
    try:
        asked = [client.request("get", slot_id=slot.id) for _ in range(50)]
        for request in asked:
            await client.publish(request)
        for request in asked:
            assert (await client.reply(request["id"]))["success"]
    finally:
        two[0].process.send_signal(signal.SIGCONT)
    assert await client.data("get", slot_id=slot.id)
    for request in asked:
        assert len({json.dumps(reply) for reply in client.replies[request["id"]]}) == 1
