"""One builder an operation: what goes to its script, and what the script's reply means. No I/O.

A builder takes many requests and returns one :class:`Call`; its ``parse`` gives one outcome for each request,
in their order: a value, or the error that concerns this request alone. A single request is a list of one, which
is what lets an executor merge the requests of many callers into one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import chain, islice
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import hiredis

from overbooked_lock import scripts
from overbooked_lock.arguments import from_milliseconds, in_words
from overbooked_lock.errors import (
    BookingExists,
    BookingNotFound,
    CapacityTooSmall,
    InvalidArgument,
    LockKeyInvalid,
    LockLost,
    OverbookedError,
    Reason,
    SlotExists,
    SlotHasBookings,
    SlotLocked,
    SlotNotBookable,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    StoreUnavailable,
    TooManyLocks,
)
from overbooked_lock.keys import Keys
from overbooked_lock.models import (
    ApiKeyInfo,
    Booking,
    KeyKind,
    LiveLock,
    Lock,
    Quota,
    Slot,
    Unlocked,
    new_lock,
    new_unlocked,
)

Reply = list[Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine adds to every call."""

    keys: Keys
    max_lock_ms: int
    scope: Literal["registered", "any"]


class Call(NamedTuple):
    """One run of a script. ``parse(reply, sent_at)`` takes the monotonic time from before the request was sent."""

    script: scripts.Script
    keys: Sequence[str]
    args: Sequence[str | int]
    parse: Callable[[Reply, float], Any]

    def evalsha(self) -> bytes:
        """The command as it goes over the wire."""
        return self._pack("EVALSHA", self.script.sha)

    def eval(self) -> bytes:
        """The same for a server that does not know the script: it keeps it from then on."""
        return self._pack("EVAL", self.script.source)

    def _pack(self, command: str, script: str) -> bytes:
        words: tuple[Any, ...] = (command, script, len(self.keys), *self.keys, *self.args)
        packed: bytes = hiredis.pack_command(words)
        return packed


class LockRequest(NamedTuple):
    """A lock to be made, or one to be prolonged."""

    slot_id: str
    lock_key: str
    until: str
    fencing_token: str = ""
    key_is_new: bool = False
    """The engine made the key for this very request: nobody can have held the slot with it before."""
    quota: Quota | None = None
    ticket: str = ""
    """Its place in the line of a slot, if it waits fairly."""


class LeaveRequest(NamedTuple):
    """Who no longer waits fairly for a slot."""

    slot_id: str
    lock_key: str
    ticket: str


class ClaimRequest(NamedTuple):
    """A lock as its holder names it, to unlock or check it."""

    slot_id: str
    lock_key: str
    fencing_token: str = ""


class GetRequest(NamedTuple):
    slot_id: str
    lock_key: str = ""


class CreateRequest(NamedTuple):
    slot_id: str
    resource_id: str
    lockable: str
    status: str
    capacity: str
    start_ms: int
    end_ms: int
    start_date: str
    end_date: str
    metadata: str


class UpdateRequest(NamedTuple):
    """What is to change; an empty text leaves a field as it is."""

    slot_id: str
    lockable: str = ""
    status: str = ""
    capacity: str = ""
    start_ms: str = ""
    end_ms: str = ""
    start_date: str = ""
    end_date: str = ""
    metadata: str = ""


class DeleteRequest(NamedTuple):
    slot_id: str


class BookRequest(NamedTuple):
    slot_id: str
    booking_id: str
    lock_key: str
    fencing_token: str
    metadata: str
    id_is_new: bool = False
    """The engine made the booking_id for this very request: nobody else knows it."""


class BookingRequest(NamedTuple):
    """What is to be done with a booking; ``arguments`` are the verb's own."""

    booking_id: str
    arguments: tuple[str, ...] = ()


class DeleteBookingRequest(NamedTuple):
    booking_id: str


class ListRequest(NamedTuple):
    resource_id: str
    from_ms: str
    to_ms: str
    available: str
    lock_key: str
    cursor: int
    chunk: int
    skip: int
    limit: int


class ListBookingsRequest(NamedTuple):
    slot_id: str
    resource_id: str
    status: str
    cursor: int
    chunk: int
    skip: int
    limit: int


class KeyRequest(NamedTuple):
    """An API key to be registered: the SHA-256 of it, and never the key."""

    key_hash: str
    kind: Literal["P", "S"]
    name: str


class RevokeRequest(NamedTuple):
    key_id: str


