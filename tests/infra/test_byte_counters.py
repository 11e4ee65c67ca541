"""Bytes by step, computed from tables of samples, without hosts and Ray."""

from __future__ import annotations

import pytest

from infra.two_hosts.byte_counters import TrafficSample, measure_stages, record_traffic
from jobs.store.runs.journal import Journal


def make_samples(*records: tuple[dict[str, object], int, int]) -> list[TrafficSample]:
    return [TrafficSample(float(time), (a, b), line) for time, (line, a, b) in enumerate(records)]


def make_step(stage: str) -> dict[str, object]:
    return {"stage": stage, "loss": 1.0}


def test_bytes_of_start_up_and_evaluations_belong_to_no_step():
    samples = make_samples(
        ({}, 0, 0),
        ({"event": "stage", "stage": "sparse"}, 5000, 5000),
        (make_step("sparse"), 5010, 5012),
        ({"evaluation": "step 1", "loss": 2.0}, 9000, 9000),
        (make_step("sparse"), 9010, 9012),
        ({"event": "stage", "stage": "low-rank"}, 20_000, 20_000),
        (make_step("low-rank"), 20_003, 20_001),
    )
    sparse, low_rank = measure_stages(samples)
    assert (sparse.stage, sparse.steps, sparse.bytes_per_step) == ("sparse", 2, 12)
    assert (low_rank.stage, low_rank.steps, low_rank.bytes_per_step) == ("low-rank", 1, 3)


def test_an_outlier_does_not_move_the_median():
    sent = [0, 10, 20, 520, 530, 540]
    samples = [
        TrafficSample(float(time), (total,), make_step("full")) for time, total in enumerate(sent)
    ]
    (full,) = measure_stages(samples)
    assert (full.bytes_per_step, full.least, full.most) == (10, 10, 500)
    assert full.seconds_per_step == pytest.approx(1.0)


def test_local_steps_share_the_bytes_of_their_exchange():
    sent = [0, 10, 10, 90, 90, 90, 210, 240, 240, 300, 301]
    samples = [
        TrafficSample(float(time), (total,), make_step("sparse")) for time, total in enumerate(sent)
    ]
    (sparse,) = measure_stages(samples, every=3)
    assert (sparse.bytes_per_step, sparse.least, sparse.most) == (30, 30, 40)
    assert sparse.steps == 10


def test_every_journal_line_gets_a_sample(tmp_path):
    journal, sent = Journal(tmp_path / "metrics.jsonl"), [0]
    recorded = list[tuple[int, ...]]()
    with record_traffic((journal,), lambda: (sent[0],)) as samples:
        for total in (100, 250):
            sent[0] = total
            journal.append(make_step("full"))
            while len(samples) < len(recorded) + 2:
                pass
            recorded.append(samples[-1].sent)
    assert recorded == [(100,), (250,)]
    assert samples[-1].line == {}
