"""What a server counts, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # texts
LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Counters:
    """Requests, texts, batches and latencies since the start, by format."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()  # its own, because the library's global one is of the whole process
        self.requests = Counter(
            "distill_requests", "Requests for predictions that were answered or refused, by HTTP status",
            ["format", "status"], registry=self._registry,
        )  # fmt: skip
        self.texts = Counter("distill_texts", "Texts that were answered", ["format"], registry=self._registry)
        self.waiting = Gauge(
            "distill_waiting_texts", "Texts that wait for the model", ["format"], registry=self._registry
        )
        self.batches = Histogram(
            "distill_batch_texts", "Texts that the model answered in one call", ["format"], buckets=BATCHES,
            registry=self._registry,
        )  # fmt: skip
        self.latencies = Histogram(
            "distill_request_seconds", "Seconds from a request's headers to its answer", ["format"], buckets=LATENCIES,
            registry=self._registry,
        )  # fmt: skip

    def shown(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self._registry)
