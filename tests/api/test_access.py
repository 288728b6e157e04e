"""Who may do what, and how often."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from overbooked_lock import AsyncLockEngine, InvalidArgument
from overbooked_lock.http import create_app
from overbooked_lock.http.access import Keyring, RateLimit
from overbooked_lock.http.endpoints import ENDPOINTS
from overbooked_lock.http.envelopes import ApiKeyInvalid, TooManyRequests

from .tools import Served, data_of, error_of, soon

SECRET_ONLY = {
    "slot.create", "slot.update", "slot.enable", "slot.disable", "slot.delete", "booking.delete", "lock.list",
}  # fmt: skip
STILL_PUBLIC_WHEN_STRICT = {"event.stream", "slot.lock", "slot.unlock", "booking.create", "slot.get", "slot.list"}


def ask(api: Served, name: str, key: str | None) -> tuple[str, int] | None:
    """Calls an endpoint with an empty body; gives the error, if it is one of access."""
    [endpoint] = [endpoint for endpoint in ENDPOINTS if endpoint.name == name]
    path = endpoint.path.replace("{id}", str(uuid.uuid4()))
    if endpoint.streams:
        path += "?since=never"  # who may read a stream is told that this can't be: else it had no end
    answer = api.call(endpoint.method, path, None if endpoint.method == "GET" else {}, key=key)
    return error_of(answer) if answer.status_code == 401 else None


@pytest.mark.parametrize("name", [endpoint.name for endpoint in ENDPOINTS])
def test_each_endpoint_asks_for_its_key(api: Served, name: str) -> None:
    """E056 without one, E055 for one that is not ours, E015 for a public one where a secret one is needed."""
    assert ask(api, name, None) == ("E056", 401)
    assert ask(api, name, "pk_" + 64 * "0") == ("E055", 401)
    assert ask(api, name, "public") == (("E015", 401) if name in SECRET_ONLY else None)
    assert ask(api, name, "secret") is None


def test_a_strict_server_lets_public_keys_do_what_a_shop_needs(serve: Callable[..., Served]) -> None:
    """Lock, unlock, book and read slots; no more."""
    api = serve(strict=True)
    allowed = {endpoint.name for endpoint in ENDPOINTS if ask(api, endpoint.name, "public") is None}
    assert allowed == STILL_PUBLIC_WHEN_STRICT
    assert all(ask(api, endpoint.name, "secret") is None for endpoint in ENDPOINTS)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "E056"),
        ("", "E056"),
        ("Bearer", "E056"),
        ("Basic {key}", "E056"),
        ("{key}", "E056"),
        ("Bearer x", "E055"),
        ("Bearer {key}0", "E055"),
        ("Bearer é", "E055"),
        ("Bearer sk_" + "g" * 64, "E055"),
        ("bearer {key}", None),
        ("Bearer   {key}", None),
    ],
)
def test_the_authorization_header(api: Served, authorization: str | None, code: str | None) -> None:
    """The scheme is Bearer in any case; what is no key is not looked up."""
    headers = {}
    if authorization is not None:
        headers["Authorization"] = authorization.format(key=api.public.key).encode()
    answer = api.call("GET", "/slots?limit=1&page=1", key=None, headers=headers)
    assert (error_of(answer)[0] if answer.is_error else None) == code
    if code:
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_revoked_key_ends_within_two_seconds(serve: Callable[..., Served]) -> None:
    """So long is it remembered; then it is E055."""
    api = serve()
    path = "/slots?limit=1&page=1"
    assert api.call("GET", path, key=api.public).is_success
    revoked_at = time.monotonic()
    assert api.ask(api.engine.revoke_api_key(api.public.id))
    while (answer := api.call("GET", path, key=api.public)).is_success:
        assert time.monotonic() - revoked_at < Keyring.REMEMBERED + 1
        time.sleep(0.02)
    assert error_of(answer) == ("E055", 401)


async def test_keys_are_remembered_and_not_too_many(
    async_lock_engine: AsyncLockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked once for each, in two seconds; guesses don't fill the memory."""
    monkeypatch.setattr(Keyring, "MOST", 3)
    find, asked = async_lock_engine.find_api_key, list[str]()

    async def counted(key: str) -> Any:
        asked.append(key)
        return await find(key)

    monkeypatch.setattr(async_lock_engine, "find_api_key", counted)
    keyring = Keyring(async_lock_engine)
    key = await async_lock_engine.create_api_key("secret")
    for _ in range(5):
        assert (await keyring.identify(f"Bearer {key.key}")).id == key.id
    assert asked == [key.key]
    for guess in range(10):
        for _ in range(2):
            with pytest.raises(ApiKeyInvalid):
                await keyring.identify(f"Bearer sk_{guess:064x}")
    assert len(asked) == 11
    assert len(keyring._known) <= 3
    assert key.key.encode() not in keyring._known


# Limits


def test_an_allowance_is_each_holders_own() -> None:
    """So many at once; who asked too often is told when to come back."""
    limit = RateLimit(3, 3)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(TooManyRequests) as refused:
        limit.take("a")
    assert refused.value.retry_after_seconds == pytest.approx(1, abs=0.2)
    limit.take("b")


