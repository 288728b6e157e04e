"""The application: what happens to a request between the socket and a handler, and on the way back.

Plain ASGI, so that it runs under any server and inside any Starlette or FastAPI application. A request is routed by
its raw path (an id may hold an encoded slash), its key is identified, its rights and its rate are checked; then its
body is read, validated and handed to a handler. Whatever comes of it leaves as one of the two envelopes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from ipaddress import ip_network
from typing import Any

from overbooked_lock import AsyncLockEngine, arguments
from overbooked_lock.api_keys import ApiKeyInfo
from overbooked_lock.errors import BookingExists, InvalidArgument, OverbookedError, SlotExists, StoreUnavailable
from overbooked_lock.http import inputs, openapi, page, readiness, streams
from overbooked_lock.http.access import Keyring, RateLimit, check_rights
from overbooked_lock.http.endpoints import ENDPOINTS, Call, Endpoint
from overbooked_lock.http.envelopes import (
    Answer,
    Headers,
    InternalError,
    RouteNotFound,
    failure,
)
from overbooked_lock.http.metrics import CONTENT_TYPE as METRICS_TYPE
from overbooked_lock.http.metrics import Metrics
from overbooked_lock.http.request import Disconnected, Network, Receive, Request, Scope, Send
from overbooked_lock.http.streams import Stream
from overbooked_lock.models import Quota

log = logging.getLogger("overbooked_lock.http")

KEEP_ANSWERS_FOR = timedelta(hours=24)
"""How long ``Idempotency-Key`` is remembered."""

_JSON = b"application/json"
_HTML = b"text/html; charset=utf-8"
_NAMESPACE = uuid.UUID("0d9f5a2c-3f51-4b0e-8f6e-6d1d4a5c7b11")

_ALLOWED_HEADERS = b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Lock-Key, X-Request-Id"
_EXPOSED_HEADERS = b"Retry-After, X-Fencing-Token, X-Request-Id"


@dataclass(slots=True)
class Response:
    """What goes out. ``code`` is the error's, empty if there is none; a ``stream`` goes on where the body would be."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]
    kind: bytes = _JSON
    code: str = ""
    stream: Stream | None = None


Plain = Callable[[Request], Awaitable[Response]]


