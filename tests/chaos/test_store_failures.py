"""A store that refuses, forgets, restarts or is full: calls outlive what passes, and say plainly what does not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import redis.asyncio

from overbooked_lock import (
    AsyncLockEngine,
    EmbeddedServer,
    Lock,
    LockEngine,
    LockKeyInvalid,
    LockLost,
    NewSlot,
    OverbookedError,
    Slot,
    SlotLocked,
    StoreCorrupt,
    StoreUnavailable,
    embedded,
    scripts,
)
from overbooked_lock.keys import Keys

from .proxy import ALWAYS, Proxy, runs
from .tools import MINUTE, Connect, contents, ends_within, milliseconds, until

KEY = "kEy!7"
"""A lock_key: short, so that a server that quotes arguments has room for it."""

PATIENCE = timedelta(seconds=5)
"""The timeout of an engine that is to give up earlier, or not at all."""

NewSlots = Callable[..., NewSlot]
LOCK = runs(scripts.LOCK)

PASSING = {
    "LOADING Redis is loading the dataset in memory": "it is loading its data",
    "BUSY Redis is busy running a script": "it is busy with another script",
    "READONLY You can't write against a read only replica.": "it is a read-only replica",
    "MASTERDOWN Link with MASTER is down": "its link with the master is down",
    "CLUSTERDOWN The cluster is down": "its cluster is down",
    "TRYAGAIN Multiple keys request during rehashing of slot": "its cluster is moving keys",
    "OOM command not allowed when used memory > 'maxmemory'": "it is out of memory",
    "MISCONF Errors writing to the AOF file": "it can't save to disk",
    "NOREPLICAS Not enough good replicas to write.": "it has too few replicas",
    "NOSCRIPT No matching script.": "it forgot a script",
    "ERR max number of clients reached": "it has too many clients",
    "ERR Error running script (call to f_0): @user_script:9: -OOM command not allowed": "it is out of memory",
}
FINAL = {
    "NOAUTH Authentication required.": "it asks for a password",
    "WRONGPASS invalid username-password pair": "user name or password are wrong",
    "NOPERM this user has no permissions to run the 'evalsha' command": "its user may not do this",
    "WRONGTYPE Operation against a key holding the wrong kind of value": "a key of ours holds something else",
    "CROSSSLOT Keys in request don't hash to the same slot": "it is a Redis Cluster, which is not supported",
    "MOVED 3999 127.0.0.1:6381": "it is a Redis Cluster, which is not supported",
}


def assert_secret(error: BaseException, log: pytest.LogCaptureFixture, key: str = KEY) -> None:
    """Nothing that anybody may print of this failure holds the key."""
    shown = [*traceback.format_exception(error), log.text]
    each: BaseException | None = error
    while each is not None:
        shown += [str(each), repr(each), repr(each.args), repr(vars(each))]
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    if isinstance(error, OverbookedError):
        shown.append(repr(pickle.dumps(error)))
    assert not [text for text in shown if key in text]


# Each error reply


@pytest.mark.parametrize("reply", PASSING)
def test_an_error_that_passes_is_outlived(connect: Connect, proxy: Proxy, reply: str) -> None:
    """The call is made again until the server does it, and the caller never hears of it."""
    engine = connect(proxy.url)
    proxy.answer(LOCK, f"-{reply}", times=3)
    lock = engine.lock("a", lock_for=MINUTE)
    assert proxy.done["answer"] == 3
    assert not lock.already_held


@pytest.mark.parametrize("reply", PASSING)
def test_an_error_that_stays_is_told(
    connect: Connect, proxy: Proxy, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the timeout the caller learns what is wrong, and that nothing was changed; in our words, not the server's."""
    engine = connect(proxy.url, timeout=milliseconds(150))
    proxy.answer(LOCK, f"-{reply} {KEY}" if "clients" not in reply else f"-{reply}", times=ALWAYS)
    with ends_within(0.15), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert PASSING[reply] in str(error.value)
    assert proxy.done["answer"] > 2
    assert_secret(error.value, caplog)