def test_an_allowance_fills_up_again() -> None:
    """Evenly, one after the other, and no sooner than was said."""
    limit = RateLimit(20, 1)
    taken, refused, come_back_at = 0, 0, 0.0
    deadline = time.monotonic() + 10
    while taken < 25:
        now = time.monotonic()
        assert now < deadline
        try:
            limit.take("a")
        except TooManyRequests as error:
            refused, come_back_at = refused + 1, now + error.retry_after_seconds
        else:
            assert now >= come_back_at - 0.02
            taken += 1
    assert refused


def test_a_limit_forgets_who_has_not_asked_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many addresses take no memory for ever."""
    monkeypatch.setattr(RateLimit, "MOST", 10)
    limit = RateLimit(1, 3600)
    limit.take("first")
    with pytest.raises(TooManyRequests):
        limit.take("first")
    for holder in range(30):
        limit.take(str(holder))
    limit.take("first")


def test_e062_too_many_requests(serve: Callable[..., Served]) -> None:
    """Of a public key; a secret one is a server of the house's own."""
    api = serve(rate_limit=(5, 3600))
    path = "/slots?limit=1&page=1"
    assert all(api.call("GET", path, key="public").is_success for _ in range(5))
    refused = api.call("GET", path, key="public")
    assert error_of(refused) == ("E062", 429)
    assert refused.json()["error"]["reason"] == "rate"
    assert 0 < int(refused.headers["retry-after"]) <= 720
    assert all(api.call("GET", path).is_success for _ in range(10))
    assert api.call("GET", "/healthz", key=None).is_success


def test_e062_too_many_locks(serve: Callable[..., Served]) -> None:
    """One visitor can't lock the house; the locks it has can be locked again, and each unlock makes room."""
    api = serve(max_locks=2)
    slots = [api.slot()["id"] for _ in range(3)]
    assert all(api.lock(slot).is_success for slot in slots[:2])
    refused = api.lock(slots[2])
    assert error_of(refused) == ("E062", 429)
    assert refused.json()["error"]["reason"]
    assert int(refused.headers["retry-after"]) >= 1
    assert api.lock(slots[0]).is_success
    assert api.lock(slots[2], key="secret").is_success
    api.call("POST", f"/slots/{slots[0]}/unlock", {"lock_key": "k"}, key="public")
    third = api.slot()["id"]
    assert api.lock(third).is_success


# Addresses


def spends(api: Served, **headers: str) -> bool:
    """Whether a request with these headers is within its limit."""
    answer = api.call("GET", "/slots?limit=1&page=1", key="public", headers=headers)
    return answer.is_success


def test_strangers_cant_say_where_they_come_from(serve: Callable[..., Served]) -> None:
    """Without a proxy that is trusted, the header is nobody's word."""
    api = serve(rate_limit=(1, 3600))
    assert spends(api)
    assert not spends(api, **{"X-Forwarded-For": "192.0.2.1"})


def test_a_trusted_proxy_says_where_they_come_from(serve: Callable[..., Served]) -> None:
    """What it adds at the right is believed; what the client wrote before it is not."""
    api = serve(rate_limit=(1, 3600), trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"])
    assert spends(api, **{"X-Forwarded-For": "192.0.2.1"})
    assert not spends(api, **{"X-Forwarded-For": "198.51.100.9, 192.0.2.1"})
    assert not spends(api, **{"X-Forwarded-For": "198.51.100.9, 192.0.2.1, 10.1.2.3"})
    assert spends(api, **{"X-Forwarded-For": "192.0.2.2"})
    assert spends(api, **{"X-Forwarded-For": "2001:db8:1:2::1"})
    assert not spends(api, **{"X-Forwarded-For": "2001:db8:1:2:ffff::2"})
    assert spends(api, **{"X-Forwarded-For": "2001:db8:1:3::1"})
    assert spends(api, **{"X-Forwarded-For": "::ffff:192.0.2.3"})
    assert not spends(api, **{"X-Forwarded-For": "192.0.2.3"})
    assert spends(api, **{"X-Forwarded-For": "nonsense"})


# Settings


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"rate_limit": (0, 10)}, "rate_limit"),
        ({"rate_limit": (10, 0)}, "rate_limit"),
        ({"rate_limit": (10, 0.5)}, "rate_limit"),
        ({"max_locks": 0}, "max_locks"),
        ({"trusted_proxies": ["here"]}, "trusted_proxies"),
    ],
)
async def test_wrong_settings(async_lock_engine: AsyncLockEngine, settings: dict[str, Any], argument: str) -> None:
    """Are named."""
    with pytest.raises(InvalidArgument) as wrong:
        create_app(async_lock_engine, **settings)
    assert wrong.value.argument == argument


async def test_an_engine_for_unregistered_slots_is_refused() -> None:
    """There would be no slot to answer with."""
    async with AsyncLockEngine.from_url("redis://localhost:1", unregistered="allow") as engine:
        with pytest.raises(InvalidArgument):
            create_app(engine)


def test_a_lock_of_one_key_is_no_other_keys(serve: Callable[..., Served]) -> None:
    """Two shops on one server have a limit each."""
    api = serve(max_locks=1)
    other = api.ask(api.engine.create_api_key("public"))
    assert api.lock(api.slot()["id"]).is_success
    assert error_of(api.lock(api.slot()["id"])) == ("E062", 429)
    body = {"lock_until": soon(), "lock_key": "k"}
    assert data_of(api.call("POST", f"/slots/{api.slot()['id']}/lock", body, key=other))
