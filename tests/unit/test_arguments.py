"""Bad input ends before anything is sent, with an error that names the argument and what is allowed."""

from __future__ import annotations

import math
import multiprocessing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import AsyncLockEngine, InvalidArgument, LockEngine, NewSlot, Quota
from overbooked_lock.arguments import new_lock_key

HOUR = timedelta(hours=1)
START = datetime(2030, 1, 1, tzinfo=UTC)
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - a date without a time zone is what is refused


@pytest.fixture
def engine() -> LockEngine:
    """An engine whose server does not exist: whatever is sent fails otherwise than by InvalidArgument."""
    return LockEngine(redis.Redis(unix_socket_path="/nonexistent"))


@pytest.mark.parametrize("slot_id", ["", "x" * 256, "a\nb", "a\x00", "\x7f", "\x85", "\ud800", 7, None, b"s"])
def test_slot_id(engine: LockEngine, slot_id: Any) -> None:
    """A slot id has 1 to 255 characters and no control characters."""
    with pytest.raises(InvalidArgument, match="slot_id must be a string of 1 to 255 characters without control") as e:
        engine.lock(slot_id, lock_for=HOUR)
    assert (e.value.argument, e.value.code, e.value.status) == ("slot_id", "E013", 400)


@pytest.mark.parametrize("lock_key", ["", "x" * 256, "\ud800", 7, b"k", True])
def test_lock_key(engine: LockEngine, lock_key: Any) -> None:
    """A lock_key has 1 to 255 characters, and the error does not show it."""
    with pytest.raises(InvalidArgument, match=r"lock_key must be a string of 1 to 255 characters$"):
        engine.lock("s", lock_key=lock_key, lock_for=HOUR)


@pytest.mark.parametrize(
    "lock_for", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=500), 30, math.nan, "30s", True]
)
def test_lock_for(engine: LockEngine, lock_for: Any) -> None:
    """A lock lasts at least 1 ms: neither zero nor half a millisecond means "no expiry"."""
    with pytest.raises(InvalidArgument, match="lock_for must be a timedelta of at least 1 ms"):
        engine.lock("s", lock_for=lock_for)


def test_lock_for_beyond_max_lock(engine: LockEngine) -> None:
    """The error names the longest lock."""
    with pytest.raises(InvalidArgument, match="lock_for must be at most 24 h, the longest lock"):
        engine.lock("s", lock_for=timedelta(hours=24, milliseconds=1))


@pytest.mark.parametrize("lock_until", [NAIVE, "2030-01-01T00:00:00Z", 1893456000, datetime.min.replace(tzinfo=UTC)])
def test_lock_until(engine: LockEngine, lock_until: Any) -> None:
    """A date needs a time zone; one in the past is for Redis' clock to judge, and is sent."""
    if lock_until == datetime.min.replace(tzinfo=UTC):
        lock_until = datetime.min.replace(tzinfo=datetime.fromisoformat("2030-01-01T00:00+02:00").tzinfo)
    with pytest.raises(InvalidArgument, match="lock_until must be a datetime with a time zone"):
        engine.lock("s", lock_until=lock_until)


@pytest.mark.parametrize("ends", [{}, {"lock_for": HOUR, "lock_until": START}])
def test_exactly_one_end(engine: LockEngine, ends: dict[str, Any]) -> None:
    """A lock has one end: a date or a duration."""
    with pytest.raises(InvalidArgument, match="lock_until or lock_for must be given, and not both"):
        engine.lock("s", **ends)


@pytest.mark.parametrize("wait", [timedelta(seconds=-1), 5, math.inf])
def test_wait(engine: LockEngine, wait: Any) -> None:
    """Waiting takes a duration that is not negative."""
    with pytest.raises(InvalidArgument, match="wait must be a timedelta that is not negative"):
        engine.lock("s", lock_for=HOUR, wait=wait)


@pytest.mark.parametrize(
    ("holder", "most", "message"),
    [
        ("", 1, "holder must be a string of 1 to 255 characters"),
        ("x" * 256, 1, "holder must be a string"),
        ("\ud800", 1, "holder must be a string"),
        (b"h", 1, "holder must be a string"),
        ("h", 0, "most must be an int from 1 to 1,000"),
        ("h", 1001, "most must be an int"),
        ("h", True, "most must be an int"),
        ("h", 2.0, "most must be an int"),
    ],
)
def test_quota_fields(holder: Any, most: Any, message: str) -> None:
    """A quota that makes no sense is not made."""
    with pytest.raises(InvalidArgument, match=message):
        Quota(holder, most)


@pytest.mark.parametrize("quota", [10, ("h", 10), "h"])
def test_quota(engine: LockEngine, quota: Any) -> None:
    """A quota is a value that has been checked, for one slot and for many."""
    with pytest.raises(InvalidArgument, match="quota must be a Quota, or None"):
        engine.lock("s", lock_for=HOUR, quota=quota)
    with pytest.raises(InvalidArgument, match="quota must be a Quota, or None"):
        engine.lock_many(["s"], lock_for=HOUR, quota=quota)


