"""Locks: their verbs, what goes to their scripts, and what the replies mean."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache, partial
from typing import cast

from overbooked_lock import arguments, scripts
from overbooked_lock.arguments import from_milliseconds
from overbooked_lock.calls import Builder, Call, Reply, Settings, rows, rows_for, slots_of
from overbooked_lock.errors import (
    InvalidArgument,
    LockKeyInvalid,
    LockLost,
    OverbookedError,
    Reason,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    TooManyLocks,
)
from overbooked_lock.models import LiveLock, Lock, OpenLock, OpenUnlocked, Quota, Unlocked
from overbooked_lock.operations import CHUNK, one_of
from overbooked_lock.waiting import Waiting


class Locks(Waiting):
    """The verbs of locks."""

    async def lock(
        self,
        slot_id: str,
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        wait: timedelta | None = None,
        quota: Quota | None = None,
        fair: bool = False,
    ) -> Lock:
        """Locks a slot until a date, or for a duration from Redis' now.

        The key that holds the slot already is given its lock again, with the same fencing token; its date becomes
        the later of the two. So a call whose answer was lost can be made again with the same key.

        Args:
            slot_id: The slot.
            lock_key: The owner's secret, 1 to 255 characters. Without it a random one is made, and a lock whose
                outcome stays unknown is undone in the background.
            lock_until: The end of the lock, with a time zone; or else
            lock_for: its duration.
            wait: How long to wait for a slot that another key holds.
            quota: How many live locks one holder may have, this one included. A lock that the key has already
                costs nothing. Not waited for.
            fair: Wait in line: who came first gets the slot first, by Redis' clock and across processes, and nobody
                who does not wait in line gets it before. A waiter that died delays the next by up to 3 seconds.

        Raises:
            InvalidArgument: An argument is wrong, or the date is past or beyond ``max_lock``; or ``fair`` without
                ``wait``.
            SlotNotFound: No such slot.
            SlotNotLockable: It is not lockable, disabled, or full.
            SlotLocked: Another key holds it (still, after ``wait``), or somebody waits in line for it.
            TooManyLocks: The slot is free, and the quota's holder has as many live locks as it may.
            StoreCorrupt: The slot's keys hold something else.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        key = arguments.new_lock_key() if lock_key is None else arguments.lock_key(lock_key)
        if quota is not None:
            quota = _quota(quota)
        request = LockRequest(arguments.slot_id(slot_id), key, until, "", lock_key is None, quota)
        if fair is not False and arguments.flag(fair, "fair"):
            if wait is None:
                raise InvalidArgument("fair", "needs wait: only who waits has a place in the line")
            request.ticket = secrets.token_hex(8)
        undoing = _unlock_all if lock_key is None else None
        if wait is None:
            [locked] = await self._attempt(lock, [request], undoing)
        else:
            attempt = partial(self._attempt, lock_fair if fair else lock, [request], undoing)
            [locked] = await self._wait_for(attempt, request, wait)
        return locked

    async def lock_many(
        self,
        slot_ids: Iterable[str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        wait: timedelta | None = None,
        quota: Quota | None = None,
    ) -> list[Lock]:
        """Locks up to 512 slots with one key: all of them or none, in one step; under a quota, each counts.

        There is no line for several slots: who waits here waits unfairly, behind those who wait in line for one.

        Raises what :meth:`lock` raises; the error is that of the first slot in the way, and names it.
        """
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        key = arguments.new_lock_key() if lock_key is None else arguments.lock_key(lock_key)
        if quota is not None:
            quota = _quota(quota)
        requests = [
            LockRequest(slot_id, key, until, "", lock_key is None, quota) for slot_id in arguments.slot_ids(slot_ids)
        ]
        attempt = partial(self._attempt, lock_many, requests, _unlock_all if lock_key is None else None, alone=True)
        return await (attempt() if wait is None else self._wait_for(attempt, requests[0], wait))

    async def unlock(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Unlocked:
        """Ends a lock, named by its value or by slot_id and lock_key.

        A lock that has ended already is no error: ``released`` tells. With a fencing token (a Lock carries its own)
        a late unlock leaves a newer lock of the same key alone.

        Raises:
            InvalidArgument: An argument is wrong.
            LockKeyInvalid: Another key holds the slot; nothing changed.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        # Without the coroutine of _one: this is half of what a busy engine does.
        outcomes = await self._run(unlock, [claim_of(lock, lock_key, fencing_token)])
        return one_of(outcomes)

    async def unlock_many(self, locks: Iterable[Lock | str], *, lock_key: str | None = None) -> list[Unlocked]:
        """Ends up to 512 locks in one step, each that is still the caller's.

        Raises what :meth:`unlock` raises; if another key holds one of the slots, after the rest were unlocked.
        """
        return await self._all(unlock, _claims_of(locks, lock_key))

    async def force_unlock(self, slot_id: str) -> Unlocked:
        """Ends whatever lock is on a slot: for operators.

        Raises InvalidArgument, StoreUnavailable.
        """
        return await self._one(force_unlock, ClaimRequest(arguments.slot_id(slot_id), ""))

    async def extend(
        self,
        lock: Lock | str,
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
        fencing_token: int | None = None,
    ) -> Lock:
        """Moves the end of a live lock to a later date, or to a duration from Redis' now; never to an earlier one.

        Raises:
            InvalidArgument: An argument is wrong, or the date is past or beyond ``max_lock``.
            LockLost: The lock has ended; it is not made anew.
            SlotNotFound, SlotNotLockable: The slot went, or was disabled, meanwhile; the lock stays until its date.
            StoreUnavailable: Redis did not answer within the engine's ``timeout``.
        """
        [request] = self._extend_requests([claim_of(lock, lock_key, fencing_token)], lock_until, lock_for)
        return await self._one(extend, request)

    async def _extend_within(self, lock: Lock, end: datetime, limit: timedelta) -> Lock:
        """Extends a lock, but gives up after ``limit``, where that is sooner than the engine's own deadline."""
        [request] = self._extend_requests([claim_of(lock, None)], end, None)
        return await self._one(extend, request, within=limit.total_seconds())

    async def extend_many(
        self,
        locks: Iterable[Lock | str],
        *,
        lock_key: str | None = None,
        lock_until: datetime | None = None,
        lock_for: timedelta | None = None,
    ) -> list[Lock]:
        """Extends up to 512 locks: all of them or none, in one step. Raises what :meth:`extend` raises."""
        requests = self._extend_requests(_claims_of(locks, lock_key), lock_until, lock_for)
        return await self._all(extend_many, requests, alone=True)

    def _extend_requests(
        self, claims: Sequence[Claim], lock_until: datetime | None, lock_for: timedelta | None
    ) -> list[LockRequest]:
        until = arguments.until(lock_until, lock_for, self._settings.max_lock_ms)
        return [LockRequest(claim.slot_id, claim.lock_key, until, claim.fencing_token) for claim in claims]

    async def check(
        self, lock: Lock | str, *, lock_key: str | None = None, fencing_token: int | None = None
    ) -> Lock | None:
        """Is it still mine? The lock as it stands now, or None.

        Raises InvalidArgument, StoreUnavailable.
        """
        return await self._one(check, claim_of(lock, lock_key, fencing_token))

    async def list_locks(self) -> list[LiveLock]:
        """All live locks, by their end: for operators. Raises StoreUnavailable."""
        locks: dict[str, LiveLock] = {}
        cursor = 0
        while True:
            found, cursor = await self._one(list_locks, (cursor, CHUNK), alone=True)
            locks.update((one.slot_id, one) for one in found)
            if not cursor:
                return sorted(locks.values(), key=lambda one: one.locked_until)


def _unlock_all(requests: Sequence[LockRequest]) -> tuple[Builder[Unlocked], list[ClaimRequest]]:
    return unlock, [ClaimRequest(request.slot_id, request.lock_key) for request in requests]


def _quota(quota: object) -> Quota:
    if isinstance(quota, Quota):
        return quota
    raise InvalidArgument("quota", "must be a Quota, or None")


def claim_of(lock: Lock | str, lock_key: str | None, fencing_token: int | None = None) -> Claim:
    if isinstance(lock, Lock):
        if lock_key is not None or fencing_token is not None:
            raise InvalidArgument("lock", "carries its lock_key and fencing_token: they can't be given beside it")
        return lock
    if lock_key is None:
        raise InvalidArgument("lock_key", "must be given with a slot_id (a Lock carries its own)")
    return ClaimRequest(arguments.slot_id(lock), arguments.lock_key(lock_key), arguments.fencing_token(fencing_token))


def _claims_of(locks: Iterable[Lock | str], lock_key: str | None) -> list[Claim]:
    claims = [claim_of(lock, None if isinstance(lock, Lock) else lock_key) for lock in arguments.many(locks, "locks")]
    arguments.slot_ids([claim.slot_id for claim in claims])
    return claims


# Very many requests are made, and a named tuple takes half as long again to make as a dataclass.


@dataclass(slots=True)
class LockRequest:
    """A lock to be made, or one to be prolonged."""

    slot_id: str
    lock_key: str
    until: str
    fencing_token: str | int = ""
    key_is_new: bool = False
    """The engine made the key for this very request: nobody can have held the slot with it before."""
    quota: Quota | None = None
    ticket: str = ""
    """Its place in the line of a slot, if it waits fairly."""


@dataclass(slots=True)
class ClaimRequest:
    """A lock as one names it who has no :class:`Lock` of it; an empty fencing token stands for any."""

    slot_id: str
    lock_key: str
    fencing_token: str = ""


Claim = Lock | ClaimRequest
"""A lock as its holder names it, to unlock, extend or check it: both say which slot, key and fencing token."""


def lock(settings: Settings, requests: Sequence[LockRequest], mode: str = "each", *, fair: bool = False) -> Call[Lock]:
    names = settings.keys
    args: list[str | int] = [*names.naming, str(settings.max_lock_ms), settings.scope, mode]
    for request in requests:
        until, quota = request.until, request.quota
        if quota is not None:
            until = f"{until} {quota.most} {names.locks_of(quota.holder)}"
        args += request.slot_id, request.lock_key, until
        if fair:
            args.append(request.ticket)
    keys = names.of_locks(slots_of(requests))
    script = scripts.LOCK_FAIR if fair else scripts.LOCK
    return Call(script, keys, args, partial(_granted, settings, requests, locked_by_another))


def lock_many(settings: Settings, requests: Sequence[LockRequest]) -> Call[Lock]:
    """All or nothing."""
    return lock(settings, requests, "all")


def lock_fair(settings: Settings, requests: Sequence[LockRequest]) -> Call[Lock]:
    """Who finds a slot taken joins its line, or stays there."""
    return lock(settings, requests, fair=True)


def extend(settings: Settings, requests: Sequence[LockRequest], mode: str = "each") -> Call[Lock]:
    names = settings.keys
    args: list[str | int] = [*names.naming, str(settings.max_lock_ms), settings.scope, mode]
    for request in requests:
        args += request.slot_id, request.lock_key, request.until, request.fencing_token
    keys = names.of_locks(slots_of(requests))
    return Call(scripts.EXTEND, keys, args, partial(_granted, settings, requests, _lost_to_another))


def extend_many(settings: Settings, requests: Sequence[LockRequest]) -> Call[Lock]:
    """All or nothing."""
    return extend(settings, requests, "all")


def check(settings: Settings, claims: Sequence[Claim]) -> Call[Lock | None]:
    keys = settings.keys.of_locks(slots_of(claims))

    def parse(reply: Reply, sent_at: float) -> list[Lock | None]:
        outcomes: list[Lock | None] = []
        for claim, tag, record, until_ms, token in rows_for(claims, reply):
            ends_at = sent_at + (until_ms * 1000 - reply[0]) / 1_000_000
            lock = OpenLock().sealed(claim.slot_id, claim.lock_key, until_ms, token, True, record, ends_at)
            outcomes.append(lock if tag == b"yours" else None)
        return outcomes

    return Call(scripts.CHECK, keys, _claim_fields(claims), parse)


def unlock(settings: Settings, claims: Sequence[Claim], mode: str = "owner") -> Call[Unlocked]:
    keys = settings.keys.of_locks(slots_of(claims))

    def parse(reply: Reply, _: float) -> list[Unlocked | OverbookedError]:
        outcomes: list[Unlocked | OverbookedError] = []
        for claim, tag, record, until_ms, available in rows_for(claims, reply, head=0):
            slot_id = claim.slot_id
            seen = OpenUnlocked().sealed(slot_id, tag == b"unlocked", record, until_ms, available == 1)
            is_theirs = tag == b"taken"
            outcomes.append(LockKeyInvalid(slot_id, from_milliseconds(until_ms), seen) if is_theirs else seen)
        return outcomes

    return Call(scripts.UNLOCK, keys, [mode, *_claim_fields(claims)], parse, _own_unlock)


def force_unlock(settings: Settings, claims: Sequence[Claim]) -> Call[Unlocked]:
    """Whoever holds the slot."""
    return unlock(settings, claims, "force")


def _claim_fields(claims: Sequence[Claim]) -> list[str]:
    words: list[str] = []
    for claim in claims:
        words += claim.slot_id, claim.lock_key, str(claim.fencing_token)
    return words


def list_locks(settings: Settings, requests: Sequence[tuple[int, int]]) -> Call[tuple[list[LiveLock], int]]:
    """Takes one (cursor, chunk); the outcome is (locks, next cursor)."""
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[tuple[list[LiveLock], int]]:
        locks = [
            LiveLock(
                slot_id.decode(),
                from_milliseconds(until_ms),
                from_milliseconds(token // 1000),
                token,
                key_hash.decode(),
            )
            for slot_id, until_ms, token, key_hash in rows(reply, 2)
        ]
        return [(locks, int(reply[1]))]

    args: list[str | int] = [*keys.naming, *requests[0]]
    return Call(scripts.LIST_LOCKS, keys.of_locks(()), args, parse)


def _granted(
    settings: Settings,
    requests: Sequence[LockRequest],
    taken: Callable[[str, int, int], OverbookedError],
    reply: Reply,
    sent_at: float,
) -> list[Lock | OverbookedError]:
    outcomes: list[Lock | OverbookedError] = []
    now_us = reply[0]
    for request, tag, record, until_ms, token in rows_for(requests, reply):
        slot_id = request.slot_id
        if tag == b"locked" or tag == b"yours":  # noqa: PLR1714 - `in` takes longer
            # A retry after a lost reply finds its own lock: with a key nobody else has, that is no earlier hold.
            already_held = tag == b"yours" and not request.key_is_new
            ends_at = sent_at + (until_ms * 1000 - now_us) / 1_000_000
            lock = OpenLock().sealed(slot_id, request.lock_key, until_ms, token, already_held, record, ends_at)
            outcomes.append(lock)
        elif tag == b"taken":
            outcomes.append(taken(slot_id, until_ms, now_us))
        elif tag == b"too_many" and request.quota is not None:
            outcomes.append(_over_quota(slot_id, request.quota.most, until_ms, now_us))
        elif tag != b"withheld":
            # What was withheld has nothing wrong with it: another slot of the call was in the way.
            outcomes.append(_refusal(settings, slot_id, tag.decode(), now_us))
    return outcomes


def locked_by_another(slot_id: str, until_ms: int, now_us: int, code: str = "E045") -> SlotLocked:
    return SlotLocked(slot_id, from_milliseconds(until_ms), _time_until(until_ms, now_us), code=code)


def _over_quota(slot_id: str, most: int, until_ms: int, now_us: int) -> OverbookedError:
    if not until_ms:
        return InvalidArgument("slot_ids", f"must name at most {most} slots that are not yours yet: the quota's most")
    return TooManyLocks(slot_id, most, _time_until(until_ms, now_us))


@lru_cache(maxsize=64)  # the refused of one call mostly wanted the same slot
def _time_until(until_ms: int, now_us: int) -> timedelta:
    return timedelta(microseconds=max(0, until_ms * 1000 - now_us))


def _lost_to_another(slot_id: str, until_ms: int, _: int) -> LockLost:
    return LockLost(slot_id, from_milliseconds(until_ms))


def _refusal(settings: Settings, slot_id: str, tag: str, now_us: int) -> OverbookedError:
    if tag == "past":
        now = from_milliseconds(now_us // 1000).isoformat(timespec="milliseconds")
        return InvalidArgument("lock_until", f"must be in the future; by Redis' clock it is {now}")
    if tag == "too_long":
        return InvalidArgument(
            "lock_until", f"must be at most {arguments.in_words(settings.max_lock_ms)} from now, the longest lock"
        )
    if tag in ("not_lockable", "disabled", "full"):
        return SlotNotLockable(slot_id, cast("Reason", tag))
    kinds: dict[str, type[SlotNotFound | LockLost | StoreCorrupt]]
    kinds = {"not_found": SlotNotFound, "gone": LockLost, "corrupt": StoreCorrupt}
    return kinds[tag](slot_id)


def _own_unlock(claim: Claim, outcome: Unlocked | OverbookedError) -> Unlocked | OverbookedError:
    """What is gone after an unlock that may have been carried out was ended by it."""
    if not claim.fencing_token:
        return outcome  # the key may never have held the slot
    if isinstance(outcome, LockKeyInvalid) and outcome.after is not None:
        # With the unlock whose reply was lost the slot went to the next, who may have waited in line for it.
        outcome = outcome.after
    return replace(outcome, released=True) if isinstance(outcome, Unlocked) else outcome
