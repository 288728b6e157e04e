"""The benchmark of waiting runs and reports. How fast anything was is not asserted: CI is no place for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_wake_ups_and_ends() -> None:
    """Ours and the peer's, and what an idle engine costs."""
    options = ["--seconds", "0.5", "--rounds", "1", "--locks", "200", "--slots", "20", "--json"]
    command = [sys.executable, "-m", "benchmarks.events", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    wake_ups, ends = report["results"][:3], report["results"][3:]
    assert [result["workload"] for result in wake_ups] == [
        "1 waiter",
        "20 waiters on 20 slots",
        "20 slots at the same moment",
    ]
    assert all(result["ours"]["count"] >= 2 and result["redis_py"]["count"] >= 2 for result in wake_ups)
    assert [result["ours"]["count"] >= least for result, least in zip(ends, (200, 4), strict=True)] == [True, True]
    assert [isinstance(result["met"], bool) for result in report["results"]] == [True, True, False, True, True]
    assert report["idle"]["calls"] > 0
