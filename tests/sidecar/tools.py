"""A client of a sidecar that hears everything, and sidecars as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sysconfig
import uuid
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis.asyncio

from overbooked_lock.sidecar.requests import Channels

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
PATIENCE = 20.0  # seconds


class Client:
    """Asks a sidecar, and keeps every answer that comes.

    Attributes:
        replies: All answers, by the request's id, in the order they came.
    """

    def __init__(self, url: str, sidecar: str, name: str = "tests") -> None:
        self.channels = Channels(sidecar)
        self.name = name
        self.replies: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._came = asyncio.Condition()
        self._redis = redis.asyncio.Redis.from_url(url, protocol=2)
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)

    async def __aenter__(self) -> Self:
        await self.hear(self.channels.of(self.name))
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]
        await self._redis.aclose()

    async def hear(self, channel: str) -> None:
        """Listens to one more channel."""
        await self._pubsub.subscribe(channel)

    async def publish(self, message: bytes | str | dict[str, Any]) -> int:
        """Sends a message as it is; gives how many heard it."""
        text = json.dumps(message) if isinstance(message, dict) else message
        return int(await self._redis.publish(self.channels.requests, text))

    def request(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request with an id of its own."""
        return {"id": str(uuid.uuid4()), "op": op, "client": self.name} | fields

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Sends a request; gives its answer, which is one of the two envelopes."""
        request = self.request(op, **fields)
        count = len(self.replies[request["id"]])
        assert await self.publish(request) > 0
        return checked(await self.reply(request["id"], count))

    async def reply(self, request_id: str, number: int = 0, patience: float = PATIENCE) -> dict[str, Any]:
        """An answer to a request, the first unless told; waits for it."""
        async with asyncio.timeout(patience), self._came:
            await self._came.wait_for(lambda: len(self.replies[request_id]) > number)
        return self.replies[request_id][number]

    async def data(self, op: str, **fields: Any) -> Any:
        """What a successful answer holds."""
        reply = await self.ask(op, **fields)
        assert reply["success"], reply
        return reply["data"]

    async def error(self, op: str, **fields: Any) -> dict[str, Any]:
        """What a refusal says."""
        reply = await self.ask(op, **fields)
        assert not reply["success"], reply
        error: dict[str, Any] = reply["error"]
        return error

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                message = await self._pubsub.get_message(timeout=None)
                if message is None:
                    continue
                reply = json.loads(message["data"])
                async with self._came:
                    self.replies[reply["id"]].append(reply)
                    self._came.notify_all()


def checked(reply: dict[str, Any]) -> dict[str, Any]:
    """The reply, if it is one of the two envelopes."""
    fencing = {"fencing_token", "fencing_tokens"}
    if reply["success"]:
        assert reply.keys() - fencing == {"id", "data", "meta", "success"}
    else:
        assert list(reply) == ["id", "error", "success"]
        assert reply["error"].keys() >= {"code", "message", "status", "request_id"}
        assert reply["error"]["request_id"] == reply["id"]
    return reply


class Running:
    """A sidecar's process; ``log`` is the file of its stderr. It is there when this returns."""

    def __init__(self, environment: dict[str, str], log: Path, *words: str, wait: bool = True) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [PROGRAM, "sidecar", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        if wait:
            self.wait()

    def wait(self) -> str:
        """Returns what it says when it hears its channel."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        said = self.process.stdout.readline() if ready else ""
        assert "hears" in said, self.log.read_text()
        return said

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Sends it a signal and waits for its end; gives the exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Whatever it does, it is over."""
        with self.process, contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
