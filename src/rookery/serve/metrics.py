"""What ``/metrics`` tells Prometheus of one service."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ROWS = (1, 10, 50, 100, 250, 500, 1_000, 2_000, 4_000, 8_000)


class ServiceMetrics:
    """Counters with a registry of their own: several services may live in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        labels = ("route", "status")
        self.requests = Counter("rookery_requests", "Requests that were answered.", labels, registry=registry)
        self.request_seconds = Histogram(
            "rookery_request_seconds",
            "From the headers of a request to the last byte handed to the network.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.under_way = Gauge("rookery_requests_under_way", "Requests of /v1 being served.", registry=registry)
        self.abandoned = Counter(
            "rookery_requests_abandoned", "Requests whose client left before the answer.", registry=registry
        )
        self.batch_requests = Histogram(
            "rookery_batch_requests", "Requests of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self.batch_rows = Histogram("rookery_batch_rows", "Posts of a batch.", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "rookery_batch_seconds", "Time of ranking a batch.", buckets=_SECONDS, registry=registry
        )
        self.reloads = Counter(
            "rookery_reloads", "Bundles that were opened behind the first.", ("outcome",), registry=registry
        )
        self.bundle = Gauge("rookery_bundle", "1 for the bundle that is served.", ("version",), registry=registry)

    def serving(self, version: str) -> None:
        """``version`` is what is served from now on."""
        self.bundle.clear()
        self.bundle.labels(version).set(1)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
