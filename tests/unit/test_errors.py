"""The tree of errors: documented, coded as the API says, and fit to travel between processes."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

import overbooked_lock
from overbooked_lock import errors

UNTIL = datetime(2030, 1, 1, tzinfo=UTC)
ERRORS = [
    errors.InvalidArgument("lock_for", "must be positive"),
    errors.SlotNotFound("s1"),
    errors.SlotExists("s1"),
    errors.SlotNotLockable("s1", "not_lockable"),
    errors.SlotLocked("s1", UNTIL, timedelta(seconds=5)),
    errors.TooManyLocks("s1", 10, timedelta(seconds=5)),
    errors.LockKeyInvalid("s1", UNTIL),
    errors.LockLost("s1", UNTIL),
    errors.CapacityTooSmall("s1"),
    errors.SlotHasBookings("s1"),
    errors.SlotNotBookable("s1", "full"),
    errors.BookingNotFound("b1"),
    errors.BookingExists("b1"),
    errors.EventsMissed("1-0"),
    errors.StoreCorrupt("s1"),
    errors.StoreUnavailable("unknown", "it did not answer"),
    errors.EmbeddedServerError("no server"),
]


def _leaves(kind: type[errors.OverbookedError]) -> Iterator[type[errors.OverbookedError]]:
    for child in kind.__subclasses__():
        yield from _leaves(child) if child.__subclasses__() else [child]


def test_the_docstring_draws_the_whole_tree() -> None:
    """The tree in the module's docstring names every error that can be raised, and no other."""
    drawn = re.findall(r"[├└]── (\w+)", inspect.getdoc(errors) or "")
    leaves = {kind.__name__ for kind in _leaves(errors.OverbookedError) if kind.__module__ == errors.__name__}
    assert sorted(drawn) == sorted(leaves)
    assert sorted(drawn) == sorted(type(error).__name__ for error in ERRORS)


def test_every_error_is_public() -> None:
    """Who wants to catch it imports it from the package."""
    for error in ERRORS:
        assert getattr(overbooked_lock, type(error).__name__) is type(error)


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        (errors.InvalidArgument, "E013", 400),
        (errors.SlotNotFound, "E025", 404),
        (errors.SlotNotLockable, "E044", 422),
        (errors.SlotLocked, "E045", 422),
        (errors.CapacityTooSmall, "E046", 422),
        (errors.LockKeyInvalid, "E059", 403),
        (errors.TooManyLocks, "E062", 429),
        (errors.SlotHasBookings, "E060", 422),
        (errors.StoreUnavailable, "E070", 503),
        (errors.StoreCorrupt, "E001", 500),
    ],
)
def test_codes_are_those_of_the_api(kind: type[errors.OverbookedError], code: str, status: int) -> None:
    """Each error knows its documented code and HTTP status."""
    [error] = [error for error in ERRORS if type(error) is kind]
    assert (error.code, error.status) == (code, status)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled(error: errors.OverbookedError) -> None:
    """A worker process fails with the same facts as the one that waits for it sees."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_messages_tell_the_facts() -> None:
    """What a person reads in a log is enough to act on."""
    texts = {type(error).__name__: str(error) for error in ERRORS}
    assert texts["SlotLocked"] == "slot 's1' is already locked until 2030-01-01T00:00:00.000+00:00"
    assert texts["SlotNotLockable"] == "slot 's1' can't be locked: not lockable"
    assert texts["TooManyLocks"] == (
        "slot 's1' can't be locked: its taker has 10 live locks, as many as the quota allows"
    )
    assert texts["StoreUnavailable"] == (
        "the lock store is unavailable (it did not answer): whether it was applied is unknown"
    )
