"""What Prometheus reads at /metrics: numbers alone, with labels from fixed sets."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self, queue_length: Callable[[], int], in_progress: Callable[[], int]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finetune_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.errors = Counter(
            "finetune_errors", "Requests answered with a status of 400 or more.", ("route",), registry=self.registry
        )
        self.seconds = Histogram(
            "finetune_request_seconds", "From first byte to last.", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.batch_sizes = Histogram(
            "finetune_batch_size", "Images predicted together.", buckets=SIZES, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "finetune_batch_seconds", "Time of the network per batch.", buckets=SECONDS, registry=self.registry
        )
        self.unusual = Counter(
            "finetune_unusual_images",
            "Images farther from the training images than 99 % of val.",
            registry=self.registry,
        )
        for name, about, value in (
            ("finetune_queue_length", "Images that wait for the network.", queue_length),
            ("finetune_requests_in_progress", "Predictions that are read, decoded or waiting.", in_progress),
        ):
            Gauge(name, about, registry=self.registry).set_function(value)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """A request that was answered; `route` is a path of the program, never one that a client typed."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if status >= 400:
            self.errors.labels(route).inc()

    def observe_batch(self, size: int, seconds: float) -> None:
        """A batch that the network has predicted."""
        self.batch_sizes.observe(size)
        self.batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