class AnswerRequest(NamedTuple):
    name: str
    answer: str
    keep_ms: int


class RequestClaim(NamedTuple):
    """A request that a sidecar heard, ``name`` for short, and who would work on it."""

    name: str
    owner: str
    fingerprint: str
    lease_ms: int


class RequestAnswer(NamedTuple):
    """What a sidecar answers to a request; with ``keep_ms`` 0 it is not kept."""

    name: str
    owner: str
    fingerprint: str
    keep_ms: int
    channel: str
    text: str


class Listed(NamedTuple, Generic[T]):
    found: list[T]
    matched: int
    next_cursor: int


def after_lost_reply(requests: Sequence[Any], outcomes: Sequence[Any]) -> list[Any]:
    """What outcomes mean if an earlier try of the same call may have been carried out: what is gone was its work."""
    return [_own_work(request, outcome) for request, outcome in zip(requests, outcomes, strict=False)]


def _own_work(request: Any, outcome: Any) -> Any:
    if isinstance(request, ClaimRequest) and not request.fencing_token:
        return outcome  # the key may never have held the slot
    if isinstance(outcome, LockKeyInvalid) and outcome.after is not None:
        # With the unlock whose reply was lost the slot went to the next, who may have waited in line for it.
        outcome = outcome.after
    if isinstance(outcome, Unlocked):
        return replace(outcome, released=True)
    removal = isinstance(request, DeleteRequest | DeleteBookingRequest | RevokeRequest)
    return True if removal and outcome is False else outcome


def lock(settings: Settings, requests: Sequence[LockRequest], mode: str = "each", *, fair: bool = False) -> Call:
    names = settings.keys
    args: list[str | int] = [*names.naming, settings.max_lock_ms, settings.scope, mode]
    for request in requests:
        args += request[:3]
        quota = request.quota
        args.append("" if quota is None else f"{quota.most} {names.locks_of(quota.holder)}")
        if fair:
            args.append(request.ticket)
    keys = names.of_locks(_ids(requests))
    script = scripts.LOCK_FAIR if fair else scripts.LOCK
    return Call(script, keys, args, partial(_granted, settings, requests, _locked_by_another))


def lock_many(settings: Settings, requests: Sequence[LockRequest]) -> Call:
    """All or nothing."""
    return lock(settings, requests, "all")


def lock_fair(settings: Settings, requests: Sequence[LockRequest]) -> Call:
    """Who finds a slot taken joins its line, or stays there."""
    return lock(settings, requests, fair=True)


def leave_queue(settings: Settings, requests: Sequence[LeaveRequest]) -> Call:
    """The outcome is True for a ticket that this call took out of its line."""
    keys = settings.keys.of_locks(_ids(requests))
    return Call(scripts.LEAVE_QUEUE, keys, _fields(requests), lambda reply, _: [tag == b"left" for tag in reply[1:]])


def extend(settings: Settings, requests: Sequence[LockRequest], mode: str = "each") -> Call:
    names = settings.keys
    args: list[str | int] = [*names.naming, settings.max_lock_ms, settings.scope, mode]
    for request in requests:
        args += request[:4]
    keys = names.of_locks(_ids(requests))
    return Call(scripts.EXTEND, keys, args, partial(_granted, settings, requests, _lost_to_another))


def extend_many(settings: Settings, requests: Sequence[LockRequest]) -> Call:
    """All or nothing."""
    return extend(settings, requests, "all")


def check(settings: Settings, requests: Sequence[ClaimRequest]) -> Call:
    keys = settings.keys.of_locks(_ids(requests))

    def parse(reply: Reply, sent_at: float) -> list[Lock | None]:
        return [
            _lock(slot_id, lock_key, True, record, until_ms, token, reply[0], sent_at) if tag == b"yours" else None
            for (slot_id, lock_key, _), (tag, record, until_ms, token) in zip(requests, _rows(reply), strict=True)
        ]

    return Call(scripts.CHECK, keys, _fields(requests), parse)


def unlock(settings: Settings, requests: Sequence[ClaimRequest], mode: str = "owner") -> Call:
    args = [mode, *_fields(requests)]
    keys = settings.keys.of_locks(_ids(requests))

    def parse(reply: Reply, _: float) -> list[Unlocked | OverbookedError]:
        return [
            _unlocked(request.slot_id, tag, record, until_ms, available)
            for request, (tag, record, until_ms, available) in zip(requests, _rows(reply), strict=True)
        ]

    return Call(scripts.UNLOCK, keys, args, parse)


