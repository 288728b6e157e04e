"""What a run is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Literal

from overbooked_lock import arguments
from overbooked_lock.bench.scenarios import SCENARIOS
from overbooked_lock.errors import InvalidArgument

NAMESPACE = "overbooked-lock-bench"
MOST_SLOTS = 1_000_000
_SECRET = frozenset({"url", "key"})
_SHORTEST_RAMP, _LONGEST_RAMP = timedelta(milliseconds=100), timedelta(seconds=1)


def is_http(url: str | None) -> bool:
    """Whether a target is a server that speaks the API."""
    return url is not None and url.startswith(("http://", "https://"))


def _default_processes() -> int:
    return min(4, max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True, kw_only=True)
class Options:
    """Each field is checked here: :class:`~overbooked_lock.errors.InvalidArgument`.

    Attributes:
        scenario: One of ``overbooked_lock.bench.SCENARIOS``.
        url: ``redis://``, ``rediss://`` or ``unix://``: engines of ours on that server. ``http://`` or ``https://``: a
            server that speaks the API. None: a private server that lives as long as the run.
        key: The API key for HTTP; a secret one, since slots are made and removed.
        sidecar: The name of a sidecar, to ask that one over the Redis of ``url``.
        namespace: How the run's own namespace begins; what follows is made anew for each run.
        duration: How long load is given.
        warm_up: How long, before that, other slots are locked and unlocked; not measured. At its end the callers of
            a closed loop begin, one after the other.
        callers: In a closed loop: how many there are at a time, in all processes together. None: as the scenario
            has it.
        rate: Makes the loop an open one: so many arrivals a second, in all processes together, whether or not
            those before them have been served.
        arrivals: How they are spread: ``poisson`` as people come, or ``constant``.
        backlog: In an open loop: how many may be under way at a time, in all processes together. One more is dropped,
            and counted.
        processes: How many processes give the load.
        slots: How many slots there are. None: as the scenario has it.
        seed: Decides when arrivals are due, what each caller wants and what it does next.
        max_p99: A limit: the 99th percentile of each operation that does not wait for a slot.
        min_rate: A limit: operations answered a second.
    """

    scenario: str
    url: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    sidecar: str | None = None
    namespace: str = NAMESPACE
    duration: timedelta = timedelta(seconds=10)
    warm_up: timedelta = timedelta(seconds=1)
    callers: int | None = None
    rate: float | None = None
    arrivals: Literal["poisson", "constant"] = "poisson"
    backlog: int = 10_000
    processes: int = field(default_factory=_default_processes)
    slots: int | None = None
    seed: int = 1
    max_p99: timedelta | None = None
    min_rate: float | None = None

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise InvalidArgument("scenario", f"must be one of {', '.join(SCENARIOS)}")
        self._check_target()
        arguments.namespace(self.namespace)
        _at_least(self.duration, "duration", timedelta(milliseconds=100))
        _at_least(self.warm_up, "warm_up", timedelta(0))
        for name, least, most in (
            ("callers", 1, 100_000),
            ("backlog", 1, 1_000_000),
            ("processes", 1, 256),
            ("slots", 1, MOST_SLOTS),
            ("seed", 0, 1_000_000_000),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidArgument(name, f"must be {least:,} to {most:,}")
        if self.callers is not None and self.rate is not None:
            raise InvalidArgument("callers", "can't be given beside rate: a loop is closed, or open")
        if self.rate is not None and not 0 < self.rate <= 1_000_000:
            raise InvalidArgument("rate", "must be above 0 and at most 1,000,000 arrivals a second")
        if self.arrivals not in ("poisson", "constant"):
            raise InvalidArgument("arrivals", "must be 'poisson' or 'constant'")
        if self.max_p99 is not None:
            _at_least(self.max_p99, "max_p99", timedelta(microseconds=1))
        if self.min_rate is not None and not self.min_rate > 0:
            raise InvalidArgument("min_rate", "must be above 0")

    def _check_target(self) -> None:
        over_http = is_http(self.url)
        if self.url is not None and not over_http and not self.url.startswith(("redis://", "rediss://", "unix://")):
            allowed = "must start with redis://, rediss://, unix://, http:// or https://"
            bare = "://" not in self.url and "@" not in self.url  # before an @ stands what is secret
            raise InvalidArgument("url", f"{allowed}; for a Redis, redis://{self.url}" if bare else allowed)
        if self.url is not None:
            arguments.port_of(self.url) if over_http else arguments.server_url(self.url)
        if over_http and not self.key:
            raise InvalidArgument("key", "must be given for http://: a secret one, since slots are made and removed")
        if self.key and not over_http:
            raise InvalidArgument("key", "is for http:// alone")
        if self.sidecar is not None and (self.url is None or over_http):
            raise InvalidArgument("sidecar", "needs the Redis that it hears as url: redis://…")

    @property
    def ramp(self) -> timedelta:
        """How long before what is measured the callers of a closed loop begin: together they would be a rush."""
        if self.rate is not None or SCENARIOS[self.scenario].together:
            return timedelta(0)
        return min(max(self.warm_up / 2, _SHORTEST_RAMP), _LONGEST_RAMP)

    def facts(self) -> dict[str, str | int | float | bool | None]:
        """The options without what is secret; durations in seconds, under names that end in ``_s``."""
        found: dict[str, str | int | float | bool | None] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, timedelta) or one.name in ("duration", "warm_up", "max_p99"):
                found[f"{one.name}_s"] = None if value is None else value.total_seconds()
            elif one.name not in _SECRET:
                found[one.name] = value
        return found


def _at_least(value: timedelta, name: str, least: timedelta) -> None:
    if value < least:
        raise InvalidArgument(name, f"must be at least {least.total_seconds() * 1000:g} ms")
