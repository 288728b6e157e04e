"""The load harness: what a deployment bears, and whether it keeps its promises meanwhile.

::

    from datetime import timedelta
    from overbooked_lock.bench import Options, run

    if __name__ == "__main__":  # its processes are spawned
        found = run(Options(scenario="onsale", url="redis://localhost", duration=timedelta(seconds=30)))
        print(found.rate, found.passed, *found.conclusion)

``Run.model_dump_json()`` is what ``overbooked-lock bench --json`` prints as ``data``. Needs the extra ``[bench]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from overbooked_lock.bench.options import Options
from overbooked_lock.bench.scenarios import SCENARIOS, Scenario

if TYPE_CHECKING:
    from overbooked_lock.bench.harness import Watcher, run
    from overbooked_lock.bench.results import Run

__all__ = ["SCENARIOS", "Options", "Run", "Scenario", "Watcher", "run"]

_OF_EXTRA = {"Run": "results", "Watcher": "harness", "run": "harness"}


def __getattr__(name: str) -> Any:
    # The command line reads the options and the scenarios even where the extra is missing.
    if name not in _OF_EXTRA:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_OF_EXTRA[name]}"), name)
    except ModuleNotFoundError as missing:
        raise ImportError('the load harness is an extra: pip install "overbooked-lock[bench]"') from missing
