"""Bytes told apart by step: marks as tables, no host and no Ray."""

from __future__ import annotations

import pytest

from infra.two_hosts.counting import Mark, stages, watching
from jobs.store.journal import Journal


def _marks(*told: tuple[dict[str, object], int, int]) -> list[Mark]:
    return [Mark(float(at), (a, b), line) for at, (line, a, b) in enumerate(told)]


def _step(stage: str) -> dict[str, object]:
    return {"stage": stage, "loss": 1.0}


def test_bytes_of_start_up_and_evaluations_belong_to_no_step():
    marks = _marks(
        ({}, 0, 0),
        ({"event": "stage", "stage": "sparse"}, 5000, 5000),
        (_step("sparse"), 5010, 5012),
        ({"evaluation": "step 1", "loss": 2.0}, 9000, 9000),
        (_step("sparse"), 9010, 9012),
        ({"event": "stage", "stage": "low-rank"}, 20_000, 20_000),
        (_step("low-rank"), 20_003, 20_001),
    )
    sparse, low_rank = stages(marks)
    assert (sparse.stage, sparse.steps, sparse.bytes_per_step) == ("sparse", 2, 12)
    assert (low_rank.stage, low_rank.steps, low_rank.bytes_per_step) == ("low-rank", 1, 3)


def test_a_slow_moment_of_ray_does_not_move_the_median():
    sent = [0, 10, 20, 520, 530, 540]
    marks = [Mark(float(at), (total,), _step("full")) for at, total in enumerate(sent)]
    (full,) = stages(marks)
    assert (full.bytes_per_step, full.least, full.most) == (10, 10, 500)
    assert full.seconds_per_step == pytest.approx(1.0)


def test_local_steps_share_the_bytes_of_their_exchange():
    sent = [0, 10, 10, 90, 90, 90, 210, 240, 240, 300, 301]
    marks = [Mark(float(at), (total,), _step("sparse")) for at, total in enumerate(sent)]
    (sparse,) = stages(marks, every=3)
    assert (sparse.bytes_per_step, sparse.least, sparse.most) == (30, 30, 40)
    assert sparse.steps == 10


def test_a_watched_journal_leaves_a_mark_for_every_line(tmp_path):
    journal, sent = Journal(tmp_path / "metrics.jsonl"), [0]
    seen = list[tuple[int, ...]]()
    with watching((journal,), lambda: (sent[0],)) as marks:
        for total in (100, 250):
            sent[0] = total
            journal.append(_step("full"))
            while len(marks) < len(seen) + 2:
                pass
            seen.append(marks[-1].sent)
    assert seen == [(100,), (250,)]
    assert marks[-1].line == {}
