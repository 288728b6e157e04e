"""Before it sleeps, a lone caller's connection looks for its reply: seen by the processor time that this takes."""

from __future__ import annotations

import threading
import time

import pytest
import redis

from overbooked_lock import LockEngine, store

PAUSE_MS = 200
LONG = 10.0  # seconds


@pytest.mark.parametrize("looks", [True, False])
def test_a_lone_caller_looks_for_its_reply_before_it_sleeps(
    engine: LockEngine, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """To be woken may take longer than the server does. Where that is not so, it sleeps at once."""
    monkeypatch.setattr(store.Spin, "SECONDS", LONG)
    monkeypatch.setattr(store.Spin, "is_due", lambda _: looks)
    engine.check("x", lock_key="x")
    raw.client_pause(PAUSE_MS)
    start, cpu = time.perf_counter(), time.process_time()
    engine.check("x", lock_key="x")
    busy = (time.process_time() - cpu) / (time.perf_counter() - start)
    assert (busy > 0.05) is looks  # who sleeps takes a hundredth; who looks, whatever a crowded machine leaves it


def test_threads_leave_the_interpreter_to_each_other(
    lock_engine: LockEngine, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not alone sleeps at once: the other threads have work to do."""

    def ask() -> float:
        start, cpu = time.perf_counter(), time.thread_time()
        lock_engine.check("x", lock_key="x")
        return (time.thread_time() - cpu) / (time.perf_counter() - start)

    def second_of_two() -> float:
        raw.client_pause(PAUSE_MS)
        first = threading.Thread(target=ask)
        first.start()
        while len(lock_engine._idle) == len(lock_engine._wires):
            time.sleep(0.001)  # there is no event for what a thread does inside
        busy = ask()
        first.join()
        return busy

    ask()
    second_of_two()  # each has a connection from now on
    assert len(lock_engine._wires) == 2
    monkeypatch.setattr(store.Spin, "SECONDS", LONG)
    monkeypatch.setattr(store.Spin, "is_due", lambda _: True)
    assert second_of_two() < 0.15
