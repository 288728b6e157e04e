"""Where load goes: engines of ours on a Redis, a server that speaks the API, or a sidecar.

A :class:`Target` is one process's way there. All have the same verbs; ``can`` says which of them do anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from overbooked_lock.bench.scenarios import Scenario
from overbooked_lock.bench.targets.base import Target
from overbooked_lock.bench.targets.engine import EngineTarget
from overbooked_lock.bench.targets.http import HttpTarget
from overbooked_lock.bench.targets.sidecar import SidecarTarget
from overbooked_lock.errors import InvalidArgument

__all__ = ["Kind", "Target", "Where"]

Kind = Literal["embedded", "redis", "http", "sidecar"]


_TARGETS: Mapping[Kind, type[Target]] = {
    "embedded": EngineTarget,
    "redis": EngineTarget,
    "http": HttpTarget,
    "sidecar": SidecarTarget,
}


@dataclass(frozen=True)
class Where:
    """Which target, as it goes to each process.

    Attributes:
        kind: Which kind.
        url: Where it is.
        key: The API key for HTTP.
        sidecar: The sidecar's name.
        run_id: The run's.
        namespace: Of the run's own keys, where it has an engine.
    """

    kind: Kind
    url: str = field(repr=False)
    key: str = field(repr=False)
    sidecar: str
    run_id: str
    namespace: str

    @property
    def marker(self) -> str:
        """The ``resource_id`` of the run's slots: whoever finds one knows what it is."""
        return self.namespace

    @property
    def address(self) -> str:
        """The URL without user and password."""
        return re.sub("(?<=://).*@", "", self.url.partition("?")[0])

    @property
    def on_this_machine(self) -> bool:
        """Whether it shares our cores, as far as its address tells."""
        return self.url.startswith("unix://") or urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    def check(self, name: str, scenario: type[Scenario]) -> None:
        """Raises InvalidArgument if the target lacks what a scenario needs."""
        lacking = sorted(scenario.needs - _TARGETS[self.kind].can)
        if lacking:
            raise InvalidArgument(
                "scenario", f"{name!r} needs {', '.join(lacking)}, which a target of the kind {self.kind!r} lacks"
            )

    def open(self, process: int, connections: int) -> Target:
        """A way there for a process, with as many connections as callers need where each takes one."""
        return _TARGETS[self.kind](self, process, connections)
