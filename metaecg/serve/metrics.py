"""Counts and durations for Prometheus; no patient, no organisation and no token is named."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UNKNOWN = "unknown"
"""Path of requests that lead nowhere: their text is the client's, and there may be any number."""
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60)


class Metrics:
    """The server's figures, in a registry of their own: two servers in one process don't mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.requests = Counter(
            "metaecg_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            **options,
        )
        self.request_seconds = Histogram(
            "metaecg_request_seconds", "Time to answer.", ["route"], buckets=SECONDS, **options
        )
        self.in_flight = Gauge("metaecg_requests_in_flight", "Requests being answered.", **options)
        self.windows = Counter("metaecg_windows_judged", "Windows and beats judged.", **options)
        self.jobs = Counter(
            "metaecg_jobs_ended", "Jobs that ended, by state.", ["state"], **options
        )
        self.fit_seconds = Histogram(
            "metaecg_personalization_seconds",
            "From claiming a personalization to its end.",
            buckets=SECONDS,
            **options,
        )
        self.requeued = Counter("metaecg_jobs_requeued", "Jobs found without a server.", **options)
        self.store_errors = Counter(
            "metaecg_store_unavailable", "Requests answered 503 for the store's sake.", **options
        )

    def text(self, counts: dict[str, float]) -> bytes:
        """Return all figures in Prometheus' text form, `counts` of the store and caches beside them."""
        lines = [generate_latest(self.registry)]
        registry = CollectorRegistry()
        registry.register(_Counts(counts))
        return b"".join([*lines, generate_latest(registry)])


class _Counts:
    """Numbers that are read when they are asked for."""

    def __init__(self, counts: dict[str, float]) -> None:
        self._counts = counts

    def collect(self):
        for name, value in sorted(self._counts.items()):
            yield GaugeMetricFamily(
                f"metaecg_{name}", f"Now: {name.replace('_', ' ')}.", value=value
            )


class Timed:
    """Counts and times every request, under the route's pattern instead of its address."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.in_flight.dec()
            route = route_of(scope)
            self.metrics.requests.labels(_method(scope), route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - begin)


def route_of(scope: Scope) -> str:
    """Return the pattern of the route that a request was led to, with names in braces."""
    return getattr(scope.get("route"), "path", UNKNOWN)


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else UNKNOWN
