"""What goes over the wire."""

from __future__ import annotations

from enum import Enum

import hiredis
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from overbooked_lock import scripts
from overbooked_lock.calls import Call

_WORDS = st.lists(st.text(max_size=600) | st.integers(), max_size=5)


class Court(str, Enum):  # noqa: UP042 - a StrEnum shows its text whatever is done to it
    CENTER = "court-1"


def _sent(packed: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(packed)
    words: list[bytes] = reader.gets()
    assert reader.gets() is False  # nothing more, which the next reply would be taken for
    return words


@given(st.lists(st.text(max_size=600), max_size=3), _WORDS)
@example([], [])
@example(["x" * 511], ["x" * 512, ""])
@example(["Platz-ä"], ["+30000"])
@example([Court.CENTER], [Court.CENTER])
@pytest.mark.parametrize("name", ["EVALSHA", "EVAL"])
def test_each_word_arrives_as_it_is(name: str, keys: list[str], args: list[str | int]) -> None:
    """Short or long, a number, beyond ASCII, a member of an enumeration: the server reads the same words."""
    call: Call[object] = Call(scripts.UNLOCK, keys, args, lambda reply, _: reply)
    given_words = [len(keys), *(str.__str__(key) for key in keys)]
    given_words += [str.__str__(arg) if isinstance(arg, str) else arg for arg in args]
    packed, script = (call.evalsha(), scripts.UNLOCK.sha) if name == "EVALSHA" else (call.eval(), scripts.UNLOCK.source)
    assert _sent(packed) == [str(word).encode() for word in (name, script, *given_words)]