class Application:
    """The HTTP API of an engine: an ASGI application, to be served or mounted in another one.

    Args:
        engine: An engine that refuses unregistered slots (the default).
        strict: Public keys may only lock, unlock, book and read slots.
        origins: Which web pages' origins may call it from a browser; ``"*"`` is any.
        trusted_proxies: Networks (``10.0.0.0/8``) whose ``X-Forwarded-For`` is believed.
        rate_limit: For each public key and address: so many requests at once, refilled within so many whole seconds.
            None: no limit.
        max_locks: How many live locks an address may have under a public key; None: as many as it wants.
        max_streams: How many streams of events an address may have open under a public key, in this process; None: as
            many as it wants.
        heartbeat: After how long a silence a stream shows that it lives: proxies close what is silent for a minute.
        close_engine: Close the engine at the end of the ASGI lifespan. Whoever made it closes it: say True only if
            nobody else does.
        tell: Is told the facts of each request that was answered; None: they are logged.

    Raises:
        InvalidArgument: An argument is wrong.
    """

    def __init__(
        self,
        engine: AsyncLockEngine,
        *,
        strict: bool = False,
        origins: Sequence[str] = ("*",),
        trusted_proxies: Sequence[str] = (),
        rate_limit: tuple[int, int] | None = (100, 10),
        max_locks: int | None = 20,
        max_streams: int | None = 20,
        heartbeat: timedelta = timedelta(seconds=15),
        close_engine: bool = False,
        tell: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        if engine._settings.scope == "any":  # noqa: SLF001 - our own
            raise InvalidArgument("engine", "must refuse unregistered slots: an answer is always a slot")
        if rate_limit is not None and not all(int(number) == number >= 1 for number in rate_limit):
            raise InvalidArgument("rate_limit", "must be a number of requests and of whole seconds, both at least 1")
        if max_locks is not None and not 1 <= max_locks <= 1000:
            raise InvalidArgument("max_locks", "must be 1 to 1,000, or None")
        if max_streams is not None and not 1 <= max_streams <= 100_000:
            raise InvalidArgument("max_streams", "must be 1 to 100,000, or None")
        silence = arguments.positive_milliseconds(heartbeat, "heartbeat") / 1000
        self._engine = engine
        self._strict = strict
        self._origins = None if "*" in origins else {_origin(origin) for origin in origins}
        self._trusted = [_network(proxy) for proxy in trusted_proxies]
        self._rate_limit = None if rate_limit is None else RateLimit(*rate_limit)
        self._max_locks = max_locks
        self._close_engine = close_engine
        self._tell = tell or _log
        self._keyring = Keyring(engine)
        self._metrics = Metrics()
        self._streams = streams.Streams(engine, self._metrics, max_streams, silence)
        self._readiness = readiness.Readiness(engine)
        engine._coalescer.on_batch = self._metrics.batches.observe  # noqa: SLF001 - our own
        document = openapi.document(ENDPOINTS)
        self._pages = {"/openapi.json": (_JSON, json.dumps(document).encode()), "/docs": (_HTML, page.of(document))}
        self._routes: dict[str, dict[str, Endpoint | Plain]] = {}
        for endpoint in ENDPOINTS:
            self._routes.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        for path, plain in {
            "/": self._home,
            "/openapi.json": self._page,
            "/docs": self._page,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show_metrics,
        }.items():
            self._routes[path] = {"GET": plain}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._serve(Request(scope, receive, self._trusted), send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """What goes on beside the requests: the ends of locks are told of in time, whether or not anybody listens.

        The ASGI lifespan enters it. A host that mounts the application does so in a lifespan of its own.
        """
        sweeping = asyncio.create_task(self._engine._listener.keep_sweeping())  # noqa: SLF001 - our own
        try:
            yield
        finally:
            self.end_streams()
            sweeping.cancel()
            await asyncio.wait([sweeping])

    def end_streams(self) -> None:
        """Ends the streams of events, for good: a server that waits for its requests would wait for them for ever."""
        self._streams.ending.set()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        async with self.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        if self._close_engine:
            await self._engine.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, request: Request, send: Send) -> None:
        began = time.perf_counter()
        work = _Work(request)
        try:
            response = await self._respond(work)
        except OverbookedError as error:
            response = self._failed(work, error)
        except Disconnected:
            return
        except Exception as error:  # noqa: BLE001 - nothing of it may reach the client, nor be missing in the log
            response = self._failed(work, error)
        headers = response.headers
        headers += ((b"cache-control", b"no-store"), (b"x-request-id", request.id.encode()))
        if response.stream is not None:
            # nginx would else keep what is written until it is a page full.
            headers += ((b"content-type", response.kind), (b"x-accel-buffering", b"no"))
        elif response.body:
            headers += ((b"content-type", response.kind), (b"content-length", b"%d" % len(response.body)))
        if (origin := request.header(b"origin")) is not None:
            headers += self._cors(origin.encode())
        if response.stream is None:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": response.body})
            self._record(work, response, time.perf_counter() - began)
            return
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            self._record(work, response, time.perf_counter() - began)
            await response.stream.run(send)
        finally:
            await response.stream.close()

    async def _respond(self, work: _Work) -> Response:
        request = work.request
        path = _template(request.segments)
        methods = self._routes.get(path)
        if methods is None:
            raise RouteNotFound
        found = methods.get(request.method)
        if found is None:
            return self._no_such_method(work, path, methods)
        if not isinstance(found, Endpoint):
            work.route = f"GET {path}"
            return await found(request)
        work.endpoint, work.route = found, found.route
        authorization = request.header(b"authorization")
        if authorization is None and found.streams:
            authorization = _public_key_in(request.query())
        work.key = key = await self._keyring.identify(authorization)
        check_rights(found.rights, key, strict=self._strict)
        quota = None
        if key.kind == "public":
            holder = f"{key.id}|{request.address}"
            if self._rate_limit is not None:
                self._rate_limit.take(holder)
            if self._max_locks is not None:
                quota = Quota(holder, self._max_locks)
        call = Call(self._engine, request, key, quota, self._streams, partial(self._keyring.identify, authorization))
        if found.takes is None:
            return _success(await found.handler(call, None))
        given = request.query() if found.method == "GET" else inputs.read_json(await request.body())
        body = inputs.validate(found.takes, given, lists=found.takes_lists)
        if found.creates and (once := request.idempotency_key) is not None:
            return await self._once(found, call, once, given, body)
        return _success(await found.handler(call, body))

    async def _once(self, endpoint: Endpoint, call: Call, once: str, given: Any, body: Any) -> Response:
        """Creates what was asked for, or gives the answer again that was given when it was created.

        The id of what is created follows from the idempotency key, so even two requests at the same time, or one
        after a crash, can't create two. The answer is kept only for the words that it had then.
        """
        name = str(uuid.uuid5(_NAMESPACE, f"{call.key.id}\n{endpoint.route}\n{once}"))
        fingerprint = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
        kept = await self._engine.get_answer(name)
        if kept is None:
            try:
                answer = await endpoint.handler(call._replace(new_id=name), body)
                assert isinstance(answer, Answer)  # noqa: S101 - no stream creates
            except (SlotExists, BookingExists):
                raise _other_body() from None
            text = f"{fingerprint}{answer.body().decode()}"
            kept = await self._engine.keep_answer(name, text, keep_for=KEEP_ANSWERS_FOR)
        if not kept.startswith(fingerprint):
            raise _other_body()
        return Response(200, kept[len(fingerprint) :].encode(), [])

    def _failed(self, work: _Work, error: Exception) -> Response:
        if not isinstance(error, OverbookedError) or error.status == 500:
            # Without its message: that may quote what it was given, a lock_key perhaps.
            where = "".join(traceback.format_tb(error.__traceback__))
            log.error("%s in request %s\n%s", type(error).__name__, work.request.id, where)
            error = InternalError()
        if isinstance(error, StoreUnavailable):
            self._metrics.store_errors.labels(error.outcome).inc()
        work.error = error
        body, headers = failure(error, work.request.id)
        return Response(error.status, body, [*headers], code=error.code)

    def _no_such_method(self, work: _Work, path: str, methods: dict[str, Endpoint | Plain]) -> Response:
        allowed = sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))
        allow = (b"allow", ", ".join(allowed).encode())
        if work.request.method != "OPTIONS":
            response = self._failed(work, RouteNotFound())
            response.headers.append(allow)
            return response
        work.route = f"OPTIONS {path}"
        preflight = (
            (b"access-control-allow-methods", allow[1]),
            (b"access-control-allow-headers", _ALLOWED_HEADERS),
            (b"access-control-max-age", b"7200"),
        )
        return Response(204, b"", [allow, *preflight])

    def _cors(self, origin: bytes) -> Headers:
        if self._origins is None:
            # Keys are bearer tokens and there are no cookies: a page can do here what its key can do anywhere.
            return ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED_HEADERS))
        if origin not in self._origins:
            return ((b"vary", b"Origin"),)
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED_HEADERS),
            (b"vary", b"Origin"),
        )

    def _record(self, work: _Work, response: Response, seconds: float) -> None:
        self._metrics.requests_of(work.route, response.status).observe(seconds)
        if response.code:
            reason = getattr(work.error, "reason", None) or ""
            self._metrics.refused.labels(work.route, response.code, reason).inc()
        elif work.endpoint is not None and (granted := self._metrics.granted.get(work.endpoint.name)):
            granted.inc()
        self._tell(
            {
                "method": work.request.method,
                "route": work.route.partition(" ")[2],
                "status": response.status,
                "code": response.code,
                "ms": round(seconds * 1000, 2),
                "request_id": work.request.id,
                "key_id": "" if work.key is None else work.key.id,
                "address": work.request.address,
            }
        )

    # What takes no key

    async def _home(self, _: Request) -> Response:
        links = {"docs": "docs", "openapi": "openapi.json", "health": "healthz", "readiness": "readyz"}
        return _plain(links)

    async def _page(self, request: Request) -> Response:
        kind, body = self._pages[_template(request.segments)]
        headers = [(b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")]
        return Response(200, body, headers, kind)

    async def _healthz(self, _: Request) -> Response:
        return _plain({"status": "alive"})

    async def _readyz(self, _: Request) -> Response:
        await self._readiness.check()
        return _plain({"status": "ready"})

    async def _show_metrics(self, request: Request) -> Response:
        if not request.came_directly_from_here:
            check_rights("secret", await self._keyring.identify(request.header(b"authorization")), strict=False)
        return Response(200, self._metrics.text(), [], METRICS_TYPE)


class _Work:
    """What is known of a request under way, for the log and the metrics."""

    __slots__ = ("endpoint", "error", "key", "request", "route")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.route = ""
        self.endpoint: Endpoint | None = None
        self.key: ApiKeyInfo | None = None
        self.error: OverbookedError | None = None


def _log(facts: Mapping[str, Any]) -> None:
    if log.isEnabledFor(logging.INFO):
        # Not log.info: that looks for the line of code it was called from, which costs as much as all the rest.
        log.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, "request", (), None, extra={"facts": facts}))


