"""A script opens with its guarantee, KEYS, ARGV, reply and tags; here that header is held against the builder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import redis

from overbooked_lock import Lock, answers, api_keys, bookings, locks, scripts, slots, stream, waiting
from overbooked_lock.calls import Call, Settings
from overbooked_lock.keys import Keys
from overbooked_lock.sidecar import claims

SETTINGS = Settings(Keys("header"), max_lock_ms=60_000, scope="registered")
# What builds each script's call, with a request for one slot, and the tags that its parser knows.
VERDICTS = "past too_long not_found not_lockable disabled full corrupt taken"
BUILDERS: dict[str, tuple[Callable[..., Call[Any]], Any, str]] = {
    "lock": (locks.lock, locks.LockRequest("s", "k", "+1000"), f"locked yours withheld too_many {VERDICTS}"),
    "lock_fair": (
        locks.lock_fair,
        locks.LockRequest("s", "k", "+1000", ticket="t"),
        f"locked yours withheld too_many {VERDICTS}",
    ),
    "leave_queue": (waiting.leave_queue, waiting.LeaveRequest("s", "k", "t"), "left gone"),
    "extend": (locks.extend, locks.LockRequest("s", "k", "+1000"), f"yours gone withheld {VERDICTS}"),
    "unlock": (locks.unlock, locks.ClaimRequest("s", "k"), "unlocked gone taken"),
    "check": (locks.check, locks.ClaimRequest("s", "k"), "yours gone taken"),
    "get_slots": (slots.get_slots, slots.GetRequest("s"), "found not_found corrupt"),
    "create_slots": (
        slots.create_slots,
        slots.CreateRequest("s", "r", "L", "A", "1", 1, 2, "a", "b", "{}"),
        "created exists corrupt",
    ),
    "update_slot": (
        slots.update_slot,
        slots.UpdateRequest("s"),
        "updated not_found corrupt capacity_too_small start_not_before_end",
    ),
    "delete_slots": (slots.delete_slots, "s", "deleted more not_found has_bookings corrupt"),
    "list_slots": (slots.list_slots, slots.ListRequest("", "", "", "", "", 0, 10, 0, 10), ""),
    "list_locks": (locks.list_locks, (0, 10), ""),
    "sweep": (stream.sweep, 10, ""),
    "read_events": (stream.read_events, ("", 10), "kept missed"),
    "prune_slots": (slots.prune_slots, (1, 0, 10), ""),
    "book": (
        bookings.book,
        bookings.BookRequest("s", "b", "k", "", "{}"),
        "booked exists slot_not_found disabled full taken corrupt withheld",
    ),
    "get_bookings": (bookings.get_bookings, bookings.BookingRequest("b"), "found not_found corrupt"),
    "update_booking": (bookings.update_booking, bookings.BookingRequest("b", ("{}",)), "updated not_found corrupt"),
    "cancel_booking": (bookings.cancel_booking, bookings.BookingRequest("b"), "cancelled not_found corrupt"),
    "enable_booking": (
        bookings.enable_booking,
        bookings.BookingRequest("b", ("",)),
        "enabled not_found slot_not_found disabled full taken corrupt",
    ),
    "reschedule_booking": (
        bookings.reschedule_booking,
        bookings.BookingRequest("b", ("s", "")),
        "rescheduled not_found slot_not_found disabled full taken corrupt",
    ),
    "delete_bookings": (bookings.delete_bookings, "b", "deleted not_found corrupt"),
    "list_bookings": (bookings.list_bookings, bookings.ListBookingsRequest("", "", "", 0, 10, 0, 10), ""),
    "create_api_key": (api_keys.create_api_key, api_keys.KeyRequest("0" * 64, "P", "n"), ""),
    "find_api_key": (api_keys.find_api_key, "0" * 64, ""),
    "list_api_keys": (api_keys.list_api_keys, (0, 10), ""),
    "keep_answer": (answers.keep_answer, answers.AnswerRequest("n", "{}", 1000), "kept earlier corrupt"),
    "get_answer": (answers.get_answer, "n", ""),
    "claim_request": (
        claims.claim_request,
        claims.RequestClaim("n", "o", "f", 1000),
        "claimed working answered other corrupt",
    ),
    "answer_request": (
        claims.answer_request,
        claims.RequestAnswer("n", "o", "f", 1000, "c", "t"),
        "published earlier",
    ),
    "revoke_api_key": (api_keys.revoke_api_key, "0" * 16, "revoked not_found"),
}
NAMES = sorted(path.stem for path in scripts.FOLDER.glob("*.lua"))


def _header(name: str) -> dict[str, str]:
    lines = []
    for line in (scripts.FOLDER / f"{name}.lua").read_text().splitlines():
        if not line.startswith("--") or line.startswith("-- include:"):
            break
        lines.append(line.removeprefix("-- "))
    text = "\n".join(lines)
    return dict(re.findall(r"^(Guarantee|KEYS|ARGV|Reply|Tags): (.*(?:\n(?!\w+:|  ).*)*)", text, re.MULTILINE))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.replace("\n", " ").split(",") if word.strip()]


def _named(text: str, slots: int) -> list[str]:
    """What the header names for so many slots, in order."""
    once, *each = re.split(r"(?:then )?per (?:slot|booking|API key|answer):", text)
    return _words(once) + [word for part in each for word in _words(part) * slots]


def test_every_script_is_here() -> None:
    """No script without a builder, no builder without a script."""
    assert sorted(BUILDERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_script_opens_with_its_guarantee(name: str) -> None:
    """The first thing a reader sees is what holds."""
    assert (scripts.FOLDER / f"{name}.lua").read_text().startswith("-- Guarantee: ")
    assert {"KEYS", "ARGV", "Reply"} <= _header(name).keys()


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_keys_and_arguments_are_what_the_builder_sends(name: str, slots: int) -> None:
    """As many KEYS and ARGV as the header names, in its order where the order can be seen."""
    build, request, _ = BUILDERS[name]
    header = _header(name)
    per_slot = _named(header["ARGV"], 1) != _named(header["ARGV"], 0)
    requests: Sequence[Any] = [request] * (slots if per_slot else 1)
    call = build(SETTINGS, requests)
    assert call.script.name == name
    assert len(call.args) == len(_named(header["ARGV"], len(requests)))
    kinds = {"lock": "header:slot:s:lock", "record": "header:slot:s:record", "api_keys": "header:api:keys"}
    kinds |= {"answer": "header:answer:n"}
    assert call.keys == [
        kinds.get(kind, f"header:{kind if ':' in kind else 'slots:' + kind}")
        for kind in _named(header["KEYS"], len(requests))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tags_are_those_the_script_replies_and_the_parser_knows(name: str) -> None:
    """A tag that the header forgets would be one that nobody handles."""
    known = BUILDERS[name][2].split()
    assert sorted(_words(_header(name).get("Tags", ""))) == sorted(known)
    source = scripts.load(name).source
    assert all(f"'{tag}'" in source for tag in known)


@pytest.mark.parametrize("name", [name for name in NAMES if "then per slot" in _header(name)["Reply"]])
def test_the_reply_has_the_width_that_the_header_names(name: str, raw: redis.Redis, lock_namespace: str) -> None:
    """The head, then a row for each slot."""
    build, request, _ = BUILDERS[name]
    requests = [request]
    if hasattr(request, "slot_id"):
        with_other = replace if is_dataclass(request) else type(request)._replace
        requests = [with_other(request, slot_id=f"header-{i}") for i in range(3)]
    call = build(Settings(Keys(lock_namespace), 60_000, "registered"), requests)
    reply = raw.eval(call.script.source, len(call.keys), *call.keys, *call.args)
    rows = 0 if name.startswith("list_") else len(requests)
    assert len(reply) == len(_named(_header(name)["Reply"], rows))


def test_included_parts_are_all_used() -> None:
    """A part in lib/ that no script includes is dead."""
    parts = {path.stem for path in (scripts.FOLDER / "lib").glob("*.lua")}
    included = {
        part for path in scripts.FOLDER.rglob("*.lua") for part in re.findall(r"-- include: (\w+)", path.read_text())
    }
    assert parts == included


def test_durations_are_counted_from_redis_clock(raw: redis.Redis, lock_namespace: str) -> None:
    """A plus sign before the milliseconds means: from now, by the server."""
    call = locks.lock(Settings(Keys(lock_namespace), 60_000, "any"), [locks.LockRequest("s", "k", "+1000")])
    seconds, micros = raw.time()
    reply = raw.eval(call.script.source, len(call.keys), *call.keys, *call.args)
    [lock] = call.parse([part.encode() if isinstance(part, str) else part for part in reply], 0.0)
    assert isinstance(lock, Lock)
    asked_at = seconds + micros / 1e6
    assert timedelta(seconds=0.9) < timedelta(seconds=lock.locked_until.timestamp() - asked_at) < timedelta(seconds=5)
