"""What a service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Counters:
    """Counts requests, batches and what waits; names of files and clients are not kept.

    Args:
        waiting: of each model, a function that says how many pictures wait.
        requests: says how many requests are being answered.
    """

    def __init__(
        self, waiting: Mapping[str, Callable[[], int]], requests: Callable[[], int]
    ) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "medduet_requests",
            "Requests for a prediction, by the status they were answered with.",
            ["status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "medduet_request_seconds",
            "From the start of a request for a prediction to the end of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batch_images = Histogram(
            "medduet_batch_images",
            "Images that were computed together.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self._registry,
        )
        self._batch_seconds = Histogram(
            "medduet_batch_seconds",
            "How long a batch was computed.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        in_progress = Gauge(
            "medduet_requests_in_progress",
            "Requests that are read, wait or are computed.",
            registry=self._registry,
        )
        in_progress.set_function(requests)
        queue = Gauge(
            "medduet_queue_images",
            "Images that wait to be computed.",
            ["model"],
            registry=self._registry,
        )
        for name, count in waiting.items():
            queue.labels(name).set_function(count)
        ProcessCollector(registry=self._registry)

    def batch(self, model: str, images: int, seconds: float) -> None:
        """Note a batch."""
        self._batch_images.labels(model).observe(images)
        self._batch_seconds.labels(model).observe(seconds)

    def text(self) -> bytes:
        """Return all counts in the text format of Prometheus."""
        return generate_latest(self._registry)
