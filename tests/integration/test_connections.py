"""How an engine reaches its server: clients, URLs, TLS, Sentinel, ACLs, forks; and what it says at the start."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.sentinel
import trustme

from overbooked_lock import AsyncLockEngine, EmbeddedServer, LockEngine, Slot, StoreUnavailable
from overbooked_lock.embedded import _find_program

MINUTE = timedelta(minutes=1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def await_that(condition: Callable[[], object]) -> None:
    """Returns when a condition holds; errors of Redis mean not yet."""
    deadline = time.monotonic() + 20
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():
                return
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)  # there is no event to wait for


@pytest.mark.parametrize("decode_responses", [False, True])
def test_from_a_client(lock_server: EmbeddedServer, lock_namespace: str, slot: Slot, decode_responses: bool) -> None:
    """Whatever the client does with its replies, ours are bytes; the client stays the host's own."""
    client = redis.Redis.from_url(lock_server.url, decode_responses=decode_responses, protocol=3)
    with LockEngine(client, namespace=lock_namespace) as engine:
        lock = engine.lock(slot.id, lock_for=MINUTE)
        assert lock.slot is not None
        assert lock.slot.id == slot.id
        assert engine.unlock(lock).released
    assert client.ping()
    client.close()


@pytest.mark.parametrize("decode_responses", [False, True])
async def test_from_an_async_client(
    lock_server: EmbeddedServer, lock_namespace: str, slot: Slot, decode_responses: bool
) -> None:
    """Whatever the client does with its replies, ours are bytes; the client stays the host's own."""
    client = redis.asyncio.Redis.from_url(lock_server.url, decode_responses=decode_responses, protocol=3)
    async with AsyncLockEngine(client, namespace=lock_namespace) as engine:
        lock = await engine.lock(slot.id, lock_for=MINUTE)
        assert lock.slot is not None
        assert (await engine.unlock(lock)).released
    assert await client.ping()
    await client.aclose()


def test_a_closed_engine_says_so(make_engine: Callable[..., LockEngine], slot: Slot) -> None:
    """At once, and that nothing was changed."""
    engine = make_engine()
    engine.get_slot(slot.id)
    engine.close()
    with pytest.raises(StoreUnavailable, match="this engine is closed") as refused:
        engine.lock(slot.id, lock_for=MINUTE)
    assert refused.value.outcome == "not_applied"


def test_a_call_that_outlives_its_engine_leaves_no_connection_open(
    lock_server: EmbeddedServer, raw: redis.Redis, lock_namespace: str
) -> None:
    """Its own is then closed by the thread that made it: a sweeper's, say, that closing did not wait for."""
    client = redis.Redis.from_url(lock_server.url, client_name=lock_namespace)

    def connections() -> int:
        return sum(found["name"] == lock_namespace for found in raw.client_list())

    engine = LockEngine(client, namespace=lock_namespace, unregistered="allow")
    engine.check("seat-1", lock_key="whoever")  # connects
    assert connections() == 1
    raw.client_pause(20_000, all=False)  # scripts wait
    asking = threading.Thread(target=engine.check, args=("seat-1",), kwargs={"lock_key": "whoever"})
    asking.start()
    await_that(lambda: engine._wires and not engine._idle)
    engine.close()
    raw.client_unpause()
    asking.join()
    await_that(lambda: connections() == 0)
    assert not engine._idle


@pytest.mark.parametrize("turns", range(4))
async def test_who_asks_while_an_engine_closes_is_told(
    lock_server: EmbeddedServer, lock_namespace: str, turns: int
) -> None:
    """In whatever turn of the loop, also where the task that is to connect has not begun."""
    engine = AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow")
    asked = asyncio.create_task(engine.lock("seat-1", lock_for=MINUTE))
    for _ in range(turns):
        await asyncio.sleep(0)
    await engine.close()
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match="this engine is closed"):
            await asked


