"""When the store or we ourselves fail: what the client hears, what the log and the metrics say."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from overbooked_lock import EmbeddedServer, StoreUnavailable

from .tools import Served, error_of


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A store to be spoilt."""
    with EmbeddedServer(tmp_path / "store", fsync="everysec") as server:
        yield server


def test_e070_a_store_that_is_gone(serve: Callable[..., Served], own_store: EmbeddedServer) -> None:
    """Was it applied? ``details`` tells. The process lives, but is not ready."""
    api = serve(store=own_store.url)
    slot = api.slot()
    api.engine._coalescer._timeout = 0.2
    own_store.close()
    refused = api.lock(slot["id"])
    assert error_of(refused) == ("E070", 503)
    assert refused.json()["error"]["details"]["outcome"] in {"not_applied", "unknown"}
    assert error_of(api.call("GET", "/readyz", key=None)) == ("E070", 503)
    assert api.call("GET", "/healthz", key=None).is_success
    assert "overbooked_store_errors_total{outcome=" in api.client.get("/metrics").text


def test_e070_not_ready(serve: Callable[..., Served], own_store: EmbeddedServer) -> None:
    """If the store may drop locks, can't be written, or is gone."""
    api = serve(store=own_store.url)
    with redis.Redis.from_url(own_store.url) as raw:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        refused = api.call("GET", "/readyz", key=None)
        assert error_of(refused) == ("E070", 503)
        assert "noeviction" in refused.json()["error"]["message"]
        raw.config_set("maxmemory-policy", "noeviction")
        api.engine._coalescer._timeout = 0.2
        raw.config_set("min-replicas-to-write", 1)
        assert error_of(api.call("GET", "/readyz", key=None)) == ("E070", 503)
        raw.config_set("min-replicas-to-write", 0)
        assert api.call("GET", "/readyz", key=None).is_success


def test_e001_tells_nothing_of_its_cause(
    api: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither to the client nor, where it could quote a secret, to the log; that has the place and the request id."""

    async def fail(*_: Any, **given: Any) -> Any:
        raise ValueError(f"never say {given}")

    monkeypatch.setattr(api.engine, "lock", fail)
    with caplog.at_level(logging.ERROR, "overbooked_lock.http"):
        broken = api.lock("x", "top-secret")
    assert error_of(broken) == ("E001", 500)
    assert "never" not in broken.text
    assert "ValueError" in caplog.text
    assert broken.headers["x-request-id"] in caplog.text
    assert "lock_slot" in caplog.text
    assert "top-secret" not in caplog.text


def test_e001_what_is_corrupt_is_no_business_of_clients(api: Served) -> None:
    """It is logged."""
    slot = api.slot()
    api.ask(spoil(api, slot["id"]))
    assert error_of(api.call("GET", f"/slots/{slot['id']}")) == ("E001", 500)


async def spoil(api: Served, slot_id: str) -> None:
    """Puts something else in a record's place."""
    pool = api.engine._coalescer._pool
    async with redis.asyncio.Redis(unix_socket_path=pool.connection_kwargs["path"]) as raw:
        keys = api.engine._settings.keys
        await raw.set(keys.record(slot_id), "nonsense")


def test_an_unknown_outcome_is_told(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client may ask again with the same key."""

    async def lose(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("unknown", "no answer")

    monkeypatch.setattr(api.engine, "lock", lose)
    refused = api.lock("x")
    assert error_of(refused) == ("E070", 503)
    assert refused.json()["error"]["details"] == {"outcome": "unknown"}


# Metrics


def test_metrics(serve: Callable[..., Served]) -> None:
    """What was granted and refused, how long it took, how well calls were merged; and nobody's id."""
    api = serve()
    slot = api.slot()
    api.lock(slot["id"], "my-lock-key")
    api.lock(slot["id"], "other")
    api.call("POST", f"/slots/{slot['id']}/unlock", {"lock_key": "my-lock-key"})
    api.call("POST", "/bookings", {"slot_id": slot["id"]})
    text = api.client.get("/metrics").text
    for line in [
        "overbooked_locks_granted_total 1.0",
        "overbooked_unlocks_total 1.0",
        "overbooked_bookings_total 1.0",
        'overbooked_refused_total{code="E045",reason="",route="POST /slots/{id}/lock"} 1.0',
        'overbooked_http_request_seconds_count{route="POST /slots/{id}/lock",status="200"} 1.0',
    ]:
        assert line in text
    assert "overbooked_batch_calls_count" in text
    for secret in (slot["id"], "my-lock-key", api.secret.key, api.secret.id, api.public.id, "127.0.0.1"):
        assert secret not in text


def test_metrics_count_what_callers_asked_for(serve: Callable[..., Served]) -> None:
    """And not what a server does beside that: it looks for locks that ended many times a second."""
    api = serve()
    [before] = _metric(api, "overbooked_batch_calls_sum")
    api.ask(api.engine.sweep())
    assert _metric(api, "overbooked_batch_calls_sum") == [before]
    api.ask(api.engine.list_locks())
    assert _metric(api, "overbooked_batch_calls_sum") == [before + 1]


def _metric(api: Served, name: str) -> list[float]:
    lines = api.client.get("/metrics").text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith(name)]


def test_metrics_are_for_this_machine_and_for_secret_keys(serve: Callable[..., Served]) -> None:
    """A proxy passes on who asks: then it takes a key."""
    api = serve()
    passed_on = {"X-Forwarded-For": "192.0.2.1"}
    assert error_of(api.call("GET", "/metrics", key=None, headers=passed_on)) == ("E056", 401)
    assert error_of(api.call("GET", "/metrics", key="public", headers=passed_on)) == ("E015", 401)
    headers = passed_on | {"Authorization": f"Bearer {api.secret.key}"}
    assert api.client.get("/metrics", headers=headers).text.startswith("# HELP")


def test_odd_paths_make_no_metrics(serve: Callable[..., Served]) -> None:
    """Or every scan would leave a series behind."""
    api = serve()
    for _ in range(3):
        api.call("GET", f"/{uuid.uuid4()}")
        api.call("PUT", f"/slots/{uuid.uuid4()}")
    assert api.client.get("/metrics").text.count("overbooked_refused_total{") == 1


def test_answers_are_kept_for_a_day() -> None:
    """As it says in the reference."""
    from overbooked_lock.http.app import KEEP_ANSWERS_FOR  # noqa: PLC0415

    assert timedelta(days=1) == KEEP_ANSWERS_FOR
