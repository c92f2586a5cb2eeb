"""Counts of the service, for Prometheus; names of files and clients are not kept."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Counters:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "medduet_requests", "Predictions by status.", ["status"], registry=registry
        )
        self.seconds = Histogram(
            "medduet_request_seconds",
            "From the start of a request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_images = Histogram(
            "medduet_batch_images",
            "Images per batch.",
            ["model"],
            buckets=_IMAGES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "medduet_batch_seconds",
            "Time to compute a batch.",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_progress = Gauge(
            "medduet_requests_in_progress",
            "Requests that are read, wait or are computed.",
            registry=registry,
        )
        self.queue = Gauge(
            "medduet_queue_images", "Images that wait.", ["model"], registry=registry
        )
        ProcessCollector(registry=registry)

    def add_batch(self, model: str, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_images.labels(model).observe(images)
        self.batch_seconds.labels(model).observe(seconds)
