"""hold: a lock kept alive for the body of a ``with``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest

from overbooked_lock import AsyncLockEngine, InvalidArgument, LockEngine, LockLost, Slot, SlotLocked, SlotNotBookable

MINUTE = timedelta(minutes=1)
SHORT = timedelta(milliseconds=240)


def test_the_body_holds_the_slot(lock_engine: LockEngine, slot: Slot) -> None:
    """Locked at the start, unlocked at the end."""
    with lock_engine.hold(slot.id, lock_for=MINUTE) as hold:
        assert lock_engine.check(hold.lock) == hold.lock
        assert hold.fencing_token == hold.lock.fencing_token
        assert timedelta(seconds=50) < hold.remaining() <= MINUTE
        hold.raise_if_lost()
    assert lock_engine.check(hold.lock) is None


async def test_the_async_body_holds_the_slot(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """Locked at the start, unlocked at the end."""
    async with async_lock_engine.hold(slot.id, lock_for=MINUTE) as hold:
        assert await async_lock_engine.check(hold.lock) == hold.lock
        hold.raise_if_lost()
    assert await async_lock_engine.check(hold.lock) is None


def test_it_is_renewed(lock_engine: LockEngine, slot: Slot) -> None:
    """A body longer than the lock keeps it, with one fencing token."""
    with lock_engine.hold(slot.id, lock_for=SHORT) as hold:
        first = hold.lock
        assert not hold.lost.wait(3 * SHORT.total_seconds())
        assert hold.lock.locked_until > first.locked_until
        assert hold.fencing_token == first.fencing_token
        hold.raise_if_lost()


async def test_the_async_hold_is_renewed(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """A body longer than the lock keeps it, with one fencing token."""
    async with async_lock_engine.hold(slot.id, lock_for=SHORT) as hold:
        first = hold.lock
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hold.lost.wait(), 3 * SHORT.total_seconds())
        assert hold.lock.locked_until > first.locked_until
        hold.raise_if_lost()


def test_without_renewal_it_ends_by_its_date(lock_engine: LockEngine, slot: Slot) -> None:
    """The body learns of it, and so does who left the body without looking."""
    with pytest.raises(LockLost), lock_engine.hold(slot.id, lock_for=SHORT, renew=False) as hold:
        assert hold.lost.wait(10)
        with pytest.raises(LockLost):
            hold.raise_if_lost()
        assert hold.remaining() <= timedelta(0)


async def test_an_async_hold_ends_by_its_date(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """The body learns of it, and so does who left the body without looking."""
    with pytest.raises(LockLost):
        async with async_lock_engine.hold(slot.id, lock_for=SHORT, renew=False) as hold:
            await asyncio.wait_for(hold.lost.wait(), 10)


def test_it_is_never_renewed_past_its_lifetime(lock_engine: LockEngine, slot: Slot) -> None:
    """By Redis' clock, counted from the start of the hold."""
    lifetime = 2 * SHORT
    with pytest.raises(LockLost), lock_engine.hold(slot.id, lock_for=SHORT, max_lifetime=lifetime) as hold:
        started = hold.lock.locked_until - SHORT
        assert hold.lost.wait(10)
        assert hold.lock.locked_until > started + SHORT
        assert hold.lock.locked_until <= started + lifetime + timedelta(milliseconds=1)


def test_who_cannot_lock_does_not_enter(lock_engine: LockEngine, slot: Slot) -> None:
    """The error is that of lock; with ``wait`` the slot is waited for."""
    entered = False
    lock = lock_engine.lock(slot.id, lock_for=2 * SHORT)
    with pytest.raises(SlotLocked), lock_engine.hold(slot.id, lock_for=MINUTE):
        entered = True
    assert not entered
    with lock_engine.hold(slot.id, lock_for=MINUTE, wait=MINUTE) as hold:
        assert hold.fencing_token > lock.fencing_token


def test_the_bodys_own_error_comes_first(lock_engine: LockEngine, slot: Slot) -> None:
    """The slot is unlocked, and nothing hides why the body ended."""
    with pytest.raises(ZeroDivisionError), lock_engine.hold(slot.id, lock_for=MINUTE) as hold:
        lock_engine.force_unlock(slot.id)
        _ = 1 / 0
    assert lock_engine.check(hold.lock) is None