@pytest.mark.parametrize("kind", ["", "Public", "pk", None, True])
def test_kind_of_an_api_key(engine: LockEngine, kind: Any) -> None:
    """There are two kinds."""
    with pytest.raises(InvalidArgument, match="kind must be 'public' or 'secret'"):
        engine.create_api_key(kind)


@pytest.mark.parametrize("name", ["x" * 101, "a\nb", "\x7f", "\x85", "\ud800", None, 7, b"n"])
def test_name(engine: LockEngine, name: Any) -> None:
    """A name is a line of text."""
    with pytest.raises(InvalidArgument, match="name must be a string of at most 100 characters without control"):
        engine.create_api_key("public", name=name)


@pytest.mark.parametrize("key_id", ["", "0" * 15, "0" * 64, "G" * 16, "0" * 16 + "\n", None, 7])
def test_key_id(engine: LockEngine, key_id: Any) -> None:
    """Neither part of an id nor more than an id revokes a key."""
    with pytest.raises(InvalidArgument, match="key_id must be the id of an API key, 16 lower-case hex digits"):
        engine.revoke_api_key(key_id)


@pytest.mark.parametrize("name", ["", "x" * 256, "\ud800", None, b"n"])
def test_name_of_an_answer(engine: LockEngine, name: Any) -> None:
    """Any text, and not without end."""
    with pytest.raises(InvalidArgument, match="name must be a string of 1 to 255 characters"):
        engine.keep_answer(name, "{}", keep_for=HOUR)
    with pytest.raises(InvalidArgument, match="name must be a string of 1 to 255 characters"):
        engine.get_answer(name)


@pytest.mark.parametrize("answer", ["x" * (128 * 1024 + 1), "é" * (64 * 1024 + 1), "\ud800", None, b"{}"])
def test_answer(engine: LockEngine, answer: Any) -> None:
    """Bytes count, not characters."""
    with pytest.raises(InvalidArgument, match="answer must be a string of at most 128 KiB in UTF-8"):
        engine.keep_answer("n", answer, keep_for=HOUR)


@pytest.mark.parametrize("keep_for", [timedelta(0), timedelta(seconds=-1), 60, None])
def test_keep_for(engine: LockEngine, keep_for: Any) -> None:
    """Nothing is kept for ever."""
    with pytest.raises(InvalidArgument, match="keep_for must be a timedelta of at least 1 ms"):
        engine.keep_answer("n", "{}", keep_for=keep_for)


@pytest.mark.parametrize("token", [0, -1, 2**53, 1.5, "7", True])
def test_fencing_token(engine: LockEngine, token: Any) -> None:
    """A fencing token is a positive int that a double still holds."""
    with pytest.raises(InvalidArgument, match="fencing_token must be a positive int below 2"):
        engine.unlock("s", lock_key="k", fencing_token=token)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("abc", "slot_ids must be a list of slot ids"),
        (7, "slot_ids must be a list of slot ids"),
        ([], "slot_ids must name 1 to 512 slots"),
        ([str(i) for i in range(513)], "slot_ids must name 1 to 512 slots"),
        (["a", "b", "a"], "slot_ids must name each slot once"),
        (["a", "\n"], r"slot_ids\[1\] must be a string"),
    ],
)
def test_slot_ids(engine: LockEngine, ids: Any, message: str) -> None:
    """Many slots are 1 to 512, each once; a string is not taken for a list of its letters."""
    with pytest.raises(InvalidArgument, match=message):
        engine.lock_many(ids, lock_for=HOUR)


def test_locks_are_a_list(engine: LockEngine) -> None:
    """As above, where locks may be named by slot ids."""
    for locks in ("abc", 7):
        with pytest.raises(InvalidArgument, match="locks must be a list"):
            engine.unlock_many(locks, lock_key="k")  # type: ignore[arg-type]  # on purpose
        with pytest.raises(InvalidArgument, match="locks must be a list"):
            engine.extend_many(locks, lock_key="k", lock_for=HOUR)  # type: ignore[arg-type]  # on purpose


def test_made_lock_keys_are_random_also_after_a_fork() -> None:
    """128 bits each, drawn ahead: what a parent has drawn its child must not give out."""
    mine = [new_lock_key() for _ in range(200)]
    assert len(set(mine)) == 200
    assert all(len(bytes.fromhex(key)) == 16 for key in mine)
    context = multiprocessing.get_context("fork")
    theirs = context.SimpleQueue()
    child = context.Process(target=lambda: theirs.put([new_lock_key() for _ in range(200)]))
    child.start()
    childs = theirs.get()
    child.join()
    assert not {*mine, *(new_lock_key() for _ in range(200))} & {*childs}


