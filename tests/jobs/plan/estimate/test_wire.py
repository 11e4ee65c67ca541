"""Network traffic, counted by hand for each cause, and the arithmetic of the ring."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.plan.estimate.traffic import (
    Flow,
    count_all_gather_bytes,
    count_all_reduce_bytes,
    estimate_traffic,
)
from tests.jobs.plan.estimate.inputs import LOW_RANK, MASKS, SPARSE, make_inputs


def get_flow(cause: str, stage: str, sharding: str = "replicate", **changes: Any) -> Flow:
    [match] = [
        flow
        for flow in estimate_traffic(make_inputs(**changes), sharding)
        if (flow.cause, flow.stage) == (cause, stage)
    ]
    return match


def list_causes(sharding: str, **changes: Any) -> list[str]:
    return [flow.cause for flow in estimate_traffic(make_inputs(**changes), sharding)]


def test_a_single_worker_sends_nothing():
    assert estimate_traffic(make_inputs(workers=1, per_node=1), "cluster") == ()


@pytest.mark.parametrize("sharding", ["replicate", "node", "cluster"])
def test_gradients_are_a_ring_of_the_trained_parameters_and_four_numbers(sharding: str):
    sparse = get_flow("gradients", "sparse", sharding)
    low_rank = get_flow("gradients", "low-rank", sharding)
    # 2 x 3 / 4 of 4 bytes each.
    assert (sparse.sent, sparse.times) == (round(1.5 * 4 * (SPARSE + 4)), 6)
    assert (low_rank.sent, low_rank.times) == (round(1.5 * 4 * (LOW_RANK + 4)), 14)
    assert sparse.crosses_nodes and sparse.egress_per_step == sparse.sent


def test_bfloat16_halves_the_gradients_but_not_the_four_numbers():
    flow = get_flow("gradients", "sparse", exchange_bytes=2)
    assert flow.sent == 2 * 2 * SPARSE * 3 // 4 + 2 * 4 * 4 * 3 // 4


def test_local_steps_exchange_so_many_times_less_and_the_rest_at_the_end_of_a_stage():
    flow = get_flow("gradients", "low-rank", local={"sync_every": 4})
    # The losses of all four steps travel, and three numbers.
    assert (flow.times, flow.sent) == (4, 2 * 4 * (LOW_RANK + 7) * 3 // 4)
    assert flow.egress_per_step == round(flow.sent / 4)


def test_averaged_products_cost_the_factors_of_layers_that_others_average():
    local = {"sync_every": 4, "averages_products": True}
    plain = get_flow("gradients", "low-rank", local={"sync_every": 4}).sent
    # Worker 0 averages the first of both layers, and sends the second: 2 x (16 + 8).
    assert get_flow("gradients", "low-rank", local=local).sent - plain == 4 * 2 * (16 + 8)
    assert get_flow("gradients", "sparse", local=local).sent == (
        get_flow("gradients", "sparse", local={"sync_every": 4}).sent
    )


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [
        ("replicate", ["gradients", "hand-off", "gradients"]),
        ("node", ["gradients", "base", "hand-off", "gradients", "base"]),
        ("cluster", ["gradients", "base", "hand-off", "gradients", "base"]),
    ],
)
def test_only_a_sharded_base_is_gathered(sharding: str, expected: list[str]):
    assert list_causes(sharding) == expected


def test_the_base_is_gathered_once_forward_and_once_backward_by_every_micro_batch():
    flow = get_flow("base", "sparse", "cluster")
    # Each weight padded to a multiple of 4: 400, 64, 128, 12, 400; the backward needs no embedding.
    forward, backward = 1004, 604
    assert flow.sent == 3 * (forward + backward) // 4 * 4
    assert (flow.times, flow.per_step, flow.egress_per_step) == (12, 2, 2 * flow.sent)


def test_inside_a_machine_the_base_crosses_nothing():
    flow = get_flow("base", "sparse", "node")
    # Of 2 workers each: 400, 64, 128, 10, 400 and again without the embedding.
    assert flow.sent == (1002 + 602) // 2 * 4
    assert (flow.crosses_nodes, flow.egress_per_step, flow.egress) == (False, 0, 0)


def test_workers_of_a_single_machine_send_to_no_other():
    flows = estimate_traffic(make_inputs(workers=4, per_node=4), "cluster")
    assert flows and all(flow.egress == 0 and flow.sent > 0 for flow in flows)


def test_node_and_cluster_agree_on_a_single_machine():
    inputs = make_inputs(workers=4, per_node=4)
    assert estimate_traffic(inputs, "node") == estimate_traffic(inputs, "cluster")


def test_the_hand_off_sends_each_layers_factors_and_facts_once():
    flow = get_flow("hand-off", "low-rank")
    assert (flow.sent, flow.times) == (4 * (2 * (16 + 24) + 2 * 5), 1)
    with_residual = get_flow("hand-off", "low-rank", method={"keeps_residual": True})
    assert with_residual.sent - flow.sent == 4 * sum(MASKS.values())


@pytest.mark.parametrize("norm", ["outputs", "loss"])
def test_the_hand_offs_sketches_are_summed_over_the_workers(norm: str):
    method = {"sketch_norm": norm, "calibration_batches": 3}
    plain, flow = (get_flow("hand-off", "low-rank", method=change) for change in ({}, method))
    numbers = sum(
        (columns + (rows if norm == "loss" else 0)) * min(rows, columns, 2 * 2 + 8) + 2
        for rows, columns in make_inputs().method.targets.values()
    )
    assert flow.sent - plain.sent == pytest.approx(1.5 * 4 * numbers, abs=2)


def test_a_pass_for_sketches_gathers_a_sharded_base_for_each_sequence():
    for norm, backward in (("outputs", 0), ("loss", 604)):
        method = {"sketch_norm": norm, "calibration_batches": 3}
        _, gathers = (
            flow
            for flow in estimate_traffic(make_inputs(method=method), "cluster")
            if flow.cause == "hand-off"
        )
        assert gathers.times == 3 * -(-make_inputs().batching.sequences // 4)
        assert gathers.sent == 3 * (1004 + backward) // 4 * 4
        assert not gathers.exact
    assert "hand-off" in list_causes("cluster", method={"sketch_norm": "weights"})


def test_scores_are_summed_in_float64_over_all_entries_of_the_targets():
    flow = get_flow("calibration", "sparse", method={"scored": True})
    assert flow.sent == round(1.5 * 8 * 64) + round(1.5 * 8 * 128)
    assert "calibration" not in list_causes("replicate")


def test_evaluations_gather_the_base_forward_alone():
    batching = {"evaluates": True, "eval_micros": 3, "eval_every": 2}
    flow = get_flow("evaluation", "sparse", "cluster", batching=batching)
    # Before, after steps 2 and 4, at the end: 4 times 3 micro-batches.
    assert (flow.sent, flow.times, flow.per_step) == (3 * 1004 // 4 * 4, 12, 0)
    uncounted = get_flow("evaluation", "sparse", "cluster", batching={"evaluates": True})
    assert uncounted.times is None and uncounted.total is None


def test_by_epochs_nobody_knows_how_often():
    stages = tuple(dataclasses.replace(stage, steps=None) for stage in make_inputs().stages)
    flow = get_flow("gradients", "sparse", stages=stages)
    assert (flow.times, flow.total) == (None, None) and flow.egress_per_step > 0


@pytest.mark.parametrize(
    ("sharding", "expected"),
    [
        ("replicate", {"gradients": 1.5 * 4004, "base": 0.75 * 4004}),
        # Two micro-batches, each reduced whole: gloo has no reduce-scatter.
        ("cluster", {"gradients": 2 * round(1.5 * 4004), "base": 0}),
    ],
)
def test_full_fine_tuning_sends_all_of_the_model(sharding: str, expected: dict[str, int]):
    flows = estimate_traffic(make_inputs(kind="full"), sharding)
    assert {flow.cause: flow.sent for flow in flows} == expected


def test_full_fine_tuning_gathers_large_weights_again_unless_they_stay():
    def count_sent(size: int) -> int:
        sizes = {"large": size, "small": 99_999}
        return get_flow("base", "full", "cluster", kind="full", base={"sizes": sizes}).sent

    assert count_sent(400_000) == 3 * 400_000
    assert count_sent(4 * 10**9) == 2 * 3 * 4 * 10**9


def test_a_tied_embedding_is_gathered_for_the_output_too():
    inputs = make_inputs()
    tied = dataclasses.replace(inputs.base, tied=True)
    plain, more = list(inputs.base.iter_forward()), list(tied.iter_forward())
    assert (len(more), sum(more) - sum(plain)) == (len(plain) + 1, 400)
    assert sum(tied.iter_backward()) - sum(inputs.base.iter_backward()) == 400


@given(size=st.integers(0, 10**12), workers=st.integers(1, 4096))
def test_a_ring_sends_less_than_twice_the_size_and_an_all_gather_half_of_it(
    size: int, workers: int
):
    assert 0 <= count_all_reduce_bytes(size, workers) <= 2 * size
    assert (
        abs(count_all_reduce_bytes(size, workers) - 2 * count_all_gather_bytes(size, workers))
        <= 1 + size * 1e-9
    )
