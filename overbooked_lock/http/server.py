"""``overbooked-lock serve``: the application on uvicorn, with our sockets, logs and end.

What is logged is one line a request and what goes wrong, on stderr: routes instead of paths, ids of API keys instead
of keys, and never a lock_key.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TextIO, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine, sample
from overbooked_lock.errors import InvalidArgument, OverbookedError
from overbooked_lock.http.app import Application, create_app
from overbooked_lock.http.envelopes import failure
from overbooked_lock.http.request import ABORT

LogFormat = Literal["text", "json"]

GRACE = 10
"""Seconds that requests under way have when the server is stopped: twice what an engine takes at most."""

MAX_HEAD = 65_536
"""Bytes of a request's first line and headers."""

_KEEP_ALIVE = 75  # seconds; longer than proxies keep a connection, so that none is closed under a request
_BACKLOG = 2048


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve.

    Attributes:
        url: The Redis or Valkey; None: a private server in ``folder``.
        folder: Where that keeps its data.
        namespace: Goes before every key.
        host, port: Where to listen; port 0 takes a free one.
        tls_cert, tls_key: PEM files; without them it speaks plain HTTP, and only to this machine.
        allow_plain_http: Speak it to others, too: behind a proxy that has the certificate.
        workers: How many processes share the port and the store.
        log_format: ``"text"`` for people, ``"json"`` for programs.
        sample_day: Open a day of slots to try it on, and print what to try.
        app: What ``create_app`` takes.
    """

    url: str | None
    folder: Path
    namespace: str = ""
    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_plain_http: bool = False
    workers: int = 1
    log_format: LogFormat = "text"
    sample_day: bool = False
    app: Mapping[str, Any] = field(default_factory=dict)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP; then what is under way is answered, for up to ``GRACE`` seconds.

    Prints the address when it listens. Raises InvalidArgument, EmbeddedServerError, OverbookedError if the address
    can't be had.
    """
    _check(settings)
    with contextlib.ExitStack() as stack:
        if settings.url is None:
            # Ours as long as any worker's: one that dies must not take the server with it.
            stack.enter_context(EmbeddedServer(settings.folder))
        asyncio.run(_try_out(settings))
        listener = stack.enter_context(_listen(settings.host, settings.port))
        scheme = "https" if settings.tls_cert else "http"
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(
            partial(build, settings),
            factory=True,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            loop="uvloop",
            workers=settings.workers,
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        if settings.workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = stack.enter_context(tempfile.TemporaryDirectory())
        # Whoever connects from here on waits in the backlog until a worker comes.
        address = f"{scheme}://{_bracketed(host)}:{port}"
        print(f"overbooked-lock listens on {address}", flush=True)  # noqa: T201
        if settings.sample_day:
            with _sync_engine(settings) as engine:
                print(sample.open_day(engine, address), flush=True)  # noqa: T201
        if settings.workers > 1:
            ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            workers = _Workers(config, sockets=[listener])
            if ignored:  # as nohup leaves it; uvicorn does not ask
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            workers.run()
        else:
            server = uvicorn.Server(config)
            with _stopping(server):
                server.run(sockets=[listener])


def build(settings: Settings) -> Application:
    """The application of one worker, with an engine of its own."""
    # What stands now stays for good, and requests leave no cycles: the collector need not look so often.
    gc.freeze()
    if settings.workers > 1:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal tells us all: who started us sends SIGTERM
    gc.set_threshold(20_000, 50, 50)
    log = log_to_stderr(settings.log_format)
    return create_app(_engine(settings), close_engine=True, tell=log.request, **settings.app)


def _engine(settings: Settings) -> AsyncLockEngine:
    if settings.url is None:
        return AsyncLockEngine.embedded(settings.folder, namespace=settings.namespace)
    return AsyncLockEngine.from_url(settings.url, namespace=settings.namespace)


def _check(settings: Settings) -> None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise InvalidArgument("tls_cert", "and tls_key must be given both")
    if settings.tls_cert is None and not settings.allow_plain_http and not _is_loopback(settings.host):
        raise InvalidArgument(
            "host",
            "other than this machine's own needs --tls-cert and --tls-key: without them API keys would go over the "
            "network for all to read. Behind a proxy that has the certificate, say --allow-plain-http",
        )
    if settings.workers < 1:
        raise InvalidArgument("workers", "must be at least 1")
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            # A password is asked for at a terminal otherwise.
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(settings.tls_cert, settings.tls_key, password=lambda: "")
        except OSError as error:
            raise InvalidArgument("tls_cert", "and tls_key must be a certificate and its own key, as PEM") from error


async def _try_out(settings: Settings) -> None:
    """What a worker would fail at, and be started again and again, fails here."""
    async with _engine(settings) as engine:
        create_app(engine, **settings.app)


def _sync_engine(settings: Settings) -> LockEngine:
    if settings.url is None:
        return LockEngine.embedded(settings.folder, namespace=settings.namespace)
    return LockEngine.from_url(settings.url, namespace=settings.namespace)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise OverbookedError(f"can't listen on {_bracketed(host)}:{port}: {error}") from error
    listener.set_inheritable(True)
    return listener


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Workers(Multiprocess):
    """uvicorn's, which would start all workers anew when their terminal is closed."""

    def handle_hup(self) -> None:
        self.handle_term()


@contextlib.contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[None]:
    """Signals stop the server, before uvicorn listens to them too; it sends them on to us when it has ended."""

    def stop(_number: int, _frame: object) -> None:
        server.should_exit = True

    ends = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    before = {number: signal.signal(number, stop) for number in ends if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Gathering:
    """A transport that sends what is written in one turn of the loop at once: uvicorn writes head and body apart, and
    each write would be a system call.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []
        # Each request needs them, and through __getattr__ they would take far longer.
        self.is_closing, self.abort = transport.is_closing, transport.abort

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            written, self._written = self._written, []
            self._transport.write(b"".join(written))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to the head of a request; and what is no HTTP is answered with an envelope, too."""

    _head: int | None = 0
    """Bytes of the head that came after those it began with; None once it is complete."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as asyncio calls it
        super().connection_made(cast("asyncio.Transport", _Gathering(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._head = 0
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[ABORT] = self.transport.abort

    def shutdown(self) -> None:
        if isinstance(self.app, Application):
            self.app.end_streams()
        super().shutdown()

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own text
        allowed = f"must be HTTP/1.1, with a head of at most {MAX_HEAD:,} bytes"
        body, _ = failure(InvalidArgument("request", allowed), "")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()


# Logs


def log_to_stderr(form: LogFormat) -> Log:
    """Sends our log and what uvicorn warns of to stderr."""
    # What no line shows need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = Log(sys.stderr, _text if form == "text" else _json)
    for name, level in (("overbooked_lock", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    return handler


class Log(logging.StreamHandler[TextIO]):
    """Writes what is logged within a moment at once: a write costs more than its lines. Warnings do not wait."""

    MOMENT = 0.02  # seconds

    def __init__(self, stream: TextIO, line: Callable[[float, str, str, Mapping[str, Any]], str]) -> None:
        super().__init__(stream)
        self._line = line
        self._gathered: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def request(self, facts: Mapping[str, Any]) -> None:
        """Logs a request. The way through logging, with a record for each, would take longer than to write it."""
        with self.lock or contextlib.nullcontext():
            self._gathered.append(self._line(time.time(), "INFO", "request", facts))
            self._flush_soon()

    def format(self, record: logging.LogRecord) -> str:
        return self._line(record.created, record.levelname, record.getMessage(), getattr(record, "facts", {}))

    def emit(self, record: logging.LogRecord) -> None:
        self._gathered.append(self.format(record))
        if record.levelno > logging.INFO:
            self.flush()
        else:
            self._flush_soon()

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._gathered, self._timer = self._gathered, [], None
            if lines:
                self.stream.write("\n".join(lines) + "\n")
            super().flush()

    def _flush_soon(self) -> None:
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(self.MOMENT, self.flush)
            except RuntimeError:
                self.flush()


def _text(at: float, level: str, message: str, facts: Mapping[str, Any]) -> str:
    """``2030-06-01T18:00:00.000Z INFO request method=POST route=/slots/{id}/lock status=200 …``."""
    words = [f"{name}={value}" for name, value in facts.items() if value != ""]
    return " ".join([_date(at), level, message, *words])


def _json(at: float, level: str, message: str, facts: Mapping[str, Any]) -> str:
    """The same facts, as a JSON object a line."""
    return json.dumps({"time": _date(at), "level": level, "message": message, **facts})


def _date(timestamp: float) -> str:
    return f"{_second(int(timestamp))}.{int(timestamp % 1 * 1000):03}Z"


@lru_cache(maxsize=2)
def _second(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")
