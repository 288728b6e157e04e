"""Inside a host's own application, and under its own server."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from .tools import Served, checked, data_of, error_of

DOCS = Path(__file__).parents[2] / "docs" / "http.md"


@pytest.mark.parametrize("host", [Starlette, FastAPI])
@pytest.mark.parametrize("prefix", ["/booking", "/a/b"])
def test_it_can_be_mounted(serve: Callable[..., Served], host: type[Starlette], prefix: str, new_slot: Any) -> None:
    """Below a path, with all it has; ids with slashes included."""

    def around(app: Any) -> Any:
        outer = host()
        outer.mount(prefix, app)
        return outer

    api = serve(around=around)
    slot = new_slot(id="a/b c")
    api.ask(api.engine.create_slot(slot))
    assert data_of(api.call("GET", f"{prefix}/slots/a%2Fb%20c"))["id"] == "a/b c"
    assert data_of(api.call("GET", f"{prefix}/slots?limit=1&page=1", key="public"))
    assert error_of(api.call("GET", f"{prefix}/nothing")) == ("E002", 404)
    assert api.call("GET", f"{prefix}/").is_success
    assert api.client.get(f"{prefix}/docs").is_success


def test_a_host_learns_of_each_request(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """From the log, or by a function of its own; either way the same."""
    facts = list[Mapping[str, Any]]()
    with caplog.at_level(logging.INFO, "overbooked_lock.http"):
        serve().call("GET", "/healthz", key=None)
        serve(tell=facts.append).call("GET", "/healthz", key=None)
    [logged] = [record.__dict__["facts"] for record in caplog.records if record.name == "overbooked_lock.http"]
    [told] = facts
    assert [logged[name] for name in ("method", "route", "status")] == ["GET", "/healthz", 200]
    assert told.keys() == logged.keys()
    assert all(told[name] == logged[name] for name in told.keys() - {"ms", "request_id"})


async def test_the_example_in_the_reference_works() -> None:
    """As it is printed."""
    programs = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    [program] = [program for program in programs if "create_app" in program]
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102
    async with httpx.AsyncClient(transport=httpx.ASGITransport(names["app"]), base_url="http://x") as client:
        assert checked(await client.get("/booking/healthz")).is_success
    await names["engine"].close()


def test_behind_a_prefix_that_a_proxy_cut_off(serve: Callable[..., Served]) -> None:
    """Where the server is told of it with ``root_path``."""

    def around(app: Any) -> Any:
        async def below(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                scope = scope | {"root_path": "/v1", "path": "/v1" + scope["path"]}
                scope["raw_path"] = b"/v1" + scope["raw_path"]
            await app(scope, receive, send)

        return below

    api = serve(around=around)
    assert data_of(api.call("GET", f"/slots/{api.slot()['id']}"))


def test_a_server_that_gives_no_raw_path(serve: Callable[..., Served], new_slot: Any) -> None:
    """ASGI does not ask for it."""

    def around(app: Any) -> Any:
        async def without(scope: Any, receive: Any, send: Any) -> None:
            await app({name: value for name, value in scope.items() if name != "raw_path"}, receive, send)

        return without

    api = serve(around=around)
    api.ask(api.engine.create_slot(new_slot(id="ü x")))
    assert data_of(api.call("GET", "/slots/%C3%BC%20x"))["id"] == "ü x"
