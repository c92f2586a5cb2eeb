"""Counts of the service, for Prometheus; names of files and clients are not kept."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WHOLE = "From the start of a request to the end of its answer."


class Counters:
    """The counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        count = partial(Counter, registry=self.registry)
        times = partial(Histogram, buckets=_SECONDS, registry=self.registry)
        sizes = partial(Histogram, buckets=_IMAGES, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        model = ["model"]
        self.requests = count("medduet_requests", "Predictions by status.", ["status"])
        self.seconds = times("medduet_request_seconds", _WHOLE)
        self.in_progress = gauge("medduet_requests_in_progress", "Requests that are not answered.")
        self.queue = gauge("medduet_queue_images", "Images that wait.", model)
        self.batch_images = sizes("medduet_batch_images", "Images per batch.", model)
        self.batch_seconds = times("medduet_batch_seconds", "Time to compute a batch.", model)

    def add_batch(self, model: str, images: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_images.labels(model).observe(images)
        self.batch_seconds.labels(model).observe(seconds)
