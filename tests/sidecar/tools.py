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

from overbooked_lock.sidecar.operations import OPS
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
        self._redis = self.connect(url)
        self._pubsub = self._redis.pubsub(ignore_subscribe_messages=True)

    def connect(self, url: str) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(url, protocol=2)

    async def __aenter__(self) -> Self:
        await self.hear(self.channels.of(self.name))
        self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._pubsub.aclose()
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


async def use_everything(client: Client) -> None:
    """Asks for every operation at least once, with success; the slots are the client's own."""
    used = set()

    async def ask(op: str, **fields: Any) -> Any:
        used.add(op)
        return await client.data(op, **fields)

    dates = {"start_date": "2030-06-01T18:00:00Z", "end_date": "2030-06-01T19:00:00Z"}
    slots = [(await ask("create_slot", resource_id="r", capacity=3, **dates))["id"] for _ in range(2)]
    slot, key = {"slot_id": slots[0]}, {"lock_key": "k"}
    await ask("ping")
    await ask("lock", **slot, **key, lock_for_ms=60_000)
    await ask("extend", **slot, **key, lock_for_ms=90_000)
    await ask("check", **slot, **key)
    await ask("unlock", **slot, **key)
    await ask("lock", **slot, **key, lock_for_ms=30)
    # Waiting listens to what happens, and sweeps.
    await ask("lock", **slot, lock_key="next", lock_for_ms=60_000, wait_ms=5_000)
    await ask("unlock", **slot, lock_key="next")
    await ask("lock_many", slot_ids=slots, **key, lock_for_ms=60_000)
    await ask("extend_many", slot_ids=slots, **key, lock_for_ms=90_000)
    await ask("unlock_many", slot_ids=slots, **key)
    booking = {"booking_id": (await ask("book", **slot, metadata={"a": 1}))["id"]}
    await ask("book_many", slot_ids=slots, metadata={"a": 1})
    await ask("cancel", **booking)
    await ask("enable", **booking)
    await ask("reschedule", **booking, target_slot_id=slots[1])
    await ask("get_booking", **booking)
    await ask("update_booking", **booking, metadata={"a": 2})
    for filters in ({}, {"slot_id": slots[0]}, {"resource_id": "r"}):
        await ask("list_bookings", limit=5, page=1, **filters)
    for made in [booking["booking_id"], *(one["id"] for one in await ask("list_bookings", limit=5, page=1))]:
        await ask("delete_booking", booking_id=made)
    await ask("get", **slot)
    await ask("update_slot", **slot, capacity=3)
    await ask("disable_slot", **slot)
    await ask("enable_slot", **slot)
    for filters in ({}, {"resource_id": "r"}, {"available": True}, dates):
        await ask("list_slots", limit=5, page=1, **filters)
    await ask("delete_slot", **slot)
    assert used == set(OPS)
