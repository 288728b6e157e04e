"""Which keys are ours, and that no slot id reaches another's."""

from __future__ import annotations

from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overbooked_lock import InvalidArgument
from overbooked_lock.keys import Keys

# Pieces of our own keys, so that ids which could be mistaken for keys are common.
_OUR_FIRST_WORDS = ["slot", "slots", "booking", "bookings", "holder", "api", "answer"]
_PIECES = st.sampled_from(
    [*_OUR_FIRST_WORDS, ":", "lock", "record", "queue", "tickets", "locks", "keys", "expiry", "{", "}", " ", "é", "a"]
)
_IDS = st.lists(_PIECES, min_size=1, max_size=8).map("".join) | st.text(
    st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20
)
_NAMESPACES = st.just("") | st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True).filter(
    lambda name: name not in _OUR_FIRST_WORDS
)


def _all_keys(namespace: str, slot_id: str) -> dict[str, tuple[str, ...]]:
    keys = Keys(namespace)
    shared = {keys.locks: "locks", keys.expiry: "expiry", keys.starts: "starts", keys.resources: "resources"}
    shared |= {keys.api_keys: "api keys"}
    meaning = {key: (namespace, kind) for key, kind in shared.items()}
    return meaning | {
        keys.lock(slot_id): (namespace, slot_id, "lock"),
        keys.record(slot_id): (namespace, slot_id, "record"),
        keys.queue(slot_id): (namespace, slot_id, "queue"),
        keys.tickets(slot_id): (namespace, slot_id, "tickets"),
        keys.answer(slot_id): (namespace, slot_id, "answer"),
        keys.locks_of(slot_id): (namespace, slot_id, "holder"),  # whose name may be any slot's id, too
    }


@given(_NAMESPACES, _IDS, _NAMESPACES, _IDS)
def test_no_slot_id_can_reach_another_key(space_a: str, id_a: str, space_b: str, id_b: str) -> None:
    """A key means one thing: the mapping from namespace, slot and kind to keys is injective."""
    a, b = _all_keys(space_a, id_a), _all_keys(space_b, id_b)
    assert len(a) == 11
    assert all(a[key] == b[key] for key in a.keys() & b.keys())


def test_keys_are_as_documented() -> None:
    """Whoever looks with redis-cli finds what the documentation says."""
    keys = Keys()
    assert (keys.lock("s1"), keys.record("s1")) == ("slot:s1:lock", "slot:s1:record")
    assert (keys.queue("s1"), keys.tickets("s1")) == ("slot:s1:queue", "slot:s1:tickets")
    assert (keys.locks, keys.expiry) == ("slots:locks", "slots:expiry")
    assert keys.locks_of("h1") == "holder:h1:locks"
    assert (keys.api_keys, keys.answer("n1")) == ("api:keys", "answer:n1")
    assert Keys("shop-7").lock("s1") == "shop-7:slot:s1:lock"


def test_an_id_of_an_enumeration_is_its_text() -> None:
    """As such it goes to Redis: a key that has its name in the enumeration would be another slot's."""

    class Court(str, Enum):  # noqa: UP042 - a StrEnum shows its text whatever is done to it
        CENTER = "court-1"

    assert Keys().of_locks([Court.CENTER]) == Keys().of_locks(["court-1"])


@pytest.mark.parametrize("namespace", [*_OUR_FIRST_WORDS, "a:b", "ü", "x" * 65, "a b", "a\n", 7])
def test_a_namespace_that_could_reach_other_keys_is_refused(namespace: str) -> None:
    """With a colon, or our own first words, a namespace could name a slot of another."""
    with pytest.raises(InvalidArgument, match="namespace must be 1 to 64 letters"):
        Keys(namespace)
