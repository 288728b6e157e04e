"""The benchmark of the sidecar runs and reports. How fast anything was is not asserted: CI is no place for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_measures_both_sides() -> None:
    """For each number of clients."""
    options = ["--seconds", "0.1", "--rounds", "1", "--clients", "1", "20", "--json"]
    command = [sys.executable, "-m", "benchmarks.sidecar", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [result["callers"] for result in results] == [1, 20]
    assert all(result["sidecar"] > 0 and result["echo"] > 0 for result in results)