def test_a_hold_with_the_callers_key(lock_engine: LockEngine, slot: Slot) -> None:
    """A re-lock: the earlier hold's token is kept, and the end of the body unlocks it."""
    before = lock_engine.lock(slot.id, lock_key="mine", lock_for=MINUTE)
    with lock_engine.hold(slot.id, lock_for=SHORT, lock_key="mine") as hold:
        assert hold.fencing_token == before.fencing_token
        assert hold.lock.already_held
    assert lock_engine.check(before) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lock_for": timedelta(0)}, "lock_for must be a timedelta of at least 1 ms"),
        ({"lock_for": MINUTE, "max_lifetime": SHORT}, "max_lifetime must be at least lock_for"),
        ({"lock_for": MINUTE, "renew": 1}, "renew must be True or False"),
    ],
)
def test_options_are_checked_before_the_slot_is_locked(
    lock_engine: LockEngine, slot: Slot, options: dict[str, timedelta], message: str
) -> None:
    """A hold that makes no sense is not made."""
    with pytest.raises(InvalidArgument, match=message):
        lock_engine.hold(slot.id, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_the_renewers_threads_end(lock_engine: LockEngine, slot: Slot) -> None:
    """A hold leaves no thread behind."""
    before = threading.active_count()
    for _ in range(5):
        with lock_engine.hold(slot.id, lock_for=MINUTE):
            assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_a_lock_can_leave_the_body(lock_engine: LockEngine, slot: Slot, new_thread: Callable[..., None]) -> None:
    """The value carries key and token: another thread can end the lock, and the holder learns of it."""
    with pytest.raises(LockLost), lock_engine.hold(slot.id, lock_for=SHORT) as hold:
        new_thread(lambda: lock_engine.unlock(hold.lock))
        assert hold.lost.wait(10)


@pytest.fixture
def new_thread() -> Callable[..., None]:
    """Runs something in a thread of its own, to its end."""

    def run(target: Callable[[], object]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    return run


def test_a_hold_ends_with_its_booking(lock_engine: LockEngine, slot: Slot) -> None:
    """The booking consumes the lock; nothing is lost, and nothing is left to unlock."""
    with lock_engine.hold(slot.id, lock_for=SHORT) as hold:
        booking = hold.book(metadata={"name": "Ada"})
        assert not hold.lost.wait(2 * SHORT.total_seconds())  # the renewer finds no lock any more
    assert lock_engine.get_booking(booking.id) == booking
    assert lock_engine.list_locks() == []


async def test_an_async_hold_ends_with_its_booking(async_lock_engine: AsyncLockEngine, slot: Slot) -> None:
    """The same with await."""
    async with async_lock_engine.hold(slot.id, lock_for=SHORT) as hold:
        booking = await hold.book()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hold.lost.wait(), 2 * SHORT.total_seconds())
    assert (await async_lock_engine.get_booking(booking.id)).status == "active"


def test_a_hold_whose_booking_is_refused_goes_on(lock_engine: LockEngine, slot: Slot) -> None:
    """The lock is still there and is unlocked at the end."""
    with lock_engine.hold(slot.id, lock_for=MINUTE) as hold:
        lock_engine.disable_slot(slot.id)
        with pytest.raises(SlotNotBookable):
            hold.book()
        assert lock_engine.check(hold.lock) == hold.lock
    assert lock_engine.check(hold.lock) is None


def test_a_second_booking_that_is_refused_undoes_no_first(lock_engine: LockEngine, slot: Slot) -> None:
    """The hold ended with the first: leaving it is no loss."""
    with lock_engine.hold(slot.id, lock_for=MINUTE) as hold:
        hold.book()
        with pytest.raises(SlotNotBookable):
            hold.book()
        assert not hold.lost.is_set()
    assert lock_engine.list_bookings().total == 1


def test_a_hold_that_lost_its_lock_books_nothing(lock_engine: LockEngine, slot: Slot) -> None:
    """Although the place may be free."""
    with pytest.raises(LockLost), lock_engine.hold(slot.id, lock_for=SHORT, renew=False) as hold:
        assert hold.lost.wait(10)
        hold.book()
    assert lock_engine.list_bookings().total == 0