@pytest.mark.parametrize("reply", FINAL)
def test_an_error_that_cannot_pass_is_told_at_once(
    connect: Connect, proxy: Proxy, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for a password to become right by itself."""
    engine = connect(proxy.url, timeout=PATIENCE)
    proxy.answer(LOCK, f"-{reply} {KEY}" if not reply.startswith("MOVED") else f"-{reply}", times=ALWAYS)
    with ends_within(0), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert FINAL[reply] in str(error.value)
    assert proxy.done["answer"] == 1
    assert_secret(error.value, caplog)


def test_an_error_that_nobody_knows_is_told_at_once_as_unknown(
    connect: Connect, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """What a script did before it failed can't be said; the error's text is not repeated, for it may quote us."""
    engine = connect(proxy.url, timeout=PATIENCE)
    proxy.answer(LOCK, f"-ERR user_script:7: something about {KEY}", times=ALWAYS)
    with ends_within(0), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "unknown"
    assert_secret(error.value, caplog)


# Real replicas


def test_a_replica_is_waited_for_until_it_is_promoted(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """A failover takes a moment, in which the new master is still read-only."""
    with Proxy(own_server.socket_path) as proxy:
        engine = connect(proxy.url, timeout=PATIENCE)
        operator.replicaof("127.0.0.1", "1")
        with ThreadPoolExecutor() as pool:
            locking = pool.submit(engine.lock, "a", lock_for=MINUTE)
            until(lambda: proxy.errors.total() > 1)
            operator.replicaof("NO", "ONE")
            assert locking.result().slot_id == "a"


def test_a_replica_that_stays_one_changes_nothing(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """Reads are answered, writes fail with the reason."""
    engine = connect(own_server.url, timeout=milliseconds(200))
    lock = engine.lock("a", lock_for=MINUTE)
    operator.replicaof("127.0.0.1", "1")
    before = contents(own_server.url)
    for call in (
        lambda: engine.lock("b", lock_for=MINUTE),
        lambda: engine.extend(lock, lock_for=2 * MINUTE),
        lambda: engine.unlock(lock),
    ):
        with pytest.raises(StoreUnavailable, match="read-only replica") as error:
            call()
        assert error.value.outcome == "not_applied"
    assert contents(own_server.url) == before
    assert engine.check(lock) is not None


def test_a_replica_without_its_master_may_refuse_even_reads(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """A replica that serves no stale data says so, and the caller is told."""
    engine = connect(own_server.url, timeout=milliseconds(200))
    lock = engine.lock("a", lock_for=MINUTE)
    operator.config_set("replica-serve-stale-data", "no")
    operator.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match="link with the master is down") as error:
        engine.check(lock)
    assert error.value.outcome == "not_applied"
    operator.replicaof("NO", "ONE")
    assert engine.check(lock) is not None


def test_a_master_without_enough_replicas_grants_nothing(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """``min-replicas-to-write``: a lock that might be lost is not given out, and the caller is told why."""
    engine = connect(own_server.url, timeout=milliseconds(200))
    lock = engine.lock("a", lock_for=MINUTE)
    operator.config_set("min-replicas-to-write", 1)
    before = contents(own_server.url)
    with pytest.raises(StoreUnavailable, match="too few replicas") as error:
        engine.lock("b", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert contents(own_server.url) == before
    operator.config_set("min-replicas-to-write", 0)
    assert engine.unlock(lock).released


def test_a_failover_behind_one_address_is_followed(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, lock_server: EmbeddedServer
) -> None:
    """New connections reach the new master: an engine must not stay on one to the old, which is read-only now."""
    with Proxy(own_server.socket_path) as proxy:
        engine = connect(proxy.url)
        engine.lock("a", lock_for=MINUTE)
        operator.replicaof("127.0.0.1", "1")
        proxy.upstream = lock_server.socket_path
        assert engine.lock("b", lock_for=MINUTE).slot_id == "b"
        assert proxy.errors.total() > 0


# Out of memory


def test_out_of_memory_refuses_locks_and_changes_nothing(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, new_slot: NewSlots
) -> None:
    """A lock fails clean when the server is full, and so does a new slot."""
    engine = connect(own_server.url, timeout=milliseconds(200))
    engine.lock("a", lock_for=MINUTE)
    before = contents(own_server.url)
    operator.config_set("maxmemory", 1)
    for call in (
        lambda: engine.lock("b", lock_for=MINUTE),
        lambda: engine.lock_many(["b", "c"], lock_for=MINUTE),
        lambda: engine.create_slot(new_slot()),
    ):
        with pytest.raises(StoreUnavailable, match="out of memory") as error:
            call()
        assert error.value.outcome == "not_applied"
    assert contents(own_server.url) == before
    operator.config_set("maxmemory", 0)
    engine.lock("b", lock_for=MINUTE)


def test_out_of_memory_refuses_no_unlock(connect: Connect, own_server: EmbeddedServer, operator: redis.Redis) -> None:
    """What gives memory back works when there is none."""
    engine = connect(own_server.url)
    lock = engine.lock("a", lock_for=MINUTE)
    operator.config_set("maxmemory", 1)
    assert engine.check(lock) is not None
    assert engine.unlock(lock).released


# Busy


@contextlib.contextmanager
def busy(url: str) -> Iterator[None]:
    """Somebody else's script keeps the server busy for the body; its connection ends with an error."""

    def run_forever() -> None:
        with redis.Redis.from_url(url) as client, contextlib.suppress(redis.ResponseError):
            client.eval("while true do end", 0)

    with redis.Redis.from_url(url) as client:
        client.config_set("lua-time-limit", 1)
        script = threading.Thread(target=run_forever)
        script.start()

        def is_busy() -> bool:
            try:
                client.ping()
            except redis.ResponseError as error:
                return str(error).startswith("BUSY")
            return False

        until(is_busy)
        try:
            yield
        finally:
            with contextlib.suppress(redis.ResponseError):  # the body may have killed it
                client.script_kill()
            script.join()


def test_a_busy_server_is_waited_for(connect: Connect, own_server: EmbeddedServer, operator: redis.Redis) -> None:
    """Another client's script holds the server up, and the operator kills it: nobody's call fails."""
    with Proxy(own_server.socket_path) as proxy:
        engine = connect(proxy.url, timeout=PATIENCE)
        engine.lock("warm up", lock_for=MINUTE)
        with busy(own_server.url), ThreadPoolExecutor() as pool:
            locking = pool.submit(engine.lock, "a", lock_for=MINUTE)
            until(lambda: proxy.errors["BUSY"] > 1)
            assert not locking.done()
            operator.script_kill()
            assert not locking.result().already_held


def test_a_server_that_stays_busy_ends_the_call(connect: Connect, own_server: EmbeddedServer) -> None:
    """At the timeout the caller learns the reason, and that nothing was changed."""
    engine = connect(own_server.url, timeout=milliseconds(1000))
    engine.lock("warm up", lock_for=MINUTE)
    with busy(own_server.url), ends_within(1.0), pytest.raises(StoreUnavailable, match="busy with another") as error:
        engine.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"


# Forgotten scripts


def test_forgotten_scripts_lose_nothing_under_load(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """SCRIPT FLUSH again and again while eight threads lock, check and unlock: no call fails, none is done twice."""
    engine = connect(own_server.url)
    over = threading.Event()

    def work(number: int) -> int:
        rounds, token = 0, 0
        while not over.is_set() or rounds < 20:
            lock = engine.lock(f"seat-{number}", lock_for=MINUTE)
            assert not lock.already_held
            assert lock.fencing_token > token
            assert engine.check(lock) is not None
            assert engine.unlock(lock).released
            rounds, token = rounds + 1, lock.fencing_token
        return rounds

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(work, number) for number in range(8)]
        for _ in range(50):
            operator.script_flush()
            time.sleep(0.005)  # lets some calls in between
        over.set()
        assert all(worker.result() >= 20 for worker in workers)
    assert operator.info("errorstats")["errorstat_NOSCRIPT"]["count"] > 10


async def test_forgotten_scripts_in_a_merged_call_lose_nothing(
    own_server: EmbeddedServer, operator: redis.Redis, lock_namespace: str
) -> None:
    """Several scripts go out at once, all of them unknown to the server: each is sent in full, once."""
    async with AsyncLockEngine.from_url(own_server.url, namespace=lock_namespace, unregistered="allow") as engine:
        for round_ in range(20):
            operator.script_flush()
            locks = await asyncio.gather(*(engine.lock(f"{round_}-{n}", lock_for=MINUTE) for n in range(20)))
            operator.script_flush()
            checked, unlocked, relocked = await asyncio.gather(
                asyncio.gather(*(engine.check(lock) for lock in locks[:10])),
                asyncio.gather(*(engine.unlock(lock) for lock in locks[10:])),
                asyncio.gather(*(engine.lock(f"{round_}-{n}", lock_for=MINUTE) for n in range(20, 40))),
            )
            assert checked == locks[:10]
            assert all(one.released for one in unlocked)
            assert not any(lock.already_held for lock in relocked)


# Restarts


def test_a_server_that_is_killed_under_load_loses_no_lock(connect: Connect, tmp_path: Path) -> None:
    """SIGKILL and start again: no call fails, and every lock that was granted before or after is still held."""
    folder = tmp_path / "server"
    granted: list[Lock] = []
    over = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not over.is_set():
            granted.append(engine.lock(f"{number}-{count}", lock_for=MINUTE))
            count += 1

    with EmbeddedServer(folder) as server:
        engine = connect(server.url, timeout=milliseconds(20_000))
        with ThreadPoolExecutor(8) as pool:
            workers = [pool.submit(work, number) for number in range(8)]
            try:
                until(lambda: len(granted) > 200)
                os.kill(server.pid, signal.SIGKILL)
                with EmbeddedServer(folder) as restarted:
                    assert restarted.pid != server.pid
                    before = len(granted)
                    until(lambda: len(granted) > before + 200)
                    over.set()
                    for worker in workers:
                        worker.result()
                    for lock in granted:
                        held = engine.check(lock)
                        assert held is not None
                        assert held.fencing_token == lock.fencing_token
            finally:
                over.set()
    tokens = [lock.fencing_token for lock in granted]
    assert len(set(tokens)) == len(tokens)
    assert not any(lock.already_held for lock in granted)


def test_a_store_that_lost_everything_gives_out_higher_tokens(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """FLUSHALL takes the last token, too; what comes after it is above it all the same."""
    engine = connect(own_server.url)
    tokens = []
    for _ in range(5):
        tokens.append(engine.lock("a", lock_for=MINUTE).fencing_token)
        operator.flushall()
    assert tokens == sorted(set(tokens))


# Rights and limits


def test_a_missing_password_is_told_at_once(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """NOAUTH is a matter of configuration, and no reason to wait."""
    engine = connect(own_server.url, timeout=PATIENCE)
    operator.config_set("requirepass", "letmein")
    try:
        with ends_within(0), pytest.raises(StoreUnavailable, match="asks for a password") as error:
            engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    finally:
        operator.config_set("requirepass", "")  # else the server could not be told to stop
    assert error.value.outcome == "not_applied"
    assert_secret(error.value, caplog)
    assert engine.unlock(engine.lock("a", lock_for=MINUTE)).released


def test_a_wrong_password_is_told_at_once_and_not_repeated(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """WRONGPASS fails at once; neither our key nor the password is in the error."""
    operator.acl_setuser("desk", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"])
    engine = connect(own_server.url.replace("unix://", "unix://desk:wr0ng@"), timeout=PATIENCE)
    with ends_within(0), pytest.raises(StoreUnavailable, match="user name or password are wrong") as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert_secret(error.value, caplog)
    assert_secret(error.value, caplog, "wr0ng")


@pytest.mark.parametrize(
    "rights",
    [
        {"commands": ["-eval", "-evalsha"], "keys": ["*"], "channels": ["*"]},
        {"keys": ["elsewhere:*"], "channels": ["*"]},
    ],
    ids=["no scripts", "other keys"],
)
def test_missing_rights_are_told_at_once(
    connect: Connect,
    own_server: EmbeddedServer,
    operator: redis.Redis,
    rights: dict[str, list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """NOPERM fails at once and changes nothing."""
    operator.acl_setuser("desk", enabled=True, passwords=["+right"], categories=["+@all"], **cast("Any", rights))
    engine = connect(own_server.url.replace("unix://", "unix://desk:right@"), timeout=PATIENCE)
    with ends_within(0), pytest.raises(StoreUnavailable, match="may not do this") as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert_secret(error.value, caplog)
    assert contents(own_server.url) == {}


def test_rights_that_are_missing_inside_a_script_are_told_at_once(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A user who may run scripts and not what is in them learns that it is a matter of rights."""
    operator.acl_setuser(
        "desk",
        enabled=True,
        passwords=["+right"],
        categories=["+@all"],
        commands=["-set"],
        keys=["*"],
        channels=["*"],
    )
    engine = connect(own_server.url.replace("unix://", "unix://desk:right@"), timeout=PATIENCE)
    with ends_within(0), pytest.raises(StoreUnavailable, match="may not do this") as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert_secret(error.value, caplog)
    assert operator.exists(Keys().lock("a"), Keys().locks, Keys().expiry) == 0


def test_a_user_who_may_not_tell_of_events_is_told_at_once(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the first change: none may go untold."""
    operator.acl_setuser(
        "desk", enabled=True, passwords=["+right"], categories=["+@all"], keys=["*"], reset_channels=True
    )
    engine = connect(own_server.url.replace("unix://", "unix://desk:right@"), timeout=PATIENCE)
    with ends_within(0), pytest.raises(StoreUnavailable, match="may not publish on the channel") as error:
        engine.lock("a", lock_key=KEY, lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    assert_secret(error.value, caplog)
    assert contents(own_server.url) == {}


def test_a_user_who_may_not_ask_for_facts_may_lock(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """INFO is a courtesy: where it is denied, all else works."""
    operator.acl_setuser(
        "desk",
        enabled=True,
        passwords=["+right"],
        categories=["+@all"],
        commands=["-info"],
        keys=["*"],
        channels=["*"],
    )
    engine = connect(own_server.url.replace("unix://", "unix://desk:right@"))
    assert engine.unlock(engine.lock("a", lock_for=MINUTE)).released


def test_a_server_without_room_for_a_client_is_waited_for(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """The call is not made, says so at its timeout, and works when somebody has left."""
    operator.ping()
    operator.config_set("maxclients", 1)
    engine = connect(own_server.url, timeout=milliseconds(200))
    with ends_within(0.2), pytest.raises(StoreUnavailable) as error:
        engine.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"
    operator.config_set("maxclients", 100)
    assert engine.unlock(engine.lock("a", lock_for=MINUTE)).released


def test_more_threads_than_clients_allowed_all_get_served(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis
) -> None:
    """Sixteen threads on a server for six clients wait for each other's connections, and none fails."""
    operator.ping()
    operator.config_set("maxclients", 6)
    engine = connect(own_server.url, timeout=milliseconds(20_000))

    def work(number: int) -> bool:
        return all(engine.unlock(engine.lock(f"seat-{number}", lock_for=MINUTE)).released for _ in range(20))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))


def test_a_host_that_never_answers_a_connect_ends_by_the_timeout(connect: Connect) -> None:
    """Nothing was sent: the error says that nothing was changed."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Once its queue is full, the kernel leaves further connects without an answer.
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        host, port = listener.getsockname()
        engine = connect(f"redis://{host}:{port}", timeout=milliseconds(200))
        with ends_within(0.2), pytest.raises(StoreUnavailable, match="did not answer in time") as error:
            engine.lock("a", lock_for=MINUTE)
    assert error.value.outcome == "not_applied"


# Clients and policies


def test_a_client_that_decodes_replies_makes_a_working_sync_engine(
    lock_server: EmbeddedServer, lock_namespace: str, new_slot: NewSlots
) -> None:
    """The engine reads bytes whatever the client was told, also where scripts are unknown."""
    client = redis.Redis.from_url(lock_server.url, decode_responses=True)
    client.script_flush()
    with LockEngine(client, namespace=lock_namespace) as engine:
        slot = engine.create_slot(new_slot(metadata={"name": "Łódź"}))
        lock = engine.lock(slot.id, lock_key="ключ", lock_for=MINUTE)
        assert engine.get_slot(slot.id, lock_key="ключ") == lock.slot
        assert [live.slot_id for live in engine.list_locks()] == [slot.id]
        assert engine.unlock(lock).released


async def test_a_client_that_decodes_replies_makes_a_working_async_engine(
    lock_server: EmbeddedServer, lock_namespace: str, new_slot: NewSlots
) -> None:
    """The same, async."""
    client = redis.asyncio.Redis.from_url(lock_server.url, decode_responses=True)
    async with AsyncLockEngine(client, namespace=lock_namespace) as engine:
        slot = await engine.create_slot(new_slot(metadata={"name": "Łódź"}))
        lock = await engine.lock(slot.id, lock_key="ключ", lock_for=MINUTE)
        assert await engine.get_slot(slot.id, lock_key="ключ") == lock.slot
        assert [live.slot_id for live in await engine.list_locks()] == [slot.id]
        assert (await engine.unlock(lock)).released


def _warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_a_server_that_may_evict_locks_is_warned_of_once(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """``maxmemory-policy allkeys-lru`` drops live locks: whoever runs this is told, once an engine."""
    operator.config_set("maxmemory-policy", "allkeys-lru")
    engine = connect(own_server.url)
    for _ in range(3):
        engine.unlock(engine.lock("a", lock_for=MINUTE))
    [warning] = _warnings(caplog)
    assert "allkeys-lru" in warning


def test_a_server_that_keeps_everything_is_not_warned_of(
    connect: Connect, own_server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``noeviction`` there is nothing to say."""
    connect(own_server.url).lock("a", lock_for=MINUTE)
    assert _warnings(caplog) == []


def test_a_server_that_was_busy_at_first_is_examined_later(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The first connect met a busy server, which tells nothing: the warning comes when it can be known."""
    operator.config_set("maxmemory-policy", "allkeys-lru")
    engine = connect(own_server.url, timeout=milliseconds(200))
    with busy(own_server.url), pytest.raises(StoreUnavailable):
        engine.lock("a", lock_for=MINUTE)
    engine.lock("a", lock_for=MINUTE)
    assert len(_warnings(caplog)) == 1


# Keys that hold something else


@pytest.fixture
def slots(lock_engine: LockEngine, new_slot: NewSlots) -> list[Slot]:
    """Twenty registered slots, each different."""
    return lock_engine.create_slots([new_slot(capacity=number + 1) for number in range(20)])


@pytest.mark.parametrize("kind", ["lock", "record"])
def test_one_wrong_key_fails_all_or_nothing(
    connect: Connect, lock_server: EmbeddedServer, raw: redis.Redis, slots: list[Slot], lock_namespace: str, kind: str
) -> None:
    """lock_many names the slot whose key holds a list, and changes nothing."""
    engine = connect(lock_server.url)
    key = getattr(Keys(lock_namespace), kind)(slots[7].id)
    raw.delete(key)
    raw.rpush(key, "not ours")
    before = contents(lock_server.url, lock_namespace)
    with pytest.raises(StoreCorrupt) as error:
        engine.lock_many([slot.id for slot in slots], lock_for=MINUTE)
    assert error.value.slot_id == slots[7].id
    assert contents(lock_server.url, lock_namespace) == before


@pytest.mark.parametrize("kind", ["lock", "record"])
async def test_one_wrong_key_fails_alone_in_a_merged_call(
    proxy: Proxy, raw: redis.Redis, slots: list[Slot], lock_namespace: str, kind: str
) -> None:
    """The neighbours of a slot whose key holds a list get their locks, in the same call."""
    key = getattr(Keys(lock_namespace), kind)(slots[7].id)
    raw.delete(key)
    raw.rpush(key, "not ours")
    async with AsyncLockEngine.from_url(proxy.url, namespace=lock_namespace) as engine:
        locking = (engine.lock(slot.id, lock_for=MINUTE) for slot in slots)
        outcomes = await asyncio.gather(*locking, return_exceptions=True)
    assert proxy.count(LOCK) < 10
    corrupt = outcomes.pop(7)
    assert isinstance(corrupt, StoreCorrupt)
    assert corrupt.slot_id == slots[7].id
    assert all(isinstance(outcome, Lock) for outcome in outcomes)


@pytest.mark.parametrize("record", ["nonsense", "3LA 0 0 1 and then nonsense"], ids=["all of it", "its end"])
async def test_one_record_of_nonsense_fails_alone_in_a_merged_call(
    raw: redis.Redis, slots: list[Slot], lock_namespace: str, lock_server: EmbeddedServer, record: str
) -> None:
    """The neighbours of a slot whose record was overwritten are shown, in the same call."""
    raw.set(Keys(lock_namespace).record(slots[7].id), record)
    async with AsyncLockEngine.from_url(lock_server.url, namespace=lock_namespace) as engine:
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*(engine.get_slot(slot.id) for slot in slots), return_exceptions=True)
    assert isinstance(outcomes.pop(7), StoreCorrupt)
    assert outcomes == [slot for slot in slots if slot is not slots[7]]


@pytest.mark.parametrize("shared", ["locks", "expiry"])
def test_a_wrong_shared_key_fails_at_once_and_changes_nothing(
    connect: Connect, own_server: EmbeddedServer, operator: redis.Redis, lock_namespace: str, shared: str
) -> None:
    """Where all locks are kept stands something else: nothing can be locked or unlocked, and nothing is half done."""
    engine = connect(own_server.url, timeout=PATIENCE)
    lock = engine.lock("a", lock_for=MINUTE)
    key = getattr(Keys(lock_namespace), shared)
    operator.delete(key)
    operator.set(key, "not ours")
    before = contents(own_server.url)
    calls: list[Callable[[], object]] = [
        lambda: engine.lock("b", lock_for=MINUTE),
        lambda: engine.extend(lock, lock_for=2 * MINUTE),
        lambda: engine.unlock(lock),
        lambda: engine.unlock("a", lock_key=lock.lock_key),
        lambda: engine.force_unlock("a"),
    ]
    for call in calls:
        with ends_within(0), pytest.raises(StoreUnavailable, match="holds something else") as error:
            call()
        assert error.value.outcome == "not_applied"
        assert contents(own_server.url) == before


# Secrets


def test_no_refusal_shows_a_key(
    connect: Connect,
    lock_server: EmbeddedServer,
    raw: redis.Redis,
    lock_namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Taken, lost, denied, corrupt: neither the holder's key nor the caller's is in any error."""
    caplog.set_level(logging.DEBUG)
    engine = connect(lock_server.url)
    engine.lock("taken", lock_key="h0lder", lock_for=MINUTE)
    raw.rpush(Keys(lock_namespace).lock("corrupt"), "not ours")
    refusals: dict[type[OverbookedError], Callable[[], object]] = {
        SlotLocked: lambda: engine.lock("taken", lock_key=KEY, lock_for=MINUTE),
        LockLost: lambda: engine.extend("taken", lock_key=KEY, lock_for=MINUTE),
        LockKeyInvalid: lambda: engine.unlock("taken", lock_key=KEY),
        StoreCorrupt: lambda: engine.lock("corrupt", lock_key=KEY, lock_for=MINUTE),
    }
    for refused, call in refusals.items():
        with pytest.raises(refused) as error:
            call()
        assert_secret(error.value, caplog)
        assert_secret(error.value, caplog, "h0lder")


@pytest.fixture
def server_without_evalsha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A server that was told not to know EVALSHA, as some hosts do."""
    program = tmp_path / "server-without-evalsha"
    real = embedded._find_program().path
    rename = "--rename-command EVALSHA NOTHING"
    program.write_text(f'#!/bin/sh\n[ "$1" != --version ] || exec "{real}" --version\nexec "{real}" "$@" {rename}\n')
    program.chmod(0o755)
    monkeypatch.setenv("OVERBOOKED_LOCK_SERVER", str(program))
    with EmbeddedServer(tmp_path / "server") as server:
        yield server


def test_a_server_that_quotes_our_arguments_is_not_repeated(
    connect: Connect, server_without_evalsha: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """For an unknown command Redis' error quotes what was sent, with the key in it: no error of ours does."""
    caplog.set_level(logging.DEBUG)
    url = server_without_evalsha.url
    with redis.Redis.from_url(url) as client, pytest.raises(redis.ResponseError, match=KEY):
        client.evalsha(scripts.CHECK.sha, 4, "slots:locks", "slots:expiry", "slot:a:lock", "slot:a:record", "a", KEY)
    engine = connect(url, namespace="", timeout=PATIENCE)
    for call in (
        lambda: engine.lock("a", lock_key=KEY, lock_for=MINUTE),
        lambda: engine.check("a", lock_key=KEY),
        lambda: engine.unlock("a", lock_key=KEY),
        lambda: engine.get_slot("a", lock_key=KEY),
    ):
        with ends_within(0), pytest.raises(StoreUnavailable) as error:
            call()
        assert_secret(error.value, caplog)
