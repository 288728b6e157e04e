"""The application on real sockets: uvicorn in a thread, on a free port and a namespace of its own."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypeVar

import httpx
import uvicorn

from overbooked_lock import AsyncLockEngine
from overbooked_lock.api_keys import ApiKey
from overbooked_lock.http import create_app
from overbooked_lock.http.request import Receive, Scope, Send
from overbooked_lock.http.server import _Protocol

T = TypeVar("T")

PATIENCE = 20.0  # seconds


class Served:
    """A running server. What it answers is checked: there are two envelopes, and nothing else.

    Attributes:
        url: Where it is.
        engine: Its engine; :meth:`ask` calls a verb of it.
        public, secret: API keys.
    """

    public: ApiKey
    secret: ApiKey

    def __init__(self, store: str, around: Callable[[Any], Any], namespace: str, settings: dict[str, Any]) -> None:
        self._started: Future[tuple[str, AsyncLockEngine]] = Future()
        self._arguments = (store, around, namespace, settings)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        self.url, self.engine = self._started.result(PATIENCE)
        self.public = self.ask(self.engine.create_api_key("public", name="shop"))
        self.secret = self.ask(self.engine.create_api_key("secret", name="office"))
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join(PATIENCE)

    async def _run(self) -> None:
        store, around, namespace, settings = self._arguments
        async with AsyncLockEngine.from_url(store, namespace=namespace) as engine:
            app = around(create_app(engine, **settings))
            self._loop = asyncio.get_running_loop()

            async def tell(scope: Scope, receive: Receive, send: Send) -> None:
                await app(scope, receive, send)

            options: dict[str, Any] = {"access_log": False, "ws": "none", "proxy_headers": False, "http": _Protocol}
            # Without its lifespan: what sweeps on the server that all tests share disturbs those that count calls.
            options["lifespan"] = "off"
            config = uvicorn.Config(tell, port=0, log_config=None, **options)
            self.server = uvicorn.Server(config)
            serving = asyncio.ensure_future(self.server.serve())
            while not self.server.started:  # noqa: ASYNC110 - uvicorn has no event for this
                await asyncio.sleep(0.002)
            host, port = self.server.servers[0].sockets[0].getsockname()[:2]
            self._started.set_result((f"http://{host}:{port}", engine))
            await serving

    def ask(self, verb: Coroutine[Any, Any, T]) -> T:
        """Calls a verb of the engine in its own loop."""
        return asyncio.run_coroutine_threadsafe(verb, self._loop).result(PATIENCE)

    def call(
        self, method: str, path: str, body: Any = None, *, key: str | ApiKey | None = "secret", **more: Any
    ) -> httpx.Response:
        """Sends a request and checks that the answer is an envelope."""
        headers = dict(more.pop("headers", {}))
        if isinstance(key, ApiKey):
            key = key.key
        elif key is not None:
            key = {"secret": self.secret.key, "public": self.public.key}.get(key, key)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None:
            more["json"] = body
        return checked(self.client.request(method, path, headers=headers, **more))

    def slot(self, **fields: Any) -> dict[str, Any]:
        """Creates a slot over HTTP; gives its payload."""
        defaults: dict[str, Any] = {
            "resource_id": str(uuid.uuid4()),
            "start_date": "2030-10-21T22:30:00+02:00",
            "end_date": "2030-10-21T22:50:00+02:00",
            "capacity": 1,
        }
        data: dict[str, Any] = data_of(self.call("POST", "/slots", defaults | fields))
        return data

    def lock(self, slot_id: str, lock_key: str = "k", key: str = "public", **fields: Any) -> httpx.Response:
        """Locks a slot for an hour."""
        return self.call(
            "POST", f"/slots/{slot_id}/lock", {"lock_until": soon(), "lock_key": lock_key} | fields, key=key
        )


def soon(**ahead: float) -> str:
    """A date ahead, in an hour unless told, as JavaScript's ``toJSON`` writes it."""
    date = datetime.now(UTC) + timedelta(**(ahead or {"hours": 1}))
    return date.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def checked(response: httpx.Response) -> httpx.Response:
    """The response, if it is one of the two envelopes, named in its headers and with the status it says."""
    assert response.headers["x-request-id"]
    if response.status_code == 204 or response.request.method == "HEAD":
        assert not response.content
        return response
    assert response.headers["content-type"] == "application/json"
    envelope = response.json()
    if response.is_success:
        assert list(envelope) == ["data", "meta", "success"]
        assert response.status_code == 200
        assert envelope["success"] is True
    else:
        assert list(envelope) == ["error", "success"]
        assert envelope["success"] is False
        assert envelope["error"].keys() >= {"code", "message", "status", "request_id"}
        assert envelope["error"]["status"] == response.status_code
        assert envelope["error"]["request_id"] == response.headers["x-request-id"]
    return response


def data_of(response: httpx.Response) -> Any:
    """What a successful answer holds."""
    assert response.is_success, response.text
    return response.json()["data"]


def error_of(response: httpx.Response) -> tuple[str, int]:
    """The code and the status of an error."""
    error = response.json()["error"]
    return error["code"], error["status"]
