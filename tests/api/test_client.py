"""The Python client: the shape of the published JavaScript one, sync and async, against a real server."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from overbooked_lock import Booking, InvalidArgument, NewSlot, Slot
from overbooked_lock.client import AsyncOverbooked, Overbooked, RequestFailed, Result

from .tools import Served

DOCS = Path(__file__).parents[2] / "docs" / "http.md"
HOUR = timedelta(hours=1)
START = datetime(2030, 6, 1, 18, tzinfo=UTC)


def new_slot(**fields: Any) -> NewSlot:
    defaults: dict[str, Any] = {"resource_id": str(uuid.uuid4()), "start_date": START, "end_date": START + HOUR}
    return NewSlot(**(defaults | fields))


def soon() -> datetime:
    """In an hour, in whole milliseconds: so the API gives dates back."""
    now = datetime.now(UTC) + HOUR
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def awaited(methods: Any, runner: asyncio.Runner) -> Any:
    """Async methods, called like sync ones."""

    class Awaited:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            async def call(*args: Any, **kwargs: Any) -> Any:
                return await getattr(methods, name)(*args, **kwargs)

            return lambda *args, **kwargs: runner.run(call(*args, **kwargs))

    return Awaited()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Overbooked]]:
    """Makes clients, once all sync and once all async."""
    closing = []
    with asyncio.Runner() as runner:

        def make(**options: Any) -> Overbooked:
            if request.param == "sync":
                client = Overbooked(**options)
                closing.append(client.close)
                return client
            aio = AsyncOverbooked(**options)
            closing.append(lambda: runner.run(aio.close()))
            both = SimpleNamespace(slot=awaited(aio.slot, runner), booking=awaited(aio.booking, runner))
            return cast("Overbooked", both)

        yield make
        for close in closing:
            close()


@pytest.fixture
def office(api: Served, connect: Callable[..., Overbooked]) -> Overbooked:
    return connect(base_url=api.url, secret_key=api.secret.key)


@pytest.fixture
def shop(api: Served, connect: Callable[..., Overbooked]) -> Overbooked:
    return connect(base_url=api.url, public_key=api.public.key)


def failed(result: Result[Any]) -> RequestFailed:
    assert not result.success
    assert result.data is None
    assert result.error is not None
    return result.error


def test_slots(office: Overbooked) -> None:
    """Created, read, changed, closed, opened, listed, deleted: each answer is a Slot."""
    result = office.slot.create(new_slot(metadata={"floor": 2}, lockable=False))
    slot = result.unwrap()
    assert isinstance(slot, Slot)
    assert (result.success, result.error, result.meta) == (True, None, {})
    assert (slot.metadata, slot.lockable, slot.start_date) == ({"floor": 2}, False, START)
    assert office.slot.get(slot.id).data == slot
    updated = office.slot.update(slot.id, capacity=3, lockable=True, end_date=START + 2 * HOUR).unwrap()
    assert (updated.capacity, updated.lockable, updated.end_date, updated.metadata) == (
        3, True, START + 2 * HOUR, {"floor": 2},
    )  # fmt: skip
    assert office.slot.disable(slot.id).unwrap().status == "disabled"
    assert office.slot.enable(slot.id).unwrap().status == "active"
    page = office.slot.list(limit=10, page=1, resource_id=slot.resource_id, available=True, start_date=START)
    assert [found.id for found in page.unwrap()] == [slot.id]
    assert page.meta == {"limit": 10, "page": 1, "total": 1}
    assert office.slot.list(limit=10, page=1, resource_id=slot.resource_id, end_date=START).data == []
    assert office.slot.delete(slot.id).data == {}
    error = failed(office.slot.get(slot.id))
    assert (error.code, error.status) == ("E025", 404)


def test_many_slots_at_once(office: Overbooked) -> None:
    """A list gives a list; under one Idempotency-Key they are created once."""
    new = [new_slot(), new_slot(capacity=2)]
    once = str(uuid.uuid4())
    made = office.slot.create(new, idempotency_key=once).unwrap()
    assert [slot.capacity for slot in made] == [1, 2]
    assert office.slot.create(new, idempotency_key=once).data == made


def test_locks(office: Overbooked, shop: Overbooked) -> None:
    """With the fencing token; the holder's view; refusals with their facts."""
    slot = office.slot.create(new_slot()).unwrap()
    until = soon()
    locked = shop.slot.lock(slot.id, lock_until=until, lock_key="mine")
    assert (locked.unwrap().locked_until, locked.unwrap().available) == (until, True)
    assert locked.fencing_token is not None
    assert shop.slot.lock(slot.id, lock_until=until, lock_key="mine").fencing_token == locked.fencing_token
    assert shop.slot.get(slot.id).unwrap().available is False
    assert shop.slot.get(slot.id, lock_key="mine").unwrap().available is True
    error = failed(shop.slot.lock(slot.id, lock_until=until, lock_key="other"))
    assert (error.code, error.status) == ("E045", 422)
    assert error.details["retry_after_ms"] > 3_000_000
    assert error.request_id
    assert failed(shop.slot.unlock(slot.id, lock_key="other")).code == "E059"
    assert failed(shop.slot.unlock(slot.id, force=True)).code == "E015"
    assert shop.slot.unlock(slot.id, lock_key="mine").unwrap().locked_until is None
    shop.slot.lock(slot.id, lock_until=until, lock_key="mine")
    assert office.slot.unlock(slot.id, force=True).unwrap().locked_until is None