def force_unlock(settings: Settings, requests: Sequence[ClaimRequest]) -> Call:
    """Whoever holds the slot."""
    return unlock(settings, requests, "force")


def list_locks(settings: Settings, requests: Sequence[tuple[int, int]]) -> Call:
    """Takes one (cursor, chunk); the outcome is (locks, next cursor)."""
    [(cursor, chunk)] = requests
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
            for slot_id, until_ms, token, key_hash in _rows(reply, 2)
        ]
        return [(locks, int(reply[1]))]

    args: list[str | int] = [*keys.naming, cursor, chunk]
    return Call(scripts.LIST_LOCKS, keys.of_locks(()), args, parse)


def sweep(settings: Settings, requests: Sequence[int]) -> Call:
    """Takes how many at most; the outcome is (how many locks had ended, the seconds until the next may end or None)."""
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[tuple[int, float | None]]:
        now_us, ended, next_ms = reply
        return [(ended, (next_ms * 1000 - now_us) / 1_000_000 if next_ms else None)]

    return Call(scripts.SWEEP, keys.of_locks(()), [*keys.naming, *requests], parse)


def read_events(settings: Settings, requests: Sequence[tuple[str, int]]) -> Call:
    """Takes one (from_id, count); the outcome is (whether from_id is still kept, entries)."""

    def parse(reply: Reply, _: float) -> list[tuple[bool, list[tuple[str, str]]]]:
        entries = [(entry_id.decode(), text.decode(errors="replace")) for entry_id, text in _rows(reply, 2, width=2)]
        return [(reply[1] == b"kept", entries)]

    return Call(scripts.READ_EVENTS, settings.keys.of_locks(()), requests[0], parse)


def create_slots(settings: Settings, requests: Sequence[CreateRequest]) -> Call:
    keys = settings.keys.of_slots(_ids(requests))
    return Call(scripts.CREATE_SLOTS, keys, _fields(requests), partial(_views, _ids(requests)))


def get_slots(settings: Settings, requests: Sequence[GetRequest]) -> Call:
    keys = settings.keys.of_locks(_ids(requests))
    return Call(scripts.GET_SLOTS, keys, _fields(requests), partial(_views, _ids(requests)))


def update_slot(settings: Settings, requests: Sequence[UpdateRequest]) -> Call:
    keys = settings.keys.of_slots(_ids(requests))
    return Call(scripts.UPDATE_SLOT, keys, _fields(requests), partial(_views, _ids(requests)))


def delete_slots(settings: Settings, requests: Sequence[DeleteRequest]) -> Call:
    """The outcome is True for a slot that this call removed, False for one that was not there, None if there is more
    to remove."""
    ids = _ids(requests)

    def parse(reply: Reply, _: float) -> list[bool | OverbookedError | None]:
        outcomes: list[bool | OverbookedError | None] = []
        for slot_id, tag in zip(ids, reply[1:], strict=True):
            refusal = {b"has_bookings": SlotHasBookings, b"corrupt": StoreCorrupt}.get(tag)
            outcomes.append(refusal(slot_id) if refusal else None if tag == b"more" else tag == b"deleted")
        return outcomes

    return Call(scripts.DELETE_SLOTS, settings.keys.of_removal(ids), [*settings.keys.naming, *ids], parse)


def list_slots(settings: Settings, requests: Sequence[ListRequest]) -> Call:
    [request] = requests
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[Listed[Slot]]:
        slots = [
            Slot.from_record(slot_id.decode(), record, until_ms, available=bool(available))
            for slot_id, record, until_ms, available in _rows(reply, 3)
        ]
        return [Listed(slots, matched=reply[2], next_cursor=reply[1])]

    return Call(scripts.LIST_SLOTS, keys.of_slots(()), [*keys.naming, *request], parse)


def prune_slots(settings: Settings, requests: Sequence[tuple[int, int, int]]) -> Call:
    """Takes one (before_ms, skip, chunk); the outcome is (pruned, kept, whether there are more)."""
    keys = settings.keys
    args: list[str | int] = [*keys.naming, *requests[0]]
    return Call(scripts.PRUNE_SLOTS, keys.of_removal(), args, lambda reply, _: [(reply[1], reply[2], bool(reply[3]))])


def book(settings: Settings, requests: Sequence[BookRequest], mode: str = "each") -> Call:
    keys = settings.keys
    args = [*keys.naming, mode, *_fields(request[:-1] for request in requests)]
    named = [(request.booking_id, request.slot_id) for request in requests]
    return Call(scripts.BOOK, keys.of_bookings(_ids(requests)), args, partial(_bookings, named))


