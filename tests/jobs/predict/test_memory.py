"""Memory by line, counted by hand, and what each way of holding the base changes in it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.predict.memory import Memory, predict_memory
from tests.jobs.predict.asked import LOW_RANK, MASKS, SPARSE, question


def memory(sharding: str = "replicate", **changes: Any) -> Memory:
    return predict_memory(question(**changes), sharding)


def lines(phase: str, sharding: str = "replicate", **changes: Any) -> dict[str, int]:
    [found] = [one for one in memory(sharding, **changes).phases if one.name == phase]
    return dict(found.lines)


def test_the_phases_are_those_of_the_run_and_the_largest_is_the_peak():
    found = memory()
    assert [phase.name for phase in found.phases] == ["loading", "sparse", "hand-off", "low-rank"]
    assert found.peak == max(phase.total for phase in found.phases) == found.worst.total
    assert [phase.name for phase in memory(kind="lora").phases] == ["loading", "low-rank"]


SHARES = {
    "replicate": (4 * 1001, None),
    "node": (4 * (200 + 32 + 64 + 5 + 200), 4 * 400),
    "cluster": (4 * (100 + 16 + 32 + 3 + 100), 4 * 400),
}


@pytest.mark.parametrize(("sharding", "wanted"), SHARES.items(), ids=SHARES)
def test_the_base_is_whole_or_dealt_out_and_its_largest_weight_gathered(
    sharding: str, wanted: tuple[int, int | None]
):
    found = lines("sparse", sharding)
    assert (found["base"], found.get("gathered")) == wanted
    assert lines("loading", sharding)["base"] == 4 * 1001


@pytest.mark.parametrize("sharding", SHARES)
def test_what_is_trained_is_whole_on_every_worker(sharding: str):
    sparse, low_rank = lines("sparse", sharding), lines("low-rank", sharding)
    for found, n in ((sparse, SPARSE), (low_rank, LOW_RANK)):
        held = (found["trained"], found["gradients"], found["optimiser"])
        assert held == (4 * n, 4 * n, 8 * n)
    assert sparse["masks"] == 12 * sum(MASKS.values())


def test_a_bfloat16_base_is_half_and_only_its_head_has_rounded_copies():
    found = lines("sparse", dtype_bytes=2, method={"head": 7})
    assert found["base"] == 2 * 1001
    assert (found["trained"], found["gradients"]) == (4 * SPARSE + 14, 4 * SPARSE + 14)


def test_local_steps_hold_what_all_agreed_on_and_an_outer_momentum():
    assert lines("sparse", local={"every": 2})["optimiser"] == 12 * SPARSE
    assert lines("sparse", local={"every": 2, "momentum": True})["optimiser"] == 16 * SPARSE
    assert lines("sparse", local={"momentum": True})["optimiser"] == 8 * SPARSE


def test_an_exchange_in_bfloat16_takes_a_bucket_of_its_own():
    assert lines("sparse", exchange_bytes=2)["gradients"] == 6 * SPARSE


def test_a_snapshot_is_counted_where_checkpoints_are_asked_for():
    assert "snapshot" not in lines("sparse")
    assert lines("sparse", batching={"checkpoint_every": 5})["snapshot"] == 12 * SPARSE


def test_activations_are_those_of_one_micro_batch_counted_by_hand():
    # 10 tokens, one layer. In float32 a token keeps: both norms' inputs and outputs, 4 x 8; q, k,
    # v and the output, 4 x 8; gate, its activation, up and their product, 4 x 16; ranks, 2 a layer,
    # in the low-rank stage; a float32 for each of 2 heads. The mask of 10 x 10. One MLP's
    # gradients, 4 x 16.
    kept = 4 * (10 * (4 * 8 + 4 * 8 + 4 * 16 + 2) + 10 * 10)
    assert lines("sparse")["activations"] == kept + 4 * 10 * 4 * 16
    assert lines("low-rank")["activations"] == kept + 4 * 10 * (2 * 2) + 4 * 10 * 4 * 16
    twice = lines("sparse", batching={"micro": 2})["activations"]
    assert twice == 2 * lines("sparse")["activations"]


def test_layers_that_keep_no_whole_input_save_less():
    narrow = lines("sparse", method={"inputs": False})["activations"]
    assert lines("sparse")["activations"] - narrow == 4 * 10 * (2 * 8 + 16)


def test_logits_are_four_copies_of_the_vocabulary_for_every_token_and_none_for_a_classifier():
    assert lines("sparse")["logits"] == 4 * 4 * 10 * 50
    assert "logits" not in lines("sparse", classifies=True)


def test_on_a_gpu_there_is_neither_a_heap_nor_a_process_to_count():
    found = memory(place={"cpu": False})
    assert [phase.name for phase in found.phases] == ["sparse", "hand-off", "low-rank"]
    named = {line for phase in found.phases for line in phase.lines}
    assert not named & {"runtime", "allocator", "snapshot"}


def test_full_fine_tuning_deals_out_the_optimiser_and_in_cluster_everything():
    whole, dealt = (lines("full", way, kind="full") for way in ("replicate", "cluster"))
    assert (whole["base"], whole["gradients"]) == (4 * 1001, 4 * 1001)
    assert (whole["trained"], whole["optimiser"]) == (1001, 2 * 1001)
    assert (dealt["base"], dealt["gradients"], dealt["gathered"]) == (1001, 1001, 4 * 400)
    node = lines("full", "node", kind="full")
    assert node["base"] == 1001 + 2 * 1001
