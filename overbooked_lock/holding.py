"""A hold: a lock kept alive for the body of a ``with``.

Rules. The lock is never renewed past ``max_lifetime``. The body is told when the lock is lost: ``lost`` is set at
the latest when the lock's life, counted on this machine from before the last renewal was sent, is over; so it is
told even if Redis is silent, or if the renewer itself fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from overbooked_lock import arguments
from overbooked_lock.bookings import Booking
from overbooked_lock.errors import InvalidArgument, LockKeyInvalid, LockLost, StoreUnavailable
from overbooked_lock.models import Lock
from overbooked_lock.store import CLOSED, log

if TYPE_CHECKING:
    from overbooked_lock.aio import AsyncLockEngine
    from overbooked_lock.engine import LockEngine

Event = TypeVar("Event", threading.Event, asyncio.Event)

_RENEWALS_PER_LOCK = 3


class _Holding(Generic[Event]):
    """What both kinds of hold are.

    Attributes:
        slot_id: The slot.
        lost: An event that is set when the lock is lost: wait for it, or look before each write.
    """

    lost: Event
    _new_event: ClassVar[Any]

    def __init__(
        self,
        engine: Any,
        slot_id: str,
        lock_for: timedelta,
        lock_key: str | None,
        wait: timedelta | None,
        renew: bool,
        max_lifetime: timedelta | None,
        fair: bool,
    ) -> None:
        arguments.positive_milliseconds(lock_for, "lock_for")
        if max_lifetime is not None and arguments.positive_milliseconds(max_lifetime, "max_lifetime") < (
            lock_for // timedelta(milliseconds=1)
        ):
            raise InvalidArgument("max_lifetime", "must be at least lock_for")
        self.slot_id = slot_id
        self.lost = self._new_event()
        self._engine = engine
        self._lock_for = lock_for
        self._asked: dict[str, Any] = {"lock_key": lock_key, "lock_for": lock_for, "wait": wait, "fair": fair}
        self._renew = arguments.flag(renew, "renew")
        self._max_lifetime = max_lifetime
        self._interval = lock_for.total_seconds() / _RENEWALS_PER_LOCK
        self._lock: Lock | None = None
        self._limit: datetime | None = None
        self._cause: BaseException | None = None
        self._booked = False
        self._missed = False

    @property
    def lock(self) -> Lock:
        """The lock as it was renewed last. Raises RuntimeError outside the body."""
        if self._lock is None:
            raise RuntimeError("a hold has a lock from the start of its body on")
        return self._lock

    @property
    def fencing_token(self) -> int:
        """The lock's fencing token: the same from the start of the body to its end."""
        return self.lock.fencing_token

    def remaining(self) -> timedelta:
        """How long the lock surely lives if it is not renewed again: the deadline of the next write."""
        return self.lock.remaining()

    def raise_if_lost(self) -> None:
        """Call before a write. Raises LockLost if the lock is lost."""
        if self.lost.is_set() or self.remaining() <= timedelta(0):
            raise LockLost(self.slot_id) from self._cause

    def _start(self, lock: Lock) -> None:
        self._lock = lock
        if self._max_lifetime is not None:
            # A lock that was held before has a later end than the one just asked for.
            began = min(lock.locked_until - self._lock_for, self._store_now())
            self._limit = began + self._max_lifetime

    def _store_now(self) -> datetime:
        """Redis' clock, as the last answer and our own monotonic clock tell it."""
        return self.lock.locked_until - self.lock.remaining()

    def _next_end(self) -> datetime | None:
        """What the next renewal asks for; None if there is none."""
        end = self._store_now() + self._lock_for
        if self._limit is not None:
            end = min(end, self._limit)
        return end if self._renew and end > self.lock.locked_until else None

    def _lose(self, cause: BaseException | None) -> None:
        self._cause = cause
        self._missed = True
        if not self._booked:
            self.lost.set()

    @contextlib.contextmanager
    def _booking(self) -> Iterator[None]:
        """A booking consumes the lock: that the renewer misses it then is no loss."""
        self.raise_if_lost()
        before, self._booked = self._booked, True
        try:
            yield
        except BaseException:
            self._booked = before
            if self._missed and not before:
                self.lost.set()
            raise

    def _end(self, *, released: bool, body_failed: bool) -> None:
        if not body_failed and (self.lost.is_set() or not released):
            raise LockLost(self.slot_id) from self._cause

    def _not_unlocked(self, error: StoreUnavailable) -> None:
        # The work is done and must not look failed; the lock ends by itself.
        log.warning("slot %r stays locked until %s: %s", self.slot_id, self.lock.locked_until.isoformat(), error)


