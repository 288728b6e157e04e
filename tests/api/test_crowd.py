"""Crowds at the door: hundreds of clients of one server, and what a kill of server and store leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import ssl
import subprocess
import sysconfig
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from overbooked_lock import Booking, EmbeddedServer, LockEngine, NewSlot
from overbooked_lock.client import AsyncOverbooked, RequestFailed, Result

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
CLIENTS, SLOTS, CAPACITY = 500, 10, 5
REFUSALS = {"E025", "E044", "E045", "E048", "E049", "E050", "E051", "E059"}
DEADLINE = 10.0  # seconds: a request has ended by then, whatever happens to server and store


@dataclass
class Served:
    """The real command in a process of its own."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def serve(store: EmbeddedServer, namespace: str, log: Path, port: int = 0) -> Iterator[Served]:
    command = [PROGRAM, "serve", "--url", store.url, "--namespace", namespace]
    command += ["--port", str(port)]
    with (
        log.open("a") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            address = re.search(r"http://\S+", process.stdout.readline())
            assert address is not None, log.read_text()
            yield Served(address[0], process)
        finally:
            if process.poll() is None:
                process.terminate()


@pytest.fixture
def namespace() -> str:
    return f"crowd-{uuid.uuid4().hex}"


@pytest.fixture
def secret_key(lock_server: EmbeddedServer, namespace: str) -> str:
    with LockEngine.from_url(lock_server.url, namespace=namespace) as engine:
        return engine.create_api_key("secret", name="crowd").key


def open_slots(engine: LockEngine) -> list[str]:
    start = datetime.now(UTC) + timedelta(days=1)
    slots = [
        NewSlot(resource_id="hall", start_date=start, end_date=start + timedelta(hours=1), capacity=CAPACITY)
        for _ in range(SLOTS)
    ]
    return [slot.id for slot in engine.create_slots(slots)]


def recount(engine: LockEngine, slot_ids: list[str]) -> list[Booking]:
    """All bookings, after each slot's counters were compared with them."""
    bookings: list[Booking] = []
    while found := engine.list_bookings(limit=512, page=len(bookings) // 512 + 1).bookings:
        bookings += found
        if len(found) < 512:
            break
    for slot_id in slot_ids:
        slot = engine.get_slot(slot_id)
        statuses = Counter(booking.status for booking in bookings if booking.slot_id == slot_id)
        assert (slot.num_active_bookings, slot.num_cancelled_bookings) == (statuses["active"], statuses["cancelled"])
        assert slot.num_active_bookings <= CAPACITY
    return bookings


@dataclass
class Crowd:
    """What the clients did, and what they may hold against the server afterwards."""

    slot_ids: list[str]
    end: float
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    booked: dict[str, Booking] = field(default_factory=dict)
    """Bookings that nobody but their own client touches."""
    known: list[str] = field(default_factory=list)
    """Bookings that anybody may cancel, enable, move."""
    holds: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """From when to when a client surely held a slot."""
    strangers: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """From when to when a booking without a lock was under way, that succeeded."""

    async def ask(self, request: Any) -> Result[Any]:
        began = time.monotonic()
        result: Result[Any] = await request
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.outcomes["ok" if result.error is None else result.error.code] += 1
        return result

    async def client(self, api: AsyncOverbooked, dice: random.Random) -> None:
        while time.monotonic() < self.end:
            slot_id = dice.choice(self.slot_ids)
            move = dice.randrange(10)
            if move < 2:
                await self.book_without_lock(api, slot_id)
            elif move < 5:
                await self.lock_and_book(api, slot_id, dice)
            elif self.known:
                booking_id = dice.choice(self.known)
                match move:
                    case 5 | 6 | 7:
                        await self.ask(api.booking.cancel(booking_id))
                    case 8:
                        await self.ask(api.booking.enable(booking_id))
                    case 9:
                        await self.ask(api.booking.reschedule(booking_id, target_slot_id=slot_id))

    async def book_without_lock(self, api: AsyncOverbooked, slot_id: str) -> None:
        began = time.monotonic()
        result = await self.ask(api.booking.create(slot_id=slot_id))
        if result.data is not None:
            self.strangers[slot_id].append((began, time.monotonic()))
            self.known.append(result.data.id)

    async def lock_and_book(self, api: AsyncOverbooked, slot_id: str, dice: random.Random) -> None:
        until, key = datetime.now(UTC) + timedelta(minutes=5), uuid.uuid4().hex
        locked = await self.ask(api.slot.lock(slot_id, lock_until=until, lock_key=key))
        if locked.error is not None:
            return
        held_from = time.monotonic()
        for _ in range(dice.randrange(3)):
            seen = await self.ask(api.slot.get(slot_id, lock_key=key))
            assert seen.unwrap().available, "to its holder a slot is available"
        held_to = time.monotonic()
        if dice.random() < 0.8:
            booked = await self.ask(api.booking.create(slot_id=slot_id, lock_key=key))
            if booked.data is not None:
                assert booked.meta == {}, "the lock was there, and was consumed"
                self.known.append(booked.data.id)
                self.holds[slot_id].append((held_from, held_to))
                return
        unlocked = await self.ask(api.slot.unlock(slot_id, lock_key=key))
        assert unlocked.success or unlocked.error is not None
        self.holds[slot_id].append((held_from, held_to))


async def run(crowd: Crowd, url: str, key: str) -> None:
    """All its clients at one time, each with a connection of its own: one pool for all would be the bottleneck."""
    context = ssl.create_default_context()  # which each would make for itself, and none needs

    async def client(number: int) -> None:
        async with AsyncOverbooked(base_url=url, secret_key=key, timeout=30.0, verify=context) as api:
            await crowd.client(api, random.Random(number))

    await asyncio.gather(*map(client, range(CLIENTS)))


@pytest.mark.timeout(0)
def test_500_clients_share_50_places(
    lock_server: EmbeddedServer, namespace: str, secret_key: str, tmp_path: Path, soak: bool
) -> None:
    """They book with and without locks, cancel, enable and move: never too many, never past another's lock, no 5xx."""
    with (
        LockEngine.from_url(lock_server.url, namespace=namespace) as engine,
        serve(lock_server, namespace, tmp_path / "log") as server,
    ):
        slot_ids = open_slots(engine)
        end = time.monotonic() + (300 if soak else 20)
        crowd = Crowd(slot_ids, end)
        asyncio.run(run(crowd, server.url, secret_key))
        assert crowd.outcomes["ok"] > 200
        assert all(crowd.outcomes[code] > 5 for code in ("E045", "E049", "E050")), crowd.outcomes
        assert set(crowd.outcomes) <= REFUSALS | {"ok"}, crowd.outcomes
        recount(engine, slot_ids)
        held = 0.0
        for slot_id, holds in crowd.holds.items():
            held += sum(held_to - held_from for held_from, held_to in holds)
            for began, ended in crowd.strangers[slot_id]:
                assert not any(held_from <= began and ended <= held_to for held_from, held_to in holds)
        assert held > 2, "seconds that slots were held, all together"


@pytest.mark.timeout(0)
def test_what_was_answered_survives_a_kill_of_server_and_store(namespace: str, tmp_path: Path, soak: bool) -> None:
    """With an append-only file that is always written: each success is there; all else ended in time with an error."""
    store = EmbeddedServer(tmp_path / "data")
    try:
        with LockEngine.from_url(store.url, namespace=namespace) as engine:
            key = engine.create_api_key("secret", name="crowd").key
            start = datetime.now(UTC) + timedelta(days=1)
            slots = [
                NewSlot(resource_id="hall", start_date=start, end_date=start + timedelta(hours=1), capacity=10_000)
                for _ in range(SLOTS)
            ]
            slot_ids = [slot.id for slot in engine.create_slots(slots)]
        for _ in range(5 if soak else 1):
            store = _kill_both_under_load(store, namespace, key, slot_ids, tmp_path)
    finally:
        store.close()


def _kill_both_under_load(
    store: EmbeddedServer, namespace: str, key: str, slot_ids: list[str], folder: Path
) -> EmbeddedServer:
    booked: dict[str, str] = {}
    failures: list[RequestFailed] = []
    slowest = 0.0

    with serve(store, namespace, folder / "log") as server:
        port = int(server.url.rsplit(":", 1)[1])
        end, successes = asyncio.Event(), asyncio.Queue[float]()

        async def client(api: AsyncOverbooked, dice: random.Random) -> None:
            nonlocal slowest
            while not end.is_set():
                slot_id, began = dice.choice(slot_ids), time.monotonic()
                result = await api.booking.create(slot_id=slot_id, idempotency_key=uuid.uuid4().hex)
                slowest = max(slowest, time.monotonic() - began)
                if result.data is not None:
                    booked[result.data.id] = slot_id
                    successes.put_nowait(began)
                else:
                    assert result.error is not None
                    failures.append(result.error)
                    await asyncio.sleep(0.05)  # as a client does that was told to come back

        async def succeed(count: int) -> None:
            """Until so many requests that begin from now on have succeeded."""
            now = time.monotonic()
            async with asyncio.timeout(30):
                while count:
                    count -= await successes.get() > now

        async def disaster() -> tuple[EmbeddedServer, subprocess.Popen[bytes]]:
            await succeed(100)
            # The store dies and comes back; the server finds it again by itself.
            os.kill(store.pid, signal.SIGKILL)
            revived = await asyncio.to_thread(EmbeddedServer, folder / "data")
            await succeed(100)
            # The server dies; whoever supervises it starts it again on its port.
            server.process.kill()
            await asyncio.to_thread(server.process.wait)
            command = [*server.process.args[:-1], str(port)]  # type: ignore[index]  # a list it was
            again = await asyncio.to_thread(
                subprocess.Popen, command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            await succeed(100)
            return revived, again

        async def work() -> tuple[EmbeddedServer, subprocess.Popen[bytes]]:
            limits = httpx.Limits(max_connections=50, max_keepalive_connections=50)
            async with AsyncOverbooked(base_url=server.url, secret_key=key, timeout=30.0, limits=limits) as api:
                clients = [asyncio.create_task(client(api, random.Random(number))) for number in range(50)]
                try:
                    return await disaster()
                finally:
                    end.set()
                    await asyncio.gather(*clients)

        revived, again = asyncio.run(work())
    again.terminate()
    again.wait()

    assert slowest < DEADLINE
    assert {error.code for error in failures} <= {"E070"}
    assert all(error.details["outcome"] in ("unknown", "not_applied") for error in failures)
    with LockEngine.from_url(revived.url, namespace=namespace) as engine:
        missing = [booking_id for booking_id in booked if not _is_there(engine, booking_id, booked[booking_id])]
        assert missing == []
        for slot_id in slot_ids:
            slot = engine.get_slot(slot_id)
            assert slot.num_active_bookings == engine.list_bookings(slot_id=slot_id, limit=1).total
    store.close()
    return revived


def _is_there(engine: LockEngine, booking_id: str, slot_id: str) -> bool:
    booking = engine.get_booking(booking_id)
    return (booking.slot_id, booking.status) == (slot_id, "active")