def book_many(settings: Settings, requests: Sequence[BookRequest]) -> Call:
    """All or nothing."""
    return book(settings, requests, "all")


def get_bookings(settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    return _on_bookings(scripts.GET_BOOKINGS, settings, requests)


def update_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    """Takes the metadata."""
    return _on_bookings(scripts.UPDATE_BOOKING, settings, requests)


def cancel_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    return _on_bookings(scripts.CANCEL_BOOKING, settings, requests)


def enable_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    """Takes a lock_key."""
    return _on_bookings(scripts.ENABLE_BOOKING, settings, requests)


def reschedule_booking(settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    """Takes the slot_id of where it goes, and a lock_key."""
    return _on_bookings(scripts.RESCHEDULE_BOOKING, settings, requests)


def delete_bookings(settings: Settings, requests: Sequence[DeleteBookingRequest]) -> Call:
    """The outcome is True for a booking that this call removed, False for one that was not there."""
    keys, ids = settings.keys, [request.booking_id for request in requests]

    def parse(reply: Reply, _: float) -> list[bool | OverbookedError]:
        rows = zip(ids, reply[1:], strict=True)
        return [StoreCorrupt(booking_id) if tag == b"corrupt" else tag == b"deleted" for booking_id, tag in rows]

    return Call(scripts.DELETE_BOOKINGS, keys.of_bookings(), [*keys.naming, *ids], parse)


def list_bookings(settings: Settings, requests: Sequence[ListBookingsRequest]) -> Call:
    keys = settings.keys

    def parse(reply: Reply, _: float) -> list[Listed[Booking]]:
        bookings = [Booking.from_record(booking_id.decode(), record) for booking_id, record in _rows(reply, 3, width=2)]
        return [Listed(bookings, matched=reply[2], next_cursor=reply[1])]

    return Call(scripts.LIST_BOOKINGS, keys.of_bookings(), [*keys.naming, *requests[0]], parse)


def _on_bookings(script: scripts.Script, settings: Settings, requests: Sequence[BookingRequest]) -> Call:
    keys = settings.keys
    args = [*keys.naming, *_fields((request.booking_id, *request.arguments) for request in requests)]
    # The first argument of a verb that has two is the slot that its refusals are about.
    named = [(request.booking_id, request.arguments[0] if request.arguments[1:] else "") for request in requests]
    return Call(script, keys.of_bookings(), args, partial(_bookings, named))


def create_api_key(settings: Settings, requests: Sequence[KeyRequest]) -> Call:
    hashes = [request.key_hash for request in requests]
    return Call(scripts.CREATE_API_KEY, [settings.keys.api_keys], _fields(requests), partial(_api_keys, hashes))


def find_api_key(settings: Settings, requests: Sequence[str]) -> Call:
    """Takes hashes; the outcome is None where no API key has it."""
    return Call(scripts.FIND_API_KEY, [settings.keys.api_keys], requests, partial(_api_keys, requests))


def list_api_keys(settings: Settings, requests: Sequence[tuple[int, int]]) -> Call:
    """Takes one (cursor, chunk); the outcome is (API keys, next cursor)."""

    def parse(reply: Reply, _: float) -> list[tuple[list[ApiKeyInfo], int]]:
        infos = (_api_key(key_hash.decode(), record) for key_hash, record in zip(reply[1::2], reply[2::2], strict=True))
        return [([info for info in infos if info is not None], int(reply[0]))]

    return Call(scripts.LIST_API_KEYS, [settings.keys.api_keys], requests[0], parse)


def revoke_api_key(settings: Settings, requests: Sequence[RevokeRequest]) -> Call:
    """The outcome is True for an API key that this call removed, False for one that was not there."""
    ids = [request.key_id for request in requests]
    return Call(
        scripts.REVOKE_API_KEY, [settings.keys.api_keys], ids, lambda reply, _: [tag == b"revoked" for tag in reply]
    )


def _api_keys(hashes: Sequence[str], reply: Reply, _: float) -> list[ApiKeyInfo | None]:
    return [_api_key(key_hash, record) for key_hash, record in zip(hashes, reply, strict=True)]


def _api_key(key_hash: str, record: bytes | None) -> ApiKeyInfo | None:
    """None for a record that we did not write, too: it opens nothing."""
    try:
        version_and_kind, created_ms, name = (record or b"").decode().split(" ", 2)
        kind = {"1P": "public", "1S": "secret"}[version_and_kind]
        return ApiKeyInfo(key_hash[:16], cast("KeyKind", kind), name, from_milliseconds(int(created_ms)))
    except (ValueError, KeyError, OverflowError):
        return None


def keep_answer(settings: Settings, requests: Sequence[AnswerRequest]) -> Call:
    """The outcome is the answer that is kept."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[str | OverbookedError]:
        outcomes: list[str | OverbookedError] = []
        for request, tag, text in zip(requests, reply[::2], reply[1::2], strict=True):
            if tag == b"corrupt":
                outcomes.append(StoreUnavailable("not_applied", "a key of ours holds something else"))
            else:
                outcomes.append(request.answer if tag == b"kept" else text.decode(errors="replace"))
        return outcomes

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.KEEP_ANSWER, keys, args, parse)


def get_answer(settings: Settings, requests: Sequence[str]) -> Call:
    """Takes names; the outcome is None where no answer is kept."""
    keys = [settings.keys.answer(name) for name in requests]

    def parse(reply: Reply, _: float) -> list[str | None]:
        return [None if text is None else text.decode(errors="replace") for text in reply]

    return Call(scripts.GET_ANSWER, keys, (), parse)


class Claimed(NamedTuple):
    """What became of a claim.

    ``channel`` and ``text`` are the answer and who heard it, if there is one; ``lease_ms`` is what is left of another's
    claim.
    """

    state: Literal["claimed", "working", "answered", "other"]
    channel: str = ""
    text: str = ""
    lease_ms: int = 0


def claim_request(settings: Settings, requests: Sequence[RequestClaim]) -> Call:
    """The outcome is a :class:`Claimed`."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[Claimed | OverbookedError]:
        outcomes: list[Claimed | OverbookedError] = []
        for tag, channel, text in _rows(reply, head=0, width=3):
            if tag == b"corrupt":
                outcomes.append(StoreUnavailable("not_applied", "a key of ours holds something else"))
            elif tag == b"answered":
                outcomes.append(Claimed("answered", channel.decode(), text.decode()))
            else:
                outcomes.append(Claimed(cast("Any", tag.decode()), lease_ms=int(text or 0)))
        return outcomes

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.CLAIM_REQUEST, keys, args, parse)


def answer_request(settings: Settings, requests: Sequence[RequestAnswer]) -> Call:
    """The outcome is how many heard it; None if there was an answer already."""
    keys = [settings.keys.answer(request.name) for request in requests]

    def parse(reply: Reply, _: float) -> list[int | None]:
        return [receivers if tag == b"published" else None for tag, receivers in _rows(reply, head=0, width=2)]

    args = [field for request in requests for field in request[1:]]
    return Call(scripts.ANSWER_REQUEST, keys, args, parse)


def _ids(requests: Iterable[Any]) -> list[str]:
    return [request.slot_id for request in requests]


def _fields(requests: Iterable[tuple[str | int, ...]]) -> list[str | int]:
    return list(chain.from_iterable(requests))


def _rows(reply: Reply, head: int = 1, width: int = 4) -> Iterator[tuple[Any, ...]]:
    """The values that a script replies for each slot or booking."""
    values = islice(reply, head, None)
    return zip(*[values] * width, strict=True)


def _granted(
    settings: Settings,
    requests: Sequence[LockRequest],
    taken: Callable[[str, int, int], OverbookedError],
    reply: Reply,
    sent_at: float,
) -> list[Lock | OverbookedError]:
    outcomes: list[Lock | OverbookedError] = []
    now_us = reply[0]
    for request, (tag, record, until_ms, token) in zip(requests, _rows(reply), strict=True):
        slot_id = request.slot_id
        if tag == b"locked" or tag == b"yours":  # noqa: PLR1714 - `in` takes longer
            # A retry after a lost reply finds its own lock: with a key nobody else has, that is no earlier hold.
            already_held = tag == b"yours" and not request.key_is_new
            outcomes.append(_lock(slot_id, request.lock_key, already_held, record, until_ms, token, now_us, sent_at))
        elif tag == b"taken":
            outcomes.append(taken(slot_id, until_ms, now_us))
        elif tag == b"too_many" and request.quota is not None:
            outcomes.append(_over_quota(slot_id, request.quota.most, until_ms, now_us))
        elif tag != b"withheld":
            # What was withheld has nothing wrong with it: another slot of the call was in the way.
            outcomes.append(_refusal(settings, slot_id, tag.decode(), now_us))
    return outcomes


def _lock(
    slot_id: str,
    lock_key: str,
    already_held: bool,
    record: bytes | None,
    until_ms: int,
    token: int,
    now_us: int,
    sent_at: float,
) -> Lock:
    ends_at = sent_at + (until_ms * 1000 - now_us) / 1_000_000
    return new_lock(slot_id, lock_key, until_ms, token, already_held, record, ends_at)


def _locked_by_another(slot_id: str, until_ms: int, now_us: int, code: str = "E045") -> SlotLocked:
    return SlotLocked(slot_id, from_milliseconds(until_ms), _time_until(until_ms, now_us), code=code)


def _over_quota(slot_id: str, most: int, until_ms: int, now_us: int) -> OverbookedError:
    if not until_ms:
        return InvalidArgument("slot_ids", f"must name at most {most} slots that are not yours yet: the quota's most")
    return TooManyLocks(slot_id, most, _time_until(until_ms, now_us))


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
            "lock_until", f"must be at most {in_words(settings.max_lock_ms)} from now, the longest lock"
        )
    if tag in ("not_lockable", "disabled", "full"):
        return SlotNotLockable(slot_id, cast("Reason", tag))
    kinds: dict[str, type[SlotNotFound | LockLost | StoreCorrupt]]
    kinds = {"not_found": SlotNotFound, "gone": LockLost, "corrupt": StoreCorrupt}
    return kinds[tag](slot_id)