async def test_a_closed_engine_leaves_no_task_behind(lock_server: EmbeddedServer, lock_namespace: str) -> None:
    """A lock that was sent, and whose outcome closing made unknown: there is nothing left to undo it with."""
    before = asyncio.all_tasks()
    engine = AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace, unregistered="allow")
    await engine.check("seat-1", lock_key="whoever")  # connects
    asked = asyncio.create_task(engine.lock("seat-1", lock_for=MINUTE))
    engine._coalescer.on_batch = lambda _: asked.get_loop().create_task(engine.close())
    with pytest.raises(StoreUnavailable) as lost:
        await asked
    assert lost.value.outcome == "unknown"
    async with asyncio.timeout(4):  # less than the engine's own
        await asyncio.gather(*(asyncio.all_tasks() - before))


async def test_a_connection_that_can_not_be_made_leaves_no_caller_waiting(lock_server: EmbeddedServer) -> None:
    """A client with an option that redis-py does not know: its own words reach each caller, with both engines."""
    url = f"{lock_server.url}?nonsense=1"
    with LockEngine(redis.Redis.from_url(url)) as engine, pytest.raises(TypeError, match="nonsense"):
        engine.get_slot("seat-1")
    async with AsyncLockEngine(redis.asyncio.Redis.from_url(url)) as async_engine, asyncio.timeout(5):
        for _ in range(4):  # more than may be under way at a time
            with pytest.raises(TypeError, match="nonsense"):
                await async_engine.get_slot("seat-1")


def test_embedded(tmp_path: Path, new_slot: Callable[..., Any]) -> None:
    """A folder is all it takes; what was locked is there after a restart."""
    with LockEngine.embedded(tmp_path) as engine:
        slot = engine.create_slot(new_slot())
        lock = engine.lock(slot.id, lock_for=MINUTE)
    with LockEngine.embedded(tmp_path) as engine:
        assert engine.check(lock) == lock


async def test_async_embedded(tmp_path: Path, new_slot: Callable[..., Any]) -> None:
    """The same for an event loop, and both can share the folder."""
    async with AsyncLockEngine.embedded(tmp_path, namespace="a") as engine:
        slot = await engine.create_slot(new_slot())
        lock = await engine.lock(slot.id, lock_for=MINUTE)
        with LockEngine.embedded(tmp_path, namespace="a", fsync="everysec") as other:
            assert other.check(lock) == lock


def test_a_wrong_option_leaves_no_server_running(tmp_path: Path) -> None:
    """The folder's server has no user left."""
    with pytest.raises(ValueError, match="namespace"):
        LockEngine.embedded(tmp_path, namespace="a:b")
    assert not list(tmp_path.glob("*.sock"))


