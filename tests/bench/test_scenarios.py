"""Each scenario on a real server: what it counts adds up, its invariants hold, and nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from overbooked_lock.bench import SCENARIOS, Run

CALLERS, SLOTS = 20, {"waiters": 2}
IN_TWO_PROCESSES = ("hotspot", "expiry")

_found: dict[str, Run] = {}


@pytest.fixture
def found(scenario: str, play: Callable[..., Run], raw: redis.Redis) -> Run:
    """What a scenario finds in half a second, once for all tests; the Redis is left as it was."""
    if scenario not in _found:
        before = set(raw.keys())
        _found[scenario] = play(
            scenario, callers=CALLERS, slots=SLOTS.get(scenario, CALLERS), processes=1 + (scenario in IN_TWO_PROCESSES)
        )
        assert set(raw.keys()) <= before  # what others left there may end meanwhile
    return _found[scenario]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_holds_its_promises(found: Run) -> None:
    """It does something, and every invariant holds; the document is read back as it was written."""
    assert found.rate > 0
    assert found.invariants
    assert [verdict.said for verdict in found.invariants if verdict.holds is not True] == []
    assert found.passed
    assert found.failures == {}
    assert Run.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("scenario", ["hotspot"])
def test_the_figures_agree_with_each_other(found: Run) -> None:
    """Seconds, operations, histograms, contention and batches tell of the same load, of all processes."""
    operations = {operation.name: operation for operation in found.operations}
    lock = operations["lock"]
    assert lock.latency.count == lock.done + lock.refused
    assert lock.latency.decoded().get_total_count() == lock.latency.count
    busiest = found.contention.busiest
    assert sum(slot.attempts for slot in busiest) == lock.latency.count
    assert sum(slot.wins for slot in busiest) == lock.done
    assert sum(slot.refusals for slot in busiest) == lock.refused
    assert sum(band.attempts for band in found.contention.bands) == lock.latency.count
    assert 0 <= operations["unlock"].done - lock.done <= CALLERS  # what was locked before the start
    everything = sum(operation.latency.count for operation in found.operations)
    assert sum(sum(second.outcomes.values()) for second in found.seconds) == everything
    assert sum(sum(second.by_operation.values()) for second in found.seconds) == everything
    assert sum(operation.rate for operation in found.operations) == pytest.approx(found.rate)
    assert sum(batch.operations * batch.batches for batch in found.batches) >= everything - CALLERS
    assert len(found.harness_cpu) == 2
    assert found.server_cpu is not None
    assert found.options["callers"] == 20


@pytest.mark.parametrize("scenario", ["onsale"])
def test_an_onsale_sells_each_seat_once(found: Run) -> None:
    """Every shopper ends in one way, and no more seats are sold than there are."""
    counts = found.counts
    assert counts["shoppers"] == sum(counts[end] for end in ("sold", "abandoned", "turned_away", "not_confirmed"))
    assert 0 < counts["sold"] <= 20
    assert counts["turned_away"] > 0
    assert counts["double_bookings"] == 0
    assert any("no seat was sold twice" in sentence for sentence in found.conclusion)


@pytest.mark.parametrize("scenario", ["mixed"])
def test_the_best_seats_are_wanted_most(found: Run) -> None:
    """Tastes are Zipf's: the seat in front is asked for far more often than the tenth."""
    attempts = [slot.attempts for slot in found.contention.busiest]
    assert attempts[0] > 4 * attempts[9]


@pytest.mark.parametrize("scenario", ["groups"])
def test_the_callers_of_a_closed_loop_begin_before_what_is_measured(found: Run) -> None:
    """Groups that came before the start are counted, for the store has seen them; their latencies are not."""
    [asked] = [operation for operation in found.operations if operation.name == "lock_many"]
    assert 0 < asked.latency.count == asked.done + asked.refused < sum(found.counts.values())


@pytest.mark.parametrize("scenario", ["waiters"])
def test_waits_and_handovers_are_told_apart(found: Run) -> None:
    """From what limits are put on; who gives a slot up hands it to the next, and how long that takes is told."""
    assert {operation.name: operation.waits for operation in found.operations} == {
        "lock (waiting)": True,
        "unlock": False,
    }
    [handover] = found.spans
    assert handover.name == "handover"
    assert handover.latency.count > 0


@pytest.mark.parametrize("scenario", ["expiry"])
def test_every_end_of_a_wave_is_timed(found: Run) -> None:
    """Each lock that ended has one event, in the process that made it as in the other one."""
    [lag] = found.spans
    assert found.counts["locks_that_ended"] == lag.latency.count > 0
    assert found.counts["not_told_of"] == found.counts["told_of_again"] == 0