def _unlocked(
    slot_id: str, tag: bytes, record: bytes | None, until_ms: int, available: int
) -> Unlocked | OverbookedError:
    seen = new_unlocked(slot_id, tag == b"unlocked", record, until_ms, bool(available))
    if tag != b"taken":
        return seen
    return LockKeyInvalid(slot_id, from_milliseconds(until_ms), seen)


def _views(ids: Sequence[str], reply: Reply, _: float) -> list[Slot | OverbookedError]:
    return [_view(slot_id, *row) for slot_id, row in zip(ids, _rows(reply), strict=True)]


def _view(slot_id: str, tag: bytes, record: bytes, until_ms: int, available: int) -> Slot | OverbookedError:
    if tag in (b"found", b"created", b"updated"):
        try:
            return Slot.from_record(slot_id, record, until_ms, available=bool(available))
        except StoreCorrupt as error:
            return error
    if tag == b"start_not_before_end":
        return InvalidArgument("start_date", "must be before end_date", code="E023", status=422)
    kinds: dict[bytes, type[SlotNotFound | SlotExists | StoreCorrupt | CapacityTooSmall]]
    kinds = {
        b"not_found": SlotNotFound,
        b"exists": SlotExists,
        b"corrupt": StoreCorrupt,
        b"capacity_too_small": CapacityTooSmall,
    }
    return kinds[tag](slot_id)