def test_bookings(office: Overbooked, shop: Overbooked) -> None:
    """With a lock and without; cancelled, enabled, moved, changed, listed, deleted."""
    slot, target = office.slot.create([new_slot(), new_slot()]).unwrap()
    shop.slot.lock(slot.id, lock_until=soon(), lock_key="mine")
    assert failed(shop.booking.create(slot_id=slot.id)).code == "E050"
    result = shop.booking.create(slot_id=slot.id, lock_key="mine", metadata={"name": "Ada"})
    booking = result.unwrap()
    assert isinstance(booking, Booking)
    assert (booking.slot_id, booking.metadata, result.meta) == (slot.id, {"name": "Ada"}, {})
    assert shop.booking.get(booking.id).data == booking
    assert shop.booking.update(booking.id, metadata={}).unwrap().metadata == {}
    assert shop.booking.cancel(booking.id).unwrap().status == "cancelled"
    shop.slot.lock(slot.id, lock_until=soon(), lock_key="again")
    assert failed(shop.booking.enable(booking.id)).code == "E050"
    assert shop.booking.enable(booking.id, lock_key="again").unwrap().status == "active"
    shop.slot.lock(target.id, lock_until=soon(), lock_key="there")
    assert failed(shop.booking.reschedule(booking.id, target_slot_id=target.id)).code == "E050"
    moved = shop.booking.reschedule(booking.id, target_slot_id=target.id, lock_key="there").unwrap()
    assert moved.slot_id == target.id
    page = shop.booking.list(limit=5, page=1, slot_id=target.id, resource_id=target.resource_id, status="active")
    assert (page.data, page.meta["total"]) == ([moved], 1)
    late = shop.booking.create(slot_id=slot.id, lock_key="of a lock that ended", idempotency_key=str(uuid.uuid4()))
    assert late.meta == {"lock": "expired"}
    assert failed(shop.booking.delete(booking.id)).code == "E015"
    assert office.booking.delete(booking.id).data == {}


def test_unwrap_raises_what_failed(shop: Overbooked) -> None:
    """For who prefers exceptions."""
    with pytest.raises(RequestFailed, match="E025"):
        shop.slot.get("nowhere").unwrap()


def test_ids_of_any_shape_reach_the_server(shop: Overbooked) -> None:
    """Slashes, spaces, unicode, dots."""
    for slot_id in ("a/b", "a b?c#d", "ü:{}", "%2F"):
        assert failed(shop.slot.get(f"{slot_id} {uuid.uuid4()}")).code == "E025"


def test_what_cannot_be_sent_is_named(shop: Overbooked, connect: Callable[..., Overbooked]) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidArgument, match="slot_id"):
        shop.slot.get("")
    with pytest.raises(InvalidArgument, match="lock_until"):
        shop.slot.lock("s", lock_until=datetime(2030, 1, 1), lock_key="k")  # noqa: DTZ001 - on purpose
    with pytest.raises(InvalidArgument, match="lock_key"):
        shop.slot.unlock("s")
    with pytest.raises(InvalidArgument, match="secret_key"):
        connect(base_url="http://localhost")


def test_no_server_is_a_result_too(connect: Callable[..., Overbooked]) -> None:
    """It was not carried out, and says so."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = connect(base_url=f"http://127.0.0.1:{unused.getsockname()[1]}", secret_key="sk_" + "0" * 64)
        error = failed(client.slot.get("s"))
    assert (error.code, error.status, error.details) == ("E070", 503, {"outcome": "not_applied"})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 502 Bad\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
def test_whoever_else_answers_is_a_result_too(connect: Callable[..., Overbooked], answer: bytes) -> None:
    """A proxy without a server behind it, or another program: what became of the request is unknown."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        client = connect(base_url=f"http://127.0.0.1:{server.getsockname()[1]}", secret_key="sk_" + "0" * 64)
        error = failed(client.slot.get("s"))
        thread.join()
    assert (error.code, error.details) == ("E070", {"outcome": "unknown"})


def test_the_example_in_the_reference_works(api: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is printed, but for the key and the address."""
    programs = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    [program] = [program for program in programs if "overbooked_lock.client" in program]
    api.ask(api.engine.create_slot(new_slot(id="court-1-18h")))
    names: dict[str, Any] = {}
    exec(program.replace("sk_…", api.secret.key).replace("http://127.0.0.1:8080", api.url), names)  # noqa: S102
    assert names["result"].fencing_token is not None
    assert names["booking"].slot_id == "court-1-18h"
    assert str(names["result"].fencing_token) in capsys.readouterr().out


def test_no_key_is_shown(api: Served, shop: Overbooked) -> None:
    """Not in a result, an error, or a client's repr."""
    key = "what only the holder knows"
    result = shop.slot.lock("nowhere", lock_until=soon(), lock_key=key)
    assert key not in repr(result) + str(result.error) + repr(shop)
    assert api.public.key not in repr(result) + repr(shop)
