"""``GET /events``: what happens to slots, as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import redis
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from starlette.applications import Starlette

from overbooked_lock import AsyncLockEngine, EmbeddedServer, Event, NewSlot, Slot
from overbooked_lock.http import create_app, streams
from overbooked_lock.http.access import Keyring
from overbooked_lock.http.endpoints import ENDPOINTS
from overbooked_lock.http.openapi import document

from .tools import PATIENCE, Served, error_of

BLINK = timedelta(milliseconds=60)


class Told(NamedTuple):
    """A block of a stream."""

    id: str
    event: str
    data: Any


class Reading:
    """An open stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.comments = 0

    def block(self) -> Told:
        """The next one, whatever it has."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                return Told(fields.get("id", ""), fields.get("event", ""), json.loads(fields.get("data", "null")))
            name, _, value = line.partition(":")
            self.comments += not name
            fields[name] = value.removeprefix(" ")
        raise EOFError

    def next(self) -> Told:
        """The next event."""
        while not (told := self.block()).event:
            pass
        return told

    def take(self, count: int) -> list[Told]:
        return [self.next() for _ in range(count)]


@contextlib.contextmanager
def reading(api: Served, query: str = "", *, path: str = "/events", key: str | None = None, **more: Any) -> Any:
    """Opens a stream, and has read how it begins: from then on nothing is missed."""
    headers = {"Authorization": f"Bearer {key or api.public.key}"} | more.pop("headers", {})
    with api.client.stream("GET", f"{path}?{query}", headers=headers, **more) as response:
        if not response.is_success:
            response.read()
            pytest.fail(response.text)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        yield Reading(response)


@pytest.fixture
def listening(api: Served) -> Iterator[Reading]:
    """A stream of all that happens from now on."""
    with reading(api) as stream:
        stream.block()
        yield stream


def test_what_happens_is_told_as_it_happens(api: Served, listening: Reading) -> None:
    """By its type and with its id; the data is an event as the document has it, and never a lock_key."""
    slot = api.slot()
    assert api.lock(slot["id"], "what only the holder knows").is_success
    api.call("POST", f"/slots/{slot['id']}/unlock", {"lock_key": "what only the holder knows"})
    seen = listening.take(3)
    assert [told.event for told in seen] == ["slot_changed", "locked", "unlocked"]
    schema = document(ENDPOINTS)["components"]["schemas"]["Event"]
    for told in seen:
        assert (told.data["type"], told.data["id"], told.data["slot_id"]) == (told.event, told.id, slot["id"])
        assert told.data["resource_id"] == slot["resource_id"]
        Draft202012Validator(schema).validate(told.data)
        assert Event.model_validate(told.data).model_dump(mode="json") == told.data
        assert "what only the holder knows" not in str(told)
    assert seen[1].data["locked_until"].endswith("Z")


def test_an_end_by_date_is_told_in_time(api: Served, listening: Reading) -> None:
    """Somebody sweeps."""
    slot = api.slot()["id"]
    lock = api.ask(api.engine.lock(slot, lock_for=BLINK))
    assert [told.event for told in listening.take(3)] == ["slot_changed", "locked", "expired"]
    assert lock.remaining() <= timedelta(0)


def test_a_reader_goes_on_where_it_was(api: Served, listening: Reading) -> None:
    """Within the events of one call too. What a browser says when it comes again counts, and not its URL."""
    ids = [slot["id"] for slot in (api.slot() for _ in range(4))]
    api.ask(api.engine.lock_many(ids, lock_for=timedelta(minutes=1)))
    seen = listening.take(8)
    with reading(api, f"since={seen[4].id}") as stream:
        assert stream.take(3) == seen[5:]
    with reading(api, f"since={seen[0].id}", headers={"Last-Event-ID": seen[5].id}) as stream:
        assert stream.take(2) == seen[6:]
    with reading(api, f"since={seen[0].id}&slot_id={ids[2]}") as stream:
        assert stream.take(2) == [seen[2], seen[6]]
    with reading(api, f"since={seen[0].id}&resource_id={seen[3].data['resource_id']}") as stream:
        assert stream.take(2) == [seen[3], seen[7]]


def test_a_stream_says_at_once_where_it_is(api: Served) -> None:
    """Who is cut off before the first event misses nothing either."""
    with reading(api) as stream:
        begins = stream.block()
        assert not begins.event
    slot = api.slot()["id"]
    with reading(api, headers={"Last-Event-ID": begins.id}) as stream:
        assert stream.next().data["slot_id"] == slot


def test_silence_shows_that_it_lives(serve: Callable[..., Served]) -> None:
    """And where it is: who wants few events does not fall behind what is kept."""
    api = serve(heartbeat=timedelta(milliseconds=30))
    with reading(api, "slot_id=mine") as stream:
        begins, other = stream.block(), ""
        while (beat := stream.block()).id == begins.id:
            if stream.comments == 2:
                other = api.slot()["id"]
        assert not beat.event
        with reading(api, f"since={begins.id}") as all_of_it:
            assert all_of_it.next().data["slot_id"] == other
        late = api.slot()["id"]
        with reading(api, f"since={beat.id}") as rest:
            assert rest.next().data["slot_id"] == late


def test_who_fell_behind_is_told_and_goes_on(api: Served, raw: redis.Redis) -> None:
    """From the moment it is told: then it reads the slots anew."""
    for _ in range(3):
        api.slot()
    stream_name = api.engine._settings.keys.events
    entries: Any = raw.xrange(stream_name, count=1)
    gone = entries[0][0]
    raw.xtrim(stream_name, maxlen=1, approximate=False)
    with reading(api, f"since={gone}.0") as stream:
        missed = stream.block()
        assert (missed.event, missed.data) == ("missed", {"since": gone})
        slot = api.slot()["id"]
        assert stream.next().data["slot_id"] == slot
    with reading(api, f"since={missed.id}") as stream:
        assert stream.next().data["slot_id"] == slot


@pytest.mark.parametrize(
    ("query", "param"),
    [("since=yesterday", "since"), ("since=", "since"), ("slot_id=", "slot_id"), ("slot_id=%00", "slot_id"),
     ("resource_id=" + "x" * 256, "resource_id"), ("since=1-2.3&since=1-2.3", "query"), ("key=sk_1", "key")],
)  # fmt: skip
def test_what_it_does_not_take(api: Served, query: str, param: str) -> None:
    """Is refused before the stream begins."""
    answer = api.call("GET", f"/events?{query}", key="public")
    assert (error_of(answer), answer.json()["error"]["param"]) == (("E013", 400), param)
    assert open_streams(api) == 0


def test_keys(api: Served) -> None:
    """A browser's EventSource sets no headers: a public key may stand in the URL, here alone, and no secret one."""
    for key in (api.public.key, api.secret.key):
        with reading(api, key=key) as stream:
            stream.block()
    with api.client.stream("GET", f"/events?key={api.public.key}") as response:
        assert response.is_success
    assert error_of(api.call("GET", "/events", key=None)) == ("E056", 401)
    assert error_of(api.call("GET", "/events?key=pk_" + "0" * 64, key=None)) == ("E055", 401)
    refused = api.call("GET", f"/events?key={api.secret.key}", key=None)
    assert error_of(refused) == ("E013", 400)
    assert api.secret.key not in refused.text
    assert error_of(api.call("GET", f"/slots?limit=1&page=1&key={api.public.key}", key=None)) == ("E056", 401)


