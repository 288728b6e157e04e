"""What Prometheus is told. Labels are routes, codes and reasons: never an id, a key or an address."""

from __future__ import annotations

import os
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_CALLS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The metrics of one application. With several workers, each shows the sum of all."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Histogram(
            "overbooked_http_request_seconds",
            "Time from a request to its answer",
            ["route", "status"],
            buckets=_SECONDS,
            registry=own,
        )
        self.refused = Counter(
            "overbooked_refused",
            "Answers that were errors, by code and reason",
            ["route", "code", "reason"],
            registry=own,
        )
        self.locks = Counter("overbooked_locks_granted", "Locks granted", registry=own)
        self.unlocks = Counter("overbooked_unlocks", "Unlocks that were not refused", registry=own)
        self.bookings = Counter("overbooked_bookings", "Bookings made", registry=own)
        self.store_errors = Counter(
            "overbooked_store_errors", "Calls that the store did not confirm, by outcome", ["outcome"], registry=own
        )
        self.batches = Histogram(
            "overbooked_batch_calls", "Calls that went to the store together", buckets=_CALLS, registry=own
        )
        self.streams = Gauge(
            "overbooked_streams", "Streams of events that are open", registry=own, multiprocess_mode="livesum"
        )
        self.streams_ended = Counter(
            "overbooked_streams_ended",
            "Streams that ended: the reader was gone or slow, its key revoked, or the server stopped",
            ["end"],
            registry=own,
        )
        self.events_sent = Counter("overbooked_events_sent", "Events written to streams", registry=own)
        self.granted = {"slot.lock": self.locks, "slot.unlock": self.unlocks, "booking.create": self.bookings}

    @lru_cache(maxsize=1024)  # noqa: B019 - it lives as long as the application
    def requests_of(self, route: str, status: int) -> Histogram:
        """The histogram of a route's answers with a status: looking it up costs more than telling it."""
        return self.requests.labels(route, status)

    def text(self) -> bytes:
        """All of them in the text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)
