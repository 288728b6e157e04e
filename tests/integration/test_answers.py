"""keep_answer and get_answer: of several answers under one name the first is everybody's."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta

import pytest
import redis

from overbooked_lock import AsyncLockEngine, LockEngine, StoreUnavailable
from overbooked_lock.keys import Keys

MINUTE = timedelta(minutes=1)


def test_the_first_answer_is_kept(engine: LockEngine) -> None:
    """Who comes later gets it, and changes nothing."""
    assert engine.get_answer("order 7") is None
    assert engine.keep_answer("order 7", "first", keep_for=MINUTE) == "first"
    assert engine.keep_answer("order 7", "second", keep_for=MINUTE) == "first"
    assert engine.get_answer("order 7") == "first"
    assert engine.get_answer("order 8") is None


def test_an_answer_is_kept_for_its_time(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """The first one's time counts, and after it there may be another first."""
    name = Keys(lock_namespace).answer("order 7")
    engine.keep_answer("order 7", "first", keep_for=timedelta(milliseconds=30))
    engine.keep_answer("order 7", "second", keep_for=MINUTE)
    assert raw.pttl(name) <= 30
    deadline = time.monotonic() + 10
    while raw.exists(name):
        assert time.monotonic() < deadline
    assert engine.get_answer("order 7") is None
    assert engine.keep_answer("order 7", "third", keep_for=MINUTE) == "third"
    assert 50_000 < raw.pttl(name) <= 60_000


@pytest.mark.parametrize("name", ["a:lock", "x" * 255, "ключ\n\x00:", "🎾" * 255])
@pytest.mark.parametrize("answer", ["", '{"ünï": "çødé 🎾\x00"}', "x" * 128 * 1024])
def test_names_and_answers_are_any_text(engine: LockEngine, name: str, answer: str) -> None:
    """They come back as they were given, to the first and to the next."""
    assert engine.keep_answer(name, answer, keep_for=MINUTE) == answer
    assert engine.keep_answer(name, "another", keep_for=MINUTE) == answer
    assert engine.get_answer(name) == answer


def test_a_key_of_another_kind_is_no_answer(engine: LockEngine, raw: redis.Redis, lock_namespace: str) -> None:
    """It is not ours to change, and nobody is told that an answer was kept."""
    name = Keys(lock_namespace).answer("order 7")
    raw.hset(name, "not", "ours")
    assert engine.get_answer("order 7") is None
    with pytest.raises(StoreUnavailable, match="a key of ours holds something else") as refused:
        engine.keep_answer("order 7", "mine", keep_for=MINUTE)
    assert refused.value.outcome == "not_applied"
    assert raw.hgetall(name) == {"not": "ours"}


def test_one_answer_is_kept_among_threads(lock_engine: LockEngine) -> None:
    """Eight threads answer at once, and all are given the same answer."""
    start, given = threading.Barrier(8), []

    def answer(own: str) -> None:
        start.wait()
        given.append(lock_engine.keep_answer("order 7", own, keep_for=MINUTE))

    threads = [threading.Thread(target=answer, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(given) == 8
    assert set(given) == {lock_engine.get_answer("order 7")}


async def test_callers_of_one_moment_get_each_their_own(
    async_lock_engine: AsyncLockEngine, raw: redis.Redis, lock_namespace: str
) -> None:
    """Merged into few calls: one name has one answer, another name another, and what is spoilt fails alone."""
    raw.hset(Keys(lock_namespace).answer("spoilt"), "not", "ours")
    names = ["a", "b", "a", "spoilt", "b"]
    results = await asyncio.gather(
        *(async_lock_engine.keep_answer(name, f"{name} {n}", keep_for=MINUTE) for n, name in enumerate(names)),
        return_exceptions=True,
    )
    a, b, again_a, spoilt, again_b = results
    # Calls that go over two connections have no order, so whose answer is kept is open.
    assert a == again_a in ("a 0", "a 2")
    assert b == again_b in ("b 1", "b 4")
    assert isinstance(spoilt, StoreUnavailable)
    assert await asyncio.gather(*map(async_lock_engine.get_answer, ["a", "b", "c"])) == [a, b, None]


def test_bytes_that_are_no_text_are_answered_all_the_same(
    engine: LockEngine, raw: redis.Redis, lock_namespace: str
) -> None:
    """One bad answer must not take its neighbours in a call with it."""
    raw.set(Keys(lock_namespace).answer("order 7"), b"\xff!")
    assert engine.get_answer("order 7") == "\ufffd!"
    assert engine.keep_answer("order 7", "mine", keep_for=MINUTE) == "\ufffd!"
