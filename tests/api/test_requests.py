"""What may come over a wire: odd paths, bodies and headers. Each is answered with an envelope."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from overbooked_lock import NewSlot
from overbooked_lock.http import request

from .tools import Served, checked, data_of, error_of, soon


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("GET", "/slots/"),
        ("GET", "/slots/x/y/z"),
        ("POST", "/slots/x/nothing"),
        ("GET", "/slots/x/"),
        ("GET", "/slots//lock"),
        ("GET", "/%73lots/x/y"),
    ],
)
def test_e002_no_such_route(api: Served, method: str, path: str) -> None:
    """With or without a key."""
    for key in ("secret", None):
        assert error_of(api.call(method, path, key=key)) == ("E002", 404)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE"])
def test_e002_no_such_method(api: Served, method: str) -> None:
    """``Allow`` says which there are."""
    refused = api.call(method, "/slots")
    assert error_of(refused) == ("E002", 404)
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS, POST"


def test_head_is_get_without_a_body(api: Served) -> None:
    """For monitors and link checkers."""
    assert api.call("HEAD", f"/slots/{api.slot()['id']}").status_code == 200


@pytest.mark.parametrize("slot_id", ["a/b", "../x", "ü ?#%&", "%2F", "x" * 255, "slot:1:lock", "🎟", ".", "\u2028"])
def test_ids_of_any_shape_are_one_segment(api: Served, slot_id: str, new_slot: Any) -> None:
    """Percent-encoded, they reach their slot."""
    slot: NewSlot = new_slot(id=slot_id)
    api.ask(api.engine.create_slot(slot))
    path = f"/slots/{quote(slot_id, safe='').replace('.', '%2E')}"
    assert data_of(api.call("GET", path))["id"] == slot_id
    assert data_of(api.call("POST", f"{path}/lock", {"lock_until": soon(), "lock_key": "k"}))["id"] == slot_id


@pytest.mark.parametrize("raw", ["%00", "x" * 10_000, "%FF", "%0A", "%ED%A0%80"])
def test_ids_that_no_slot_can_have(api: Served, raw: str) -> None:
    """Are an error of the caller's, and no crash."""
    refused = api.call("GET", f"/slots/{raw}")
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "id"


def connect(api: Served) -> socket.socket:
    """A bare connection."""
    host, port = urlsplit(api.url).netloc.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def exchange(api: Served, *parts: bytes) -> bytes:
    """Sends bytes as they are; gives what comes back until the server closes."""
    with connect(api) as wire:
        for part in parts:
            wire.sendall(part)
        wire.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    return answer