def test_a_slot_id_needs_its_lock_key(engine: LockEngine) -> None:
    """Unlock by id takes the key; a Lock carries its own, and takes no second one."""
    with pytest.raises(InvalidArgument, match="lock_key must be given with a slot_id"):
        engine.unlock("s")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": timedelta(0)}, "timeout must be a timedelta of at least 1 ms"),
        ({"timeout": 5}, "timeout must be a timedelta"),
        ({"max_lock": timedelta(0)}, "max_lock must be a timedelta from 1 ms to 10 years"),
        ({"max_lock": timedelta(days=4000)}, "max_lock must be a timedelta from 1 ms to 10 years"),
        ({"unregistered": "yes"}, "unregistered must be 'refuse' or 'allow'"),
    ],
)
def test_engine_options(options: dict[str, Any], message: str) -> None:
    """An engine with options that make no sense is not made."""
    with pytest.raises(InvalidArgument, match=message):
        LockEngine(redis.Redis(), **options)


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "", "memcached://x"])
def test_url(url: str) -> None:
    """A URL has one of three schemes."""
    with pytest.raises(InvalidArgument, match="url must start with redis://, rediss:// or unix://"):
        LockEngine.from_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "url must start with redis://"),
        ("redis://localhost:x", "url must have a number as its port"),
        ("rediss://localhost:99999", "url must have a number as its port"),
        ("redis://localhost/shop", "url must have a number as its database"),
        ("redis://localhost/1/2", "url must have a number as its database"),
        ("redis://localhost/?colour=red", "url has a parameter that redis-py does not know"),
        ("rediss://localhost?ssl_cert_reqs=x", "url has a parameter that redis-py does not know, or can't read"),
        ("unix:///tmp/s?socket_timeout=x", "url has a parameter that redis-py does not know, or can't read"),
    ],
)
@pytest.mark.parametrize("engine", [LockEngine, AsyncLockEngine])
def test_what_a_url_says(engine: type[LockEngine | AsyncLockEngine], url: Any, message: str) -> None:
    """What could never connect is told at once; redis-py would take another database, or fail at the first call."""
    with pytest.raises(InvalidArgument, match=message):
        engine.from_url(url)


@pytest.mark.parametrize("client", [None, "redis://localhost", redis.asyncio.Redis()])
def test_client(client: Any) -> None:
    """A sync engine takes a sync client; an async or a cluster client has a message of its own."""
    with pytest.raises(InvalidArgument, match="client must be a redis"):
        LockEngine(client)


@pytest.mark.parametrize(
    ("fields", "argument", "code", "status"),
    [
        ({"id": "a\n"}, "id", "E013", 400),
        ({"resource_id": ""}, "resource_id", "E013", 400),
        ({"start_date": NAIVE}, "start_date", "E013", 400),
        ({"end_date": START}, "start_date", "E023", 422),
        ({"capacity": 0}, "capacity", "E047", 400),
        ({"capacity": 1.0}, "capacity", "E047", 400),
        ({"capacity": True}, "capacity", "E047", 400),
        ({"capacity": 10**10}, "capacity", "E047", 400),
        ({"lockable": "yes"}, "lockable", "E013", 400),
        ({"status": "closed"}, "status", "E013", 400),
        ({"metadata": ["a"]}, "metadata", "E013", 400),
        ({"metadata": {1: "a"}}, "metadata", "E013", 400),
        ({"metadata": {"k" * 101: 1}}, "metadata", "E042", 422),
        ({"metadata": {"k": "v" * 4999}}, "metadata", "E042", 422),
        ({"metadata": {"k": math.nan}}, "metadata", "E013", 400),
        ({"metadata": {"k": -math.inf}}, "metadata", "E013", 400),
        ({"metadata": {"k": {1, 2}}}, "metadata", "E013", 400),
        ({"metadata": {"k": "\ud800"}}, "metadata", "E013", 400),
        ({"metadata": {"\ud800": "v"}}, "metadata", "E013", 400),
    ],
)
def test_new_slot(fields: dict[str, Any], argument: str, code: str, status: int) -> None:
    """Each field of a slot is checked when it is made, with the API's code."""
    valid: dict[str, Any] = {"resource_id": "r", "start_date": START, "end_date": START + HOUR}
    with pytest.raises(InvalidArgument) as e:
        NewSlot(**(valid | fields))
    assert (e.value.argument, e.value.code, e.value.status) == (argument, code, status)


def test_metadata_is_nested_no_deeper_than_it_can_be_read() -> None:
    """What is accepted can be read back: depth that the parser refuses is refused before it is stored."""
    value: Any = 1
    for _ in range(250):
        value = [value]
    with pytest.raises(InvalidArgument, match="nested less than 200 deep"):
        NewSlot(resource_id="r", start_date=START, end_date=START + HOUR, metadata={"k": value})


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"limit": 0}, "limit must be an int from 1 to 512"),
        ({"limit": 513}, "limit must be an int from 1 to 512"),
        ({"limit": True}, "limit must be an int"),
        ({"page": 0}, "page must be an int from 1"),
        ({"page": 1.5}, "page must be an int"),
    ],
)
def test_page(engine: LockEngine, page: dict[str, Any], message: str) -> None:
    """Pages count from 1 and have a bounded size."""
    with pytest.raises(InvalidArgument, match=message):
        engine.list_slots(**page)


def test_the_error_is_a_value_error(engine: LockEngine) -> None:
    """Who knows nothing of our tree catches a ValueError."""
    with pytest.raises(ValueError, match="slot_id"):
        engine.get_slot("")
