"""Metrics of the service for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from jobs.train.monitor.phases import RunStart

DURATION_BUCKETS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
START_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 900, 3600)


class ServiceMetrics:
    """Metrics in their own registry, so that two services in one process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.runs = Gauge("slora_runs", "Runs by status", ["status"], registry=registry)
        self.adapters = Gauge("slora_adapters", "Committed adapter versions", registry=registry)
        self.oldest_planned_s = Gauge(
            "slora_queue_oldest_seconds",
            "Waiting time of the oldest planned run",
            registry=registry,
        )
        self.submissions = Counter(
            "slora_submissions",
            "Jobs submitted to a cluster",
            ["cluster", "outcome"],
            registry=registry,
        )
        self.cluster_up = Gauge(
            "slora_cluster_up",
            "1 if the cluster answered the last poll, otherwise 0",
            ["cluster"],
            registry=registry,
        )
        self.cluster_age_s = Gauge(
            "slora_cluster_last_answer_seconds",
            "Seconds since the cluster answered this service, or since the service started",
            ["cluster"],
            registry=registry,
        )
        self.loop_age_s = Gauge(
            "slora_loop_age_seconds",
            "Seconds since a loop of the service made progress",
            ["loop"],
            registry=registry,
        )
        self.item_failures = Counter(
            "slora_item_failures",
            "Items that the service failed at unexpectedly",
            ["kind"],
            registry=registry,
        )
        self.foreign_jobs = Gauge(
            "slora_foreign_jobs",
            "Live jobs with this service's name that another registry submitted",
            ["cluster"],
            registry=registry,
        )
        self.lost_attempts = Counter(
            "slora_attempts_lost", "Attempts whose job was lost", ["cluster"], registry=registry
        )
        self.phase_seconds = Histogram(
            "slora_run_phase_seconds",
            "Phases of the start of attempts that have ended, from submission to the first step",
            ["phase"],
            buckets=START_BUCKETS_S,
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "slora_reconcile_seconds",
            "Duration of one pass over a cluster's runs",
            ["cluster"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        self.firings = Counter(
            "slora_firings", "Firings of schedules by outcome", ["outcome"], registry=registry
        )
        self.schedule_lag_s = Gauge(
            "slora_schedule_lag_seconds", "Delay of the last firing", registry=registry
        )
        self.requests = Counter(
            "slora_http_requests", "HTTP responses", ["method", "route", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "slora_http_request_seconds",
            "Time to the start of a response",
            ["route"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )

    def observe_starts(self, starts: Iterable[RunStart], attempt: int) -> None:
        """Count the phases of an attempt's starts, once the attempt has ended."""
        for start in starts:
            for phase, seconds in start.phases.items() if start.attempt == attempt else ():
                self.phase_seconds.labels(phase).observe(seconds)