def test_a_key_that_is_revoked_ends_its_streams(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of no other."""
    monkeypatch.setattr(Keyring, "REMEMBERED", 0.0)
    api = serve(heartbeat=timedelta(milliseconds=30))
    with reading(api) as stream, reading(api, key=api.secret.key) as other:
        stream.block()
        api.ask(api.engine.revoke_api_key(api.public.id))
        with pytest.raises(EOFError):
            while True:
                stream.block()
        slot = api.slot()["id"]
        assert other.next().data["slot_id"] == slot
    assert number(api, 'overbooked_streams_ended_total{end="revoked"}') == 1


def test_head_has_no_stream(api: Served) -> None:
    """It ends."""
    assert api.call("HEAD", "/events").is_success
    assert open_streams(api) == 0


def test_cors(api: Served) -> None:
    """Pages may read it, and say where they were."""
    origin = {"Origin": "https://shop.example"}
    with reading(api, headers=origin) as stream:
        assert stream.response.headers["access-control-allow-origin"] == "*"
    asks = origin | {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
    preflight = api.call("OPTIONS", "/events", key=None, headers=asks)
    assert "last-event-id" in preflight.headers["access-control-allow-headers"].lower()


def test_an_address_has_so_many_streams(serve: Callable[..., Served]) -> None:
    """Under a public key; one that ends makes room for another. A secret key has as many as it wants."""
    api = serve(max_streams=2)
    with reading(api), reading(api):
        refused = api.call("GET", "/events", key="public")
        assert (error_of(refused), refused.json()["error"]["reason"]) == (("E062", 429), "streams")
        with reading(api, key=api.secret.key) as stream:
            stream.block()
    until(lambda: not open_streams(api))
    with reading(api) as stream:
        stream.block()


def test_readers_that_went_leave_nothing_behind(serve: Callable[..., Served], raw: redis.Redis) -> None:
    """All share one subscription, which ends with the last of them."""
    api = serve(max_streams=None, rate_limit=None)
    channel = api.engine._settings.keys.events
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(reading(api)) for _ in range(20)]
        for stream in opened:
            stream.block()
        assert dict(raw.pubsub_numsub(channel)) == {channel: 1}
        assert open_streams(api) == 20
        slot = api.slot()["id"]
        assert {stream.next().data["slot_id"] for stream in opened} == {slot}
        assert number(api, "overbooked_events_sent_total") == 20
    until(lambda: not open_streams(api))
    until(lambda: dict(raw.pubsub_numsub(channel)) == {channel: 0})
    assert number(api, 'overbooked_streams_ended_total{end="gone"}') == 20
    assert not api.engine._listener._audience


def test_a_reader_that_does_not_read_is_cut_off(serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs nobody else anything, and little memory."""
    monkeypatch.setattr(streams, "WRITE_PATIENCE", 0.3)
    api = serve()
    ids = [slot.id for slot in api.ask(api.engine.create_slots(new_slots(512)))]
    with reading(api) as other:
        other.block()
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect(_address(api))
            lazy.sendall(f"GET /events?key={api.public.key} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert lazy.recv(512).startswith(b"HTTP/1.1 200")
            while not number(api, 'overbooked_streams_ended_total{end="slow"}'):
                locks = api.ask(api.engine.lock_many(ids, lock_for=timedelta(minutes=1)))
                api.ask(api.engine.unlock_many(locks))
                assert [told.event for told in other.take(1024)] == ["locked"] * 512 + ["unlocked"] * 512
            lazy.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionError):  # however much of it was still under way
                while lazy.recv(65536):
                    pass
        assert open_streams(api) == 1
        assert len(api.engine._listener._audience._queues) == 1


def test_a_store_that_is_away(serve: Callable[..., Served], tmp_path: Any) -> None:
    """Is told before the stream begins; one that goes later is waited for, and nothing is missing."""
    with EmbeddedServer(tmp_path / "store") as store:
        api = serve(store=store.url, rate_limit=None)
        api.engine._timeout = api.engine._coalescer._timeout = 0.5
        with reading(api) as stream:
            stream.block()
            with redis.Redis.from_url(store.url) as operator:
                for _ in range(5):
                    operator.client_kill_filter(_type="pubsub")
                    slot = api.slot()["id"]
                    assert stream.next().data["slot_id"] == slot
    assert error_of(api.call("GET", "/events", key="public")) == ("E070", 503)


@pytest.mark.parametrize("host", [Starlette, FastAPI])
def test_in_a_host(serve: Callable[..., Served], host: type[Starlette]) -> None:
    """Mounted in its application; it ends there when the host says so."""
    apps = []

    def around(app: Any) -> Any:
        apps.append(app)
        outer = host()
        outer.mount("/booking", app)
        return outer

    api = serve(around=around)
    with reading(api, path="/booking/events") as stream:
        stream.block()
        slot = api.ask(api.engine.create_slots(new_slots(1)))[0].id
        assert stream.next().data["slot_id"] == slot

        async def end() -> None:
            apps[0].end_streams()

        api.ask(end())
        assert (stream.block(), stream.comments) == (Told("", "", None), 1)
        with pytest.raises(EOFError):
            stream.block()


async def test_it_sweeps_while_it_runs(
    async_lock_engine: AsyncLockEngine, slot: Slot, raw: redis.Redis, lock_namespace: str
) -> None:
    """Also in a host's lifespan, and whether or not anybody listens."""
    async with create_app(async_lock_engine).running():
        await async_lock_engine.lock(slot.id, lock_for=timedelta(milliseconds=300))
        heard: Any = await asyncio.to_thread(raw.xread, {f"{lock_namespace}:slots:events": "$"}, block=4_000)
    [[_, [[_, fields]]]] = heard
    assert fields["events"].startswith("expired\t")


# What these tests share


def new_slots(count: int) -> list[NewSlot]:
    six = datetime(2030, 6, 1, 18, tzinfo=UTC)
    return [NewSlot(resource_id="r", start_date=six, end_date=six + timedelta(hours=1)) for _ in range(count)]


def _address(api: Served) -> tuple[str, int]:
    url = urlsplit(api.url)
    return str(url.hostname), int(url.port or 0)


def number(api: Served, name: str) -> float:
    """A metric."""
    found = [line for line in api.client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[-1]) if found else 0.0


def open_streams(api: Served) -> int:
    return int(number(api, "overbooked_streams"))


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
