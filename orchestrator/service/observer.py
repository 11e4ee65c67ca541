"""What the service tells of itself: the counters and gauges that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Observer:
    """The metrics, in a registry of their own: two services in one process don't mix."""

    def __init__(self) -> None:
        self.registry = made = CollectorRegistry()
        self.runs = Gauge("slora_runs", "Runs by status", ["status"], registry=made)
        self.adapters = Gauge("slora_adapters", "Committed adapter versions", registry=made)
        self.oldest = Gauge(
            "slora_queue_oldest_seconds", "How long the oldest planned run waits", registry=made
        )
        self.submissions = Counter(
            "slora_submissions", "Jobs handed to a cluster", ["cluster", "outcome"], registry=made
        )
        self.up = Gauge(
            "slora_cluster_up", "Whether the cluster answered last", ["cluster"], registry=made
        )
        self.lost = Counter(
            "slora_attempts_lost", "Attempts whose job is gone", ["cluster"], registry=made
        )
        self.reconcile = Histogram(
            "slora_reconcile_seconds",
            "One pass over a cluster's runs",
            ["cluster"],
            buckets=SECONDS,
            registry=made,
        )
        self.firings = Counter(
            "slora_firings", "Moments of schedules by outcome", ["outcome"], registry=made
        )
        self.lag = Gauge(
            "slora_schedule_lag_seconds", "How late the last moment was fired", registry=made
        )
        self.requests = Counter(
            "slora_http_requests", "Answers", ["method", "route", "code"], registry=made
        )
        self.request_seconds = Histogram(
            "slora_http_request_seconds",
            "Until an answer began",
            ["route"],
            buckets=SECONDS,
            registry=made,
        )
