"""How long a try waits for its reply, and whether its connection looks for it or sleeps: it learns from both."""

from __future__ import annotations

import pytest

from overbooked_lock.store import Spin, time_for_try

MICROSECOND = 1e-6


def looks(spin: Spin, looking_takes: float, sleeping_takes: float, replies: int) -> int:
    """For how many of so many replies it looks, where either way takes that long."""
    looked = 0
    for _ in range(replies):
        due = spin.is_due()
        spin.took((looking_takes if due else sleeping_takes) * MICROSECOND)
        looked += due
    return looked


def test_what_is_faster_is_done() -> None:
    """But for one reply in 64, else it would never learn that things have changed."""
    near, busy = Spin(), Spin()
    looks(near, 60, 120, 200)
    looks(busy, 120, 60, 200)
    assert looks(near, 60, 120, 640) == 630
    assert looks(busy, 120, 60, 640) == 10


def test_what_gains_nothing_is_not_done() -> None:
    """A far server: the reply comes no sooner, and to look costs processor time."""
    far = Spin()
    looks(far, 500, 500, 200)
    assert looks(far, 500, 500, 640) == 10


def test_it_learns_that_things_have_changed() -> None:
    """Within some hundreds of replies, either way."""
    spin = Spin()
    looks(spin, 120, 60, 500)
    looks(spin, 60, 120, 1000)
    assert looks(spin, 60, 120, 640) == 630
    looks(spin, 120, 60, 1000)
    assert looks(spin, 120, 60, 640) == 10


def test_one_reply_that_hung_says_little() -> None:
    """The server stood still for five seconds, once."""
    spin = Spin()
    looks(spin, 60, 120, 500)
    assert looks(spin, 5e6, 5e6, 1) == 1
    looks(spin, 60, 120, 1000)
    assert looks(spin, 60, 120, 640) == 630


@pytest.mark.parametrize(
    ("left", "seconds"),
    [(5, 2.5), (4.9, 2.1875), (2.5, 1.25), (0.9, 0.5), (0.3, 0.3), (-1, 0.001)],
)
def test_a_try_leaves_time_for_another(left: float, seconds: float) -> None:
    """It takes half of what is left, in round figures, so that a lost packet costs no call; unless that is little."""
    assert time_for_try(left, timeout=5) == pytest.approx(seconds)
