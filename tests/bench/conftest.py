"""Runs of the harness: short, with real processes, on the server of the session."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from overbooked_lock import EmbeddedServer
from overbooked_lock.bench import Options, Run, Watcher, run

NAMESPACE = "bench-of-tests"


@pytest.fixture
def play(lock_server: EmbeddedServer) -> Callable[..., Run]:
    """Runs a scenario for half a second in one process, unless told."""

    def play(scenario: str, watcher: Watcher | None = None, **options: Any) -> Run:
        short: dict[str, Any] = {
            "url": lock_server.url,
            "namespace": NAMESPACE,
            "duration": timedelta(seconds=0.5),
            "warm_up": timedelta(0),
            "processes": 1,
        }
        return run(Options(scenario=scenario, **(short | options)), watcher)

    return play
