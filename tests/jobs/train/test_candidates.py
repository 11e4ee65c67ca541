"""The candidates' benchmark without a training: what is due, the table, the verdicts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slora.layers.sparse import SparseLinear, make_dense_delta
from slora.masks.mask import draw_random_mask
from tests.benchmarks.candidates import __main__ as candidates
from tests.benchmarks.candidates.arms import ARMS, CANDIDATES, HANDOFF, Arm
from tests.benchmarks.candidates.client_weights import compute_scales
from tests.benchmarks.candidates.decisions import (
    DueTraining,
    find_best_point,
    format_table,
    judge_candidate,
    list_due,
    summarize_arm,
)
from tests.benchmarks.candidates.joint_layer import JointLinear
from tests.benchmarks.candidates.lift import LIFT, REDUCED_RANK
from tests.benchmarks.candidates.rank_budget import allocate_ranks
from tests.benchmarks.quality.results_file import Results, append_result, read_results

LIFT_CANDIDATE, RANKS = CANDIDATES["lift"], CANDIDATES["ranks"]


def make_line(due: DueTraining, accuracy: float) -> dict[str, Any]:
    return {
        "key": due.key, "validation": accuracy, "validation_loss": 2 - accuracy,
        "test": accuracy, "test_loss": 2 - accuracy, "cpu_seconds": 70.0,
        "handoff": {"before": 1.0, "after": 1.5} if due.arm.trainer == "stages" else None,
    }  # fmt: skip


def run_all(
    names: list[str], score: Callable[[Arm, dict[str, float], int], float], seeds: int = 3
) -> tuple[Results, list[DueTraining]]:
    """Every training of these candidates, one at a time."""
    results: Results = {}
    order = list[DueTraining]()
    while due := list_due([CANDIDATES[name] for name in names], results, seeds):
        order.append(due[0])
        accuracy = score(due[0].arm, dict(due[0].point), due[0].seed)
        results[due[0].key] = make_line(due[0], accuracy)
    return results, order


def score_flat(arm: Arm, point: dict[str, float], seed: int) -> float:
    """Lower rates are better, and so are earlier seeds."""
    return 0.6 - point.get("adapter", 0.0) - 0.01 * seed


def test_grids_run_on_the_first_seed_and_the_best_point_on_the_others():
    results, order = run_all(["lift"], score_flat)
    grids = sum(len(ARMS[name].points) for name in LIFT_CANDIDATE.arms)
    assert [due.seed for due in order] == [0] * grids + [1] * 3 + [2] * 3
    assert len({due.key for due in order}) == len(order)
    for name in LIFT_CANDIDATE.arms:
        lowest = min(point["adapter"] for point in ARMS[name].points)
        assert find_best_point(ARMS[name], results) == {"adapter": lowest}
    assert not list_due([LIFT_CANDIDATE], results, 3)
    assert [due.seed for due in list_due([LIFT_CANDIDATE], results, 4)] == [3] * 3


def test_an_arm_that_follows_another_waits_for_its_best_point():
    _, order = run_all(["ranks"], score_flat)
    leader = [due.arm.name for due in order].index("ranks by outputs")
    assert {due.arm.name for due in order[:leader]} == {HANDOFF}
    followers = [due for due in order if due.arm.like]
    assert {tuple(due.point.items()) for due in followers} == {(("adapter", 2e-3),)}


def test_a_training_that_two_candidates_share_runs_once():
    _, order = run_all(["penalty", "ranks"], lambda arm, point, seed: 0.5)
    grid = [due for due in order if due.arm.name == HANDOFF and due.seed == 0]
    assert len(grid) == len(ARMS[HANDOFF].points)


def test_a_candidate_far_below_the_product_runs_on_no_other_seed():
    def score(arm: Arm, point: dict[str, float], seed: int) -> float:
        return {"lift": 0.4, "magnitude": 0.44}.get(arm.name, 0.5)

    results, order = run_all(["lift"], score)
    assert {due.arm.name for due in order if due.seed} == {"random", "magnitude"}
    row = summarize_arm(ARMS["lift"], results, 3)
    assert row is not None and row.seeds == (0,)


def test_a_point_that_diverged_is_never_the_best():
    arm = ARMS[HANDOFF]
    first, second = (DueTraining(arm, point, 0) for point in arm.points)
    results = {first.key: {"key": first.key, "unavailable": "diverged"}}
    assert find_best_point(arm, results) is None
    results[second.key] = make_line(second, 0.2)
    assert find_best_point(arm, results) == second.point
    results[second.key] = {"key": second.key, "unavailable": "diverged"}
    assert find_best_point(arm, results) is None
    assert not [due for due in list_due([RANKS], results, 3) if due.arm is arm]


@pytest.mark.parametrize(("gain", "is_better"), [(0.05, True), (0.015, False)])
def test_a_candidate_is_better_only_beyond_the_spread(gain, is_better):
    def score(arm: Arm, point: dict[str, float], seed: int) -> float:
        return 0.5 + gain * (arm.name == "lift") - 0.01 * seed

    results, _ = run_all(["lift"], score)
    verdicts = judge_candidate(LIFT_CANDIDATE, results, 3)
    assert [verdict.product for verdict in verdicts] == ["random", "magnitude"]
    assert [verdict.is_better for verdict in verdicts] == [is_better] * 2
    assert verdicts[0].differences == pytest.approx([gain] * 3)
    # Two seeds show nothing.
    assert not any(verdict.is_better for verdict in judge_candidate(LIFT_CANDIDATE, results, 2))


def test_the_table_has_eighty_columns_and_marks_the_edge_of_a_grid(tmp_path):
    results, _ = run_all(list(CANDIDATES), lambda arm, point, seed: 0.5 + 0.01 * seed)
    text = format_table(list(CANDIDATES.values()), results, 3)
    assert max(map(len, text.splitlines())) <= 80
    assert "1.000>1.500" in text and "51.0" in text and "50.0..52.0" in text
    assert "(+0.0..+0.0 by seed): not better" in text
    row = summarize_arm(ARMS["lift"], results, 3)
    assert row is not None and row.is_edge and "5e-3*" in text
    assert format_table([RANKS], {}, 3) == "no results yet"


def test_a_report_reads_the_file_and_trains_nothing(tmp_path, monkeypatch, capsys):
    path = tmp_path / "candidates.jsonl"
    monkeypatch.setattr(candidates, "RESULTS", path)
    results, _ = run_all(["lift"], score_flat)
    for line in results.values():
        append_result(path, line)
    size = path.stat().st_size
    assert candidates.main(["--only", "lift", "--report"]) == 0
    assert candidates.main(["--only", "lift"]) == 0  # Nothing is due.
    assert path.stat().st_size == size and read_results(path).keys() == results.keys()
    assert capsys.readouterr().out.count("lift - random") == 2


def test_ranks_go_where_a_number_holds_most_energy():
    energies = {"a": [9.0, 8.0, 7.0, 6.0], "b": [5.0, 1.0, 0.5, 0.1]}
    assert allocate_ranks(energies, {"a": 10, "b": 10}, 40) == {"a": 3, "b": 1}
    # The same directions are worth half of it where they take twice the numbers.
    assert allocate_ranks(energies, {"a": 20, "b": 2}, 28) == {"a": 1, "b": 4}
    assert allocate_ranks(energies, {"a": 10, "b": 10}, 1000) == {"a": 4, "b": 4}


def test_an_update_is_scaled_from_its_share_by_rows_to_the_one_it_should_have():
    updates: Any = [
        SimpleNamespace(client=3, rows=30, tokens=100),
        SimpleNamespace(client=5, rows=10, tokens=300),
    ]
    assert compute_scales(updates, "rows") == {3: 1.0, 5: 1.0}
    for weighting, shares in (("uniform", (0.5, 0.5)), ("tokens", (0.25, 0.75))):
        scales = compute_scales(updates, weighting)
        assert (0.75 * scales[3], 0.25 * scales[5]) == pytest.approx(shares)


def test_lift_scores_the_entries_that_remain_after_rank_reduction():
    torch.manual_seed(0)
    strong = 10 * torch.randn(40, REDUCED_RANK) @ torch.randn(REDUCED_RANK, 60)
    weight = strong + 0.01 * torch.randn(40, 60)
    score = LIFT.finish(weight, None, 0)
    assert torch.allclose(score, strong.abs(), atol=0.1)
    assert not torch.allclose(LIFT.finish(torch.randn(40, 60), None, 0), weight.abs(), atol=0.1)


def test_values_and_factors_that_are_trained_together_add_up():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 8)
    weight, x = base.weight.detach().clone(), torch.randn(3, 6)
    mask = draw_random_mask(seed=0, name="layer", shape=(8, 6), density=0.2)
    joint = JointLinear(SparseLinear(base, mask), rank=2, scale=2.0, seed=0, name="layer")
    with torch.no_grad():
        joint.sparse.values.normal_()
        joint.b_OR.normal_()
    weight += make_dense_delta(joint.sparse.values, mask) + 2.0 * joint.b_OR @ joint.a_RI
    expected = torch.nn.functional.linear(x, weight, base.bias)
    assert torch.allclose(joint(x), expected, atol=1e-5)
    joint(x).square().sum().backward()
    assert all(p.grad is not None for p in (joint.sparse.values, joint.a_RI, joint.b_OR))