def test_a_forked_child_has_connections_of_its_own(lock_engine: LockEngine, slot: Slot) -> None:
    """Parent and child work at once on one engine, and no answer goes to the wrong one."""
    lock = lock_engine.lock(slot.id, lock_for=MINUTE)
    child = os.fork()
    if child == 0:
        # Nothing of pytest may run in the child.
        right = all(lock_engine.check(lock) == lock for _ in range(200))
        os._exit(0 if right else 1)
    assert all(lock_engine.get_slot(slot.id).id == slot.id for _ in range(200))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_user_who_may_not_ask_for_info(lock_server: EmbeddedServer, lock_namespace: str, raw: redis.Redis) -> None:
    """INFO serves a warning alone: without it everything else works."""
    raw.acl_setuser("modest", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-info"])
    try:
        client = redis.Redis.from_url(lock_server.url, username="modest", password="pw")
        with LockEngine(client, namespace=lock_namespace, unregistered="allow") as engine:
            assert engine.unlock(engine.lock("s", lock_for=MINUTE)).released
    finally:
        raw.acl_deluser("modest")


def test_an_evicting_server_is_warned_of(
    make_engine: Callable[..., LockEngine], raw: redis.Redis, slot: Slot, caplog: pytest.LogCaptureFixture
) -> None:
    """A maxmemory-policy that may drop live locks is said at the first call, once."""
    raw.config_set("maxmemory-policy", "allkeys-lru")
    try:
        engine = make_engine()
        with caplog.at_level(logging.WARNING, "overbooked_lock"):
            for _ in range(3):
                engine.get_slot(slot.id)
    finally:
        raw.config_set("maxmemory-policy", "noeviction")
    [record] = caplog.records
    assert "maxmemory-policy allkeys-lru" in record.getMessage()
    assert "Set maxmemory-policy to noeviction" in record.getMessage()


def test_tls(tls_port: int, make_engine: Callable[..., LockEngine], tmp_path: Path) -> None:
    """With the right authority it works; with another, another host's name, or in plain text it is refused."""
    right, wrong = tmp_path / "ca.pem", tmp_path / "wrong.pem"
    trustme.CA().cert_pem.write_to_path(wrong)
    short: dict[str, Any] = {"unregistered": "allow", "timeout": timedelta(milliseconds=500)}
    engine = make_engine(f"rediss://localhost:{tls_port}?ssl_ca_certs={right}", unregistered="allow")
    assert engine.unlock(engine.lock("s", lock_for=MINUTE)).released
    for url in (
        f"rediss://localhost:{tls_port}?ssl_ca_certs={wrong}",
        f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={right}&ssl_check_hostname=true",
        f"redis://localhost:{tls_port}",
    ):
        with pytest.raises(StoreUnavailable):
            make_engine(url, **short).lock("s", lock_for=MINUTE)


def test_sentinel_fails_over(tmp_path: Path) -> None:
    """An engine on what Sentinel calls the master finds the new one, sync and async, and goes on by itself."""
    program = _find_program().path
    master, replica, sentinel = free_ports(3)
    (tmp_path / "sentinel.conf").write_text(
        f"port {sentinel}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor shop 127.0.0.1 {master} 1\nsentinel down-after-milliseconds shop 300\n"
        "sentinel failover-timeout shop 2000\n"
    )
    common = ("--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path), "--repl-diskless-sync-delay", "0")

    async def lock_async(slot_id: str) -> int:
        watchers = redis.asyncio.Sentinel([("127.0.0.1", sentinel)])
        async with AsyncLockEngine(watchers.master_for("shop"), unregistered="allow") as engine:
            lock = await engine.lock(slot_id, lock_for=MINUTE)
        for sentinel_client in watchers.sentinels:
            await sentinel_client.aclose()
        return lock.fencing_token

    with (
        running(program, "--port", str(master), *common) as first,
        running(program, "--port", str(replica), "--replicaof", "127.0.0.1", str(master), *common),
        contextlib.ExitStack() as stack,
    ):
        copy = redis.Redis(port=replica)
        await_that(lambda: copy.info("replication")["master_link_status"] == "up")
        # Sentinel asks a master for its replicas at its start, and then every ten seconds.
        stack.enter_context(running(program, str(tmp_path / "sentinel.conf"), "--sentinel"))
        watcher = redis.sentinel.Sentinel([("127.0.0.1", sentinel)])
        await_that(lambda: watcher.discover_master("shop") == ("127.0.0.1", master))
        await_that(lambda: watcher.discover_slaves("shop"))
        with LockEngine(watcher.master_for("shop"), unregistered="allow", timeout=timedelta(seconds=20)) as engine:
            before = engine.lock("s", lock_for=MINUTE)
            await_that(lambda: copy.exists("slot:s:lock"))
            first.kill()
            after = engine.lock("t", lock_for=MINUTE)
            assert engine.check(before) == before
        assert after.fencing_token > before.fencing_token
        assert asyncio.run(lock_async("u")) > after.fencing_token


def test_an_engine_does_not_pickle(lock_engine: LockEngine) -> None:
    """Locks travel, engines don't: an error at once beats a copy that shares a socket."""
    with pytest.raises(TypeError):
        pickle.dumps(lock_engine)