def _origin(text: str) -> bytes:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", text):
        raise InvalidArgument("origins", "must be like https://shop.example, without a path, or *")
    return text.encode()


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError:
        raise InvalidArgument("trusted_proxies", "must be networks like 10.0.0.0/8 or fd00::/8") from None


def _other_body() -> InvalidArgument:
    return InvalidArgument("Idempotency-Key", "was used with another body")


def _template(segments: Sequence[str]) -> str:
    """``/slots/{id}/lock`` of ``["slots", "3751095a", "lock"]``."""
    if len(segments) < 2:
        return f"/{segments[0]}" if segments else "/"
    return "/".join(("", segments[0], "{id}" if segments[1] else "", *segments[2:]))


def _public_key_in(query: Mapping[str, str]) -> str | None:
    """A public API key from a URL, as the header has it. Raises InvalidArgument for a secret one."""
    key = query.get("key")
    if key is not None and not key.startswith("pk_"):
        raise InvalidArgument("key", "must be a public API key: a secret one does not belong in a URL")
    return None if key is None else f"Bearer {key}"


def _success(answer: Answer | Stream) -> Response:
    if isinstance(answer, Stream):
        return Response(200, b"", [], streams.CONTENT_TYPE, stream=answer)
    return Response(200, answer.body(), [*answer.headers])


def _plain(data: dict[str, str]) -> Response:
    return Response(200, json.dumps({"data": data, "meta": {}, "success": True}).encode(), [])


create_app = Application