def body_of(answer: bytes) -> dict[str, Any]:
    """The JSON of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length
    envelope: dict[str, Any] = json.loads(body[: int(length[1])])
    return envelope


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"{'a': 1}",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 60_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"lock_key":"a","lock_key":"b","lock_until":"2030-01-01"}',
        b'{"lock_key":NaN}',
        b'{"lock_key":' + b"9" * 5000 + b"}",
        '{"lock_key":"k"}'.encode("utf-16"),
    ],
)
def test_e013_bodies_that_are_no_json_object(api: Served, body: bytes) -> None:
    """Also those that are deep, or say a thing twice."""
    headers = {"Content-Type": "application/json"}
    refused = api.call("POST", f"/slots/{uuid.uuid4()}/lock", headers=headers, content=body)
    assert error_of(refused) == ("E013", 400)


@pytest.mark.parametrize(("around", "fine"), [("{}", True), (" \t\r\n{}\n", True), ("{} {{}}", False), ("{}x", False)])
def test_what_may_stand_around_a_body(api: Served, around: str, fine: bool) -> None:
    """White space, and nothing else: what follows would be passed over in silence."""
    body = around.format(f'{{"lock_key":"k","lock_until":"{soon()}"}}').encode()
    headers = {"Content-Type": "application/json"}
    answer = api.call("POST", f"/slots/{api.slot()['id']}/lock", headers=headers, content=body)
    if fine:
        assert answer.is_success
    else:
        assert error_of(answer) == ("E013", 400)


@pytest.mark.parametrize("key", ['"\\ud800"', '"a\\u0000b"'])
def test_odd_lock_keys(api: Served, key: str) -> None:
    """NUL is a character like any other, half a surrogate pair is none."""
    slot = api.slot()
    body = f'{{"lock_key":{key},"lock_until":"{soon()}"}}'
    headers = {"Content-Type": "application/json"}
    answer = api.call("POST", f"/slots/{slot['id']}/lock", headers=headers, content=body.encode())
    if "ud800" in key:
        assert error_of(answer) == ("E013", 400)
        assert answer.json()["error"]["param"] == "lock_key"
    else:
        assert answer.is_success


@pytest.mark.parametrize(
    "metadata", ['{"a":1e999}', '{"a":"\\ud800"}', '{"\\udfff":1}', '{"a":' + "[" * 300 + "]" * 300 + "}"]
)
def test_e013_metadata_that_could_not_come_back(api: Served, metadata: str) -> None:
    """Infinities, halves of characters and great depth."""
    body = '{"resource_id":"r","start_date":"2030-01-01","end_date":"2030-01-02","capacity":1,"metadata":%s}'
    headers = {"Content-Type": "application/json"}
    refused = api.call("POST", "/slots", headers=headers, content=(body % metadata).encode())
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "metadata"


def test_content_types(api: Served) -> None:
    """JSON under its own name, or none at all; anything else was meant for somebody else."""
    slot = api.slot()
    body = json.dumps({"lock_until": soon(), "lock_key": "k"}).encode()
    path = f"/slots/{slot['id']}/lock"
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        assert api.call("POST", path, headers={"Content-Type": kind}, content=body).is_success
    assert api.call("POST", path, content=body).is_success
    refused = api.call("POST", path, headers={"Content-Type": "text/plain"}, content=body)
    assert error_of(refused) == ("E013", 400)
    assert refused.json()["error"]["param"] == "Content-Type"


def test_fields_that_nobody_asked_for_are_ignored(api: Served) -> None:
    """A client may know more than we do."""
    assert api.lock(api.slot()["id"], surprise={"a": 1}).is_success


def test_a_body_that_is_too_long_is_refused_unread(api: Served) -> None:
    """By its length, before a byte of it came."""
    head = f"POST /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.secret.key}\r\n"
    answer = exchange(api, f"{head}Content-Length: 65537\r\nConnection: close\r\n\r\n".encode())
    error = body_of(answer)["error"]
    assert (error["code"], error["param"]) == ("E013", "body")


def test_a_stream_that_is_too_long_is_refused(api: Served) -> None:
    """As soon as it is, whatever its length was said to be."""

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    answer = api.call("POST", "/slots", content=endless(), headers={"Content-Type": "application/json"})
    assert error_of(answer) == ("E013", 400)
    assert answer.json()["error"]["param"] == "body"


def test_a_body_of_64_kib_is_taken(api: Served) -> None:
    """In pieces."""
    body = json.dumps({"lock_until": soon(), "lock_key": "k"}).encode().ljust(65_536)
    pieces = (body[at : at + 10_000] for at in range(0, len(body), 10_000))
    headers = {"Content-Type": "application/json"}
    assert api.call("POST", f"/slots/{api.slot()['id']}/lock", headers=headers, content=pieces).is_success


@pytest.mark.parametrize("begun", [b"", b'{"resource_id"'])
def test_e013_a_body_that_does_not_arrive(api: Served, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """Whether it began or not: nobody is waited for, for ever."""
    monkeypatch.setattr(request, "BODY_PATIENCE", 0.2)
    head = f"POST /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.secret.key}\r\nContent-Length: 100\r\n\r\n"
    with connect(api) as wire:
        wire.sendall(head.encode() + begun)
        error = body_of(wire.recv(65_536))["error"]
    assert (error["code"], error["param"]) == ("E013", "body")
    assert "must arrive within 0.2 s" in error["message"]


async def test_a_server_sees_itself_what_becomes_of_its_waiting() -> None:
    """Whatever a foreign server waits for, it is the one that makes a message of it."""
    arrives: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive() -> request.Message:
        try:
            await arrives
        except ConnectionError:
            return {"type": "http.disconnect"}
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/slots", "headers": [(b"content-length", b"10")]}
    asyncio.get_running_loop().call_soon(arrives.set_exception, ConnectionResetError())
    with pytest.raises(request.Disconnected):
        await request.Request(scope, receive, ()).body()


def test_a_client_that_goes_away_leaves_no_trace(api: Served) -> None:
    """It was not understood, so nothing was done."""
    head = f"POST /slots HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.secret.key}\r\nContent-Length: 100\r\n\r\n"
    exchange(api, head.encode(), b'{"resource_id"')
    assert api.call("GET", "/healthz", key=None).is_success


def test_request_ids(api: Served) -> None:
    """One that was sent comes back; one that can't be printed is replaced."""
    assert api.call("GET", "/nothing", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("x" * 129, "a b", "é", ""):
        made = api.call("GET", "/healthz", headers={"X-Request-Id": bad.encode()}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)


def test_cors(api: Served) -> None:
    """A page of any origin may ask, and read what we add in headers."""
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    preflight = api.call("OPTIONS", "/slots/x/lock", key=None, headers=asks)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-lock-key", "idempotency-key"} <= set(allowed)
    for answer in (api.call("GET", "/nothing", headers=asks), api.call("GET", "/healthz", headers=asks)):
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"x-fencing-token", "x-request-id", "retry-after"} <= set(exposed)
    assert "access-control-allow-origin" not in api.call("GET", "/healthz").headers


def test_cors_for_named_origins(serve: Any) -> None:
    """Others get no permission, and caches are told that it depends."""
    api: Served = serve(origins=["https://shop.example"])
    for origin, allowed in {"https://shop.example": "https://shop.example", "https://evil.example": None}.items():
        answer = api.call("OPTIONS", "/slots", key=None, headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert answer.headers["vary"] == "Origin"


def test_answers_are_not_cached(api: Served) -> None:
    """They are true for a moment."""
    assert api.call("GET", "/healthz").headers["cache-control"] == "no-store"


def test_http_10_and_pipelines(api: Served) -> None:
    """Old clients and hasty ones."""
    assert body_of(exchange(api, b"GET /healthz HTTP/1.0\r\n\r\n"))["success"] is True
    hasty = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    two = exchange(api, hasty)
    assert two.count(b"HTTP/1.1 ") == 2


def test_the_home_page_shows_the_way(api: Served) -> None:
    """To people and programs."""
    assert data_of(checked(api.client.get("/")))["docs"] == "docs"