def _bookings(named: Sequence[tuple[str, str]], reply: Reply, _: float) -> list[Booking | OverbookedError]:
    """Takes the ids of each booking and of the slot that it is to have."""
    outcomes: list[Booking | OverbookedError] = []
    for (booking_id, slot_id), (tag, record, until_ms) in zip(named, _rows(reply, width=3), strict=True):
        if tag != b"withheld":
            outcomes.append(_booking(booking_id, slot_id, tag, record, until_ms, reply[0]))
    return outcomes


def _booking(
    booking_id: str, slot_id: str, tag: bytes, record: bytes | None, until_ms: int, now_us: int
) -> Booking | OverbookedError:
    try:
        booking = Booking.from_record(booking_id, record) if record else None
    except StoreCorrupt as error:
        return error
    slot_id = slot_id or (booking.slot_id if booking else "")
    if tag == b"taken":
        return _locked_by_another(slot_id, until_ms, now_us, code="E050")
    if tag in (b"disabled", b"full"):
        return SlotNotBookable(slot_id, cast("Literal['disabled', 'full']", tag.decode()))
    kinds: dict[bytes, tuple[Callable[[str], OverbookedError], str]] = {
        b"not_found": (BookingNotFound, booking_id),
        b"exists": (BookingExists, booking_id),
        b"slot_not_found": (SlotNotFound, slot_id),
        b"corrupt": (StoreCorrupt, slot_id or booking_id),
    }
    if tag in kinds:
        kind, named = kinds[tag]
        return kind(named)
    return cast("Booking", booking)
