"""The Lua scripts: one file an operation in ``lua/``, with what they share in ``lua/lib/``.

A line ``-- include: name`` stands for ``lua/lib/name.lua``, inside a function too, one ``-- key suffixes: A, B`` for
the suffixes of slot keys that ``keys.py`` spells: ``A_SUFFIX``, ``B_SUFFIX``. The wheel carries ``lua/`` inside the
package, a checkout has it beside the package.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from overbooked_lock import keys

_HERE = Path(__file__).parent
FOLDER = next(folder for folder in (_HERE / "lua", _HERE.parent / "lua") if folder.is_dir())
_INCLUDE = re.compile(r"^ *-- include: (\w+)$", re.MULTILINE)
_SUFFIXES = re.compile(r"^ *-- key suffixes: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script as the server gets it: ``sha`` is its SHA-1, by which EVALSHA calls it."""

    name: str
    source: str = field(repr=False)
    sha: str


def load(name: str) -> Script:
    """Reads ``lua/<name>.lua`` with all that it includes."""
    source = _SUFFIXES.sub(_suffixes, _read(f"{name}.lua"))
    # Redis' own name for a script is its SHA-1; nothing here rests on it being hard to forge.
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


def _read(path: str) -> str:
    text = (FOLDER / path).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda line: _read(f"lib/{line[1]}.lua").rstrip(), text)


def _suffixes(line: re.Match[str]) -> str:
    names = [f"{name}_SUFFIX" for name in line[1].split(", ")]
    return f"local {', '.join(names)} = {', '.join(repr(getattr(keys, name)) for name in names)}"


LOCK = load("lock")
LOCK_FAIR = load("lock_fair")
LEAVE_QUEUE = load("leave_queue")
UNLOCK = load("unlock")
EXTEND = load("extend")
CHECK = load("check")
LIST_LOCKS = load("list_locks")
SWEEP = load("sweep")
READ_EVENTS = load("read_events")
CREATE_SLOTS = load("create_slots")
GET_SLOTS = load("get_slots")
UPDATE_SLOT = load("update_slot")
DELETE_SLOTS = load("delete_slots")
LIST_SLOTS = load("list_slots")
PRUNE_SLOTS = load("prune_slots")
BOOK = load("book")
GET_BOOKINGS = load("get_bookings")
UPDATE_BOOKING = load("update_booking")
CANCEL_BOOKING = load("cancel_booking")
ENABLE_BOOKING = load("enable_booking")
RESCHEDULE_BOOKING = load("reschedule_booking")
DELETE_BOOKINGS = load("delete_bookings")
LIST_BOOKINGS = load("list_bookings")
CREATE_API_KEY = load("create_api_key")
FIND_API_KEY = load("find_api_key")
LIST_API_KEYS = load("list_api_keys")
REVOKE_API_KEY = load("revoke_api_key")
KEEP_ANSWER = load("keep_answer")
GET_ANSWER = load("get_answer")
CLAIM_REQUEST = load("claim_request")
ANSWER_REQUEST = load("answer_request")
