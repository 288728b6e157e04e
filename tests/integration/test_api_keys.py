"""API keys: made once, shown once, known by their hash."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import cast

import pytest
import redis

from overbooked_lock import ApiKey, ApiKeyInfo, InvalidArgument, LockEngine, StoreUnavailable, api_keys
from overbooked_lock.api_keys import KeyKind
from overbooked_lock.calls import Settings
from overbooked_lock.keys import Keys
from overbooked_lock.operations import CHUNK


@pytest.mark.parametrize(("kind", "prefix"), [("public", "pk_"), ("secret", "sk_")])
def test_a_key_is_made_and_found(
    engine: LockEngine, redis_now: Callable[[], datetime], kind: KeyKind, prefix: str
) -> None:
    """Its kind shows in its first letters; its date is Redis'."""
    before = redis_now() - timedelta(milliseconds=1)
    made = engine.create_api_key(kind, name="till 7 | ünï")
    assert re.fullmatch(prefix + "[0-9a-f]{64}", made.key)
    assert (made.kind, made.name) == (kind, "till 7 | ünï")
    assert before <= made.created_at <= redis_now()
    found = engine.find_api_key(made.key)
    assert found == ApiKeyInfo(made.id, made.kind, made.name, made.created_at)
    assert not isinstance(found, ApiKey)


def test_every_key_is_another(engine: LockEngine) -> None:
    """Names need not differ, and may be empty."""
    made = [engine.create_api_key("public") for _ in range(20)]
    assert len({key.key for key in made}) == len({key.id for key in made}) == 20
    assert {key.name for key in made} == {""}


def test_redis_never_sees_a_key(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """It keeps the SHA-256 alone; the id is how that begins."""
    made = engine.create_api_key("secret", name="server")
    digest = hashlib.sha256(made.key.encode()).hexdigest()
    kept = raw.hgetall(Keys(lock_namespace).api_keys)
    assert list(kept) == [digest]
    assert made.id == digest[:16]
    assert made.key not in str(kept)
    assert raw.keys(f"{lock_namespace}:*") == [f"{lock_namespace}:api:keys"]


def test_a_key_is_registered_once(raw: redis.Redis, lock_namespace: str) -> None:
    """A call that arrives a second time changes nothing: what is there stays as it was."""
    settings = Settings(Keys(lock_namespace), 60_000, "registered")
    records = []
    for name in ("first", "second"):
        call = api_keys.create_api_key(settings, [api_keys.KeyRequest("a" * 64, "P", name)])
        records += cast("list[str]", raw.eval(call.script.source, len(call.keys), *call.keys, *map(str, call.args)))
    assert records[0].endswith(" first")
    assert records == [records[0]] * 2 == [*raw.hvals(Keys(lock_namespace).api_keys)] * 2


def test_the_list_is_by_age_and_has_no_key(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """What an operator looks at."""
    made = [engine.create_api_key("public"), engine.create_api_key("secret", name="server")]
    for age, digit in enumerate("a1f"):
        raw.hset(Keys(lock_namespace).api_keys, digit * 64, f"1S {1795342754587 - age} older")
    listed = engine.list_api_keys()
    assert [info.id[0] for info in listed[:3]] == ["f", "1", "a"]
    assert {(info.id, info.kind, info.name) for info in listed[3:]} == {(key.id, key.kind, key.name) for key in made}
    assert not any(key.key[3:] in repr(listed) for key in made)


def test_more_keys_than_a_call_looks_at(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """All are listed, each once."""
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(2 * CHUNK)]
    raw.hset(Keys(lock_namespace).api_keys, mapping=dict.fromkeys(hashes, "1P 1795342754587 many"))
    assert sorted(info.id for info in engine.list_api_keys()) == sorted(key_hash[:16] for key_hash in hashes)


def test_a_revoked_key_is_gone(engine: LockEngine) -> None:
    """At once, and no other with it; what is gone can be revoked again without harm."""
    gone, stays = engine.create_api_key("secret"), engine.create_api_key("secret")
    assert engine.revoke_api_key(gone.id) is True
    assert engine.find_api_key(gone.key) is None
    assert engine.revoke_api_key(gone.id) is False
    assert [info.id for info in engine.list_api_keys()] == [stays.id]
    assert engine.find_api_key(stays.key) is not None


def test_a_key_that_nobody_made_is_not_found(engine: LockEngine) -> None:
    """Nor one of another kind with the same digits."""
    made = engine.create_api_key("public")
    assert engine.find_api_key("sk_" + made.key[3:]) is None
    assert engine.find_api_key("pk_" + "0" * 64) is None


@pytest.mark.parametrize(
    "text", ["", "pk_", "pk_" + "0" * 63, "pk_" + "0" * 65, "xk_" + "0" * 64, "pk_" + "G" * 64, "pk_" + "0" * 64 + "\n"]
)
def test_what_is_no_key_is_not_asked_for(make_engine: Callable[..., LockEngine], text: str) -> None:
    """A store that is not there is not missed."""
    engine = make_engine("unix:///nonexistent", timeout=timedelta(milliseconds=50))
    assert engine.find_api_key(text) is None
    with pytest.raises(StoreUnavailable):
        engine.find_api_key("pk_" + "0" * 64)


@pytest.mark.parametrize("record", ["", "2P 1 name", "1X 1 name", "1P x name", "1P 1" + "0" * 30 + " n", b"1P 1 \xff"])
def test_a_record_that_we_did_not_write_opens_nothing(
    engine: LockEngine, raw: redis.Redis, lock_namespace: str, record: str | bytes
) -> None:
    """It is no key and in no list, and can be revoked."""
    made = engine.create_api_key("public")
    raw.hset(Keys(lock_namespace).api_keys, hashlib.sha256(made.key.encode()).hexdigest(), record)
    assert engine.find_api_key(made.key) is None
    assert engine.list_api_keys() == []
    assert engine.revoke_api_key(made.id) is True


def test_nothing_shows_a_key(
    engine: LockEngine, raw: redis.Redis, lock_namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the repr of what carries it, nor an error, nor a log."""
    caplog.set_level(logging.DEBUG)
    made = engine.create_api_key("secret", name="server")
    assert made.key[3:] not in repr(made) + str(made)
    with pytest.raises(InvalidArgument) as refused:
        engine.revoke_api_key(made.key)
    raw.set(Keys(lock_namespace).api_keys, "not ours")
    with pytest.raises(StoreUnavailable) as unavailable:
        engine.find_api_key(made.key)
    shown = f"{refused.value!r} {vars(refused.value)} {unavailable.value!r} {vars(unavailable.value)}"
    assert made.key[3:] not in shown + caplog.text
