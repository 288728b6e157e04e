"""Fixtures of the suite: those that we ship, and what only we need."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis

from overbooked_lock import EmbeddedServer, LockEngine, NewSlot, Slot

pytest_plugins = ["overbooked_lock.testing"]

SOAK = os.environ.get("OVERBOOKED_SOAK") == "1"


@pytest.fixture
def soak() -> bool:
    """Whether this is the long version of the suite."""
    return SOAK


@pytest.fixture
def raw(lock_server: EmbeddedServer) -> redis.Redis:
    """A bare client on the server, to look at what an engine did, or to spoil it."""
    return redis.Redis.from_url(lock_server.url, decode_responses=True)


@pytest.fixture
def new_slot() -> Callable[..., NewSlot]:
    """Makes a slot to be registered, with what a test does not care for filled in."""

    def make(**fields: Any) -> NewSlot:
        defaults: dict[str, Any] = {
            "resource_id": "court-1",
            "start_date": datetime(2030, 6, 1, 18, tzinfo=UTC),
            "end_date": datetime(2030, 6, 1, 19, tzinfo=UTC),
        }
        return NewSlot(**(defaults | fields))

    return make


@pytest.fixture
def slot(lock_engine: LockEngine, new_slot: Callable[..., NewSlot]) -> Slot:
    """A registered slot with one place."""
    return lock_engine.create_slot(new_slot())
