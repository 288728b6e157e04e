"""The quick benchmark runs and reports every workload. How fast anything was is not asserted: CI is no place for it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKLOADS = ["async, 200 callers", "async, 1 caller", "sync, 1 thread"]


def _run(*options: str) -> str:
    command = [sys.executable, "-m", "benchmarks.quick", "--seconds", "0.1", "--rounds", "1", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_table_has_every_workload_and_the_circumstances() -> None:
    output = _run()
    for workload in WORKLOADS:
        [row] = [line for line in output.splitlines() if line.strip().startswith(workload)]
        assert row.split()[-1] in {"ok", "missed"}
    for name in ("overbooked-lock", "python", "redis-py", "hiredis", "uvloop", "server", "cores", "TCP over loopback"):
        assert name in output


def test_json_has_the_same_over_the_unix_socket_too() -> None:
    report = json.loads(_run("--json", "--transport", "unix"))
    assert [result["workload"] for result in report["results"]] == WORKLOADS
    for result in report["results"]:
        assert result["ours"] > 0
        assert result["redis_py"] > 0
        assert result["range"][0] <= result["ratio"] <= result["range"][1]
        assert isinstance(result["met"], bool)
    assert report["circumstances"]["transport"] == "Unix socket"
    assert report["circumstances"]["rounds"] == 1
