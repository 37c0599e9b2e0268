"""What the server counts, for Prometheus: numbers alone, and no text of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rprm.records import StepReward

#: Upper ends of the buckets of seconds: from an answer at hand to the longest judging.
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        labels = ["route", "status"]
        self._requests = Counter("rprm_requests", "Requests by route and status.", labels, **made)
        self._seconds = Histogram(
            "rprm_request_seconds", "Seconds to an answer.", ["route"], buckets=_SECONDS, **made
        )  # fmt: skip
        self.under_way = Gauge("rprm_requests_under_way", "Requests that use the models, or read runs.", **made)
        self._steps = Counter("rprm_steps", "Steps judged, by whether they have a reward.", ["scored"], **made)
        self._analyses = Counter("rprm_analyses", "Analyses written.", **made)
        self._tokens = Counter("rprm_generated_tokens", "Tokens generated, by model.", ["model"], **made)
        self.cached = Counter("rprm_cached_answers", "Rewards that were given before, and kept.", **made)

    def answered(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Count a request, under the route that took it: a path that nobody serves is no label of its own."""
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, step: StepReward) -> None:
        self._steps.labels("no" if step.reward is None else "yes").inc()

    def paid(self, key: str, piece: Mapping[str, Any]) -> None:
        """Count a piece of work as it is done, whether or not its request gets an answer: an analysis. (A `Ledger`'s
        `record`; pieces without tokens are the policy's and a classifier's.)"""
        if "p_yes" in piece:
            self._analyses.inc()
            self.generated("judge", piece["num_tokens"])

    def generated(self, model: str, num_tokens: int) -> None:
        self._tokens.labels(model).inc(num_tokens)

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self.registry)