class Hold(_Holding[threading.Event]):
    """A hold for a ``with``, renewed by a thread of its own. See :meth:`LockEngine.hold`.

    Leaving the body unlocks the slot. If the lock was lost and the body raised nothing, leaving raises
    :class:`~overbooked_lock.errors.LockLost`: what the body did may have met another holder's work.
    """

    _engine: LockEngine
    _new_event = threading.Event

    def __enter__(self) -> Self:
        self._start(self._engine.lock(self.slot_id, **self._asked))
        self._over = threading.Event()
        self._renewer = threading.Thread(target=self._keep, name=f"overbooked-lock hold {self.slot_id}", daemon=True)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._renewer.join()
        if self._booked:
            return
        released = False
        try:
            released = self._engine.unlock(self.lock).released
        except LockKeyInvalid:
            pass
        except StoreUnavailable as unavailable:
            released = True
            self._not_unlocked(unavailable)
        self._end(released=released, body_failed=error is not None)

    def book(self, *, metadata: Mapping[str, Any] | None = None, booking_id: str | None = None) -> Booking:
        """Books the slot with this hold's lock. That ends the hold: leaving the body has nothing left to unlock.

        Raises LockLost if the lock is lost, and what :meth:`LockEngine.book` raises; the hold goes on then.
        """
        with self._booking():
            return self._engine.book(self.lock, metadata=metadata, booking_id=booking_id)

    def _keep(self) -> None:
        try:
            while not self._over.wait(min(self._interval, max(0.0, self.remaining().total_seconds()))):
                if self.remaining() <= timedelta(0):
                    return self._lose(self._cause)
                end = self._next_end()
                if end is None:
                    continue
                try:
                    self._lock = self._engine._extend_within(self.lock, end, self.remaining())  # noqa: SLF001 - family
                except StoreUnavailable as error:
                    self._cause = error
        except BaseException as error:  # noqa: BLE001 - whatever ends the renewer, the body must learn of it
            self._lose(error)


class AsyncHold(_Holding[asyncio.Event]):
    """A hold for an ``async with``, renewed by a task of its own. See :class:`Hold`."""

    _engine: AsyncLockEngine
    _new_event = asyncio.Event

    async def __aenter__(self) -> Self:
        self._start(await self._engine.lock(self.slot_id, **self._asked))
        self._renewer: asyncio.Task[None] = asyncio.create_task(
            self._keep(), name=f"overbooked-lock hold {self.slot_id}"
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._booked:
            self._renewer.cancel()
            await asyncio.wait([self._renewer])
            return
        # In a task of its own: a body that is cancelled twice must not leave the slot locked.
        unlocking = self._engine._spawn(self._unlock())  # noqa: SLF001 - family
        released = await asyncio.shield(unlocking)
        self._end(released=released, body_failed=error is not None)

    async def _unlock(self) -> bool:
        self._renewer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._renewer
        try:
            return (await self._engine.unlock(self.lock)).released
        except LockKeyInvalid:
            return False
        except StoreUnavailable as unavailable:
            self._not_unlocked(unavailable)
        except asyncio.CancelledError:  # by the engine, which is being closed: nobody else has this task
            self._not_unlocked(StoreUnavailable("unknown", CLOSED))
        return True

    async def book(self, *, metadata: Mapping[str, Any] | None = None, booking_id: str | None = None) -> Booking:
        """Books the slot with this hold's lock. See :meth:`Hold.book`."""
        with self._booking():
            return await self._engine.book(self.lock, metadata=metadata, booking_id=booking_id)

    async def _keep(self) -> None:
        try:
            while True:
                await asyncio.sleep(min(self._interval, max(0.0, self.remaining().total_seconds())))
                if self.remaining() <= timedelta(0):
                    return self._lose(self._cause)
                end = self._next_end()
                if end is None:
                    continue
                try:
                    async with asyncio.timeout(self.remaining().total_seconds()):
                        self._lock = await self._engine.extend(self.lock, lock_until=end)
                except (StoreUnavailable, TimeoutError) as error:
                    self._cause = error
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever ends the renewer, the body must learn of it
            self._lose(error)
