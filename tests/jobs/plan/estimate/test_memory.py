"""Memory by line, counted by hand, and how each sharding changes it."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.plan.estimate.activations import LOSS_CHUNK
from jobs.plan.estimate.memory import DEEPSPEED, MemoryEstimate, estimate_memory
from slora.kernels.probe_limits import COMPILER_BYTES
from tests.jobs.plan.estimate.inputs import LOW_RANK, MASKS, SPARSE, make_inputs


def estimate_phases(sharding: str = "replicate", **changes: Any) -> MemoryEstimate:
    return estimate_memory(make_inputs(**changes), sharding)


def get_lines(phase: str, sharding: str = "replicate", **changes: Any) -> dict[str, int]:
    [phases] = [
        phase_lines
        for phase_lines in estimate_phases(sharding, **changes).phases
        if phase_lines.name == phase
    ]
    return dict(phases.lines)


def test_the_phases_are_those_of_the_run_and_the_largest_is_the_peak():
    memory = estimate_phases()
    assert [phase.name for phase in memory.phases] == ["loading", "sparse", "hand-off", "low-rank"]
    assert memory.peak == max(phase.total for phase in memory.phases) == memory.worst.total
    assert [phase.name for phase in estimate_phases(kind="lora").phases] == ["loading", "low-rank"]


SHARES = {
    "replicate": (4 * 1001, None),
    "node": (4 * (200 + 32 + 64 + 5 + 200), 4 * 400),
    "cluster": (4 * (100 + 16 + 32 + 3 + 100), 4 * 400),
}


@pytest.mark.parametrize(("sharding", "expected"), SHARES.items(), ids=SHARES)
def test_a_sharded_base_is_split_and_its_largest_weight_gathered(
    sharding: str, expected: tuple[int, int | None]
):
    lines = get_lines("sparse", sharding)
    assert (lines["base"], lines.get("gathered")) == expected
    assert get_lines("loading", sharding)["base"] == 4 * 1001


@pytest.mark.parametrize("sharding", SHARES)
def test_every_worker_holds_all_trained_parameters(sharding: str):
    sparse, low_rank = get_lines("sparse", sharding), get_lines("low-rank", sharding)
    for lines, n in ((sparse, SPARSE), (low_rank, LOW_RANK)):
        held = (lines["trained"], lines["gradients"], lines["optimiser"])
        assert held == (4 * n, 4 * n, 8 * n)
    assert sparse["masks"] == 16 * sum(MASKS.values())


def test_under_masks_a_worker_holds_both_factors_whole_what_is_read_of_them_and_positions():
    held = 4 * LOW_RANK + 12 * (LOW_RANK - 5)
    lines = get_lines("low-rank", method={"masks_factors": True, "head": 5})
    # In float32 the product has only a B of its own, with the scale in it.
    assert lines["factors"] == held + 4 * 2 * (8 + 16)
    lines = get_lines("low-rank", method={"masks_factors": True, "head": 5}, dtype_bytes=2)
    assert lines["factors"] == held + 2 * LOW_RANK
    assert "factors" not in get_lines("low-rank")
    assert "factors" not in get_lines("sparse", method={"masks_factors": True})


def test_the_compiler_of_kernels_is_counted_where_one_is_probed():
    wide = {"targets": {"wide": (4096, 4096)}, "uses_kernels": True}
    for stage in ("sparse", "low-rank"):
        assert get_lines(stage, method=wide)["compiler"] == COMPILER_BYTES
    assert "compiler" not in get_lines("sparse", method=wide | {"uses_kernels": False})
    assert "compiler" not in get_lines("sparse", method={"uses_kernels": True})


def test_a_bfloat16_base_is_half_and_only_its_head_has_rounded_copies():
    lines = get_lines("sparse", dtype_bytes=2, method={"head": 7})
    assert lines["base"] == 2 * 1001
    assert (lines["trained"], lines["gradients"]) == (4 * SPARSE + 14, 4 * SPARSE + 14)


def test_local_steps_hold_what_all_agreed_on_and_an_outer_momentum():
    assert get_lines("sparse", local={"sync_every": 2})["optimiser"] == 12 * SPARSE
    assert (
        get_lines("sparse", local={"sync_every": 2, "momentum": True})["optimiser"] == 16 * SPARSE
    )
    assert get_lines("sparse", local={"momentum": True})["optimiser"] == 8 * SPARSE


def test_an_exchange_in_bfloat16_takes_a_bucket_of_its_own():
    assert get_lines("sparse", exchange_bytes=2)["gradients"] == 6 * SPARSE


def test_a_snapshot_is_counted_with_checkpoints_only():
    assert "snapshot" not in get_lines("sparse")
    assert get_lines("sparse", batching={"checkpoint_every": 5})["snapshot"] == 12 * SPARSE


def test_activations_match_a_micro_batch_counted_by_hand():
    # 10 tokens, one layer. In float32 a token keeps: both norms' inputs and outputs, 4 x 8; q, k,
    # v and the output, 4 x 8; gate, its activation, up and their product, 4 x 16; ranks, 2 a layer,
    # in the low-rank stage; a float32 for each of 2 heads. The mask of 10 x 10. One MLP's
    # gradients, 4 x 16.
    saved = 4 * (10 * (4 * 8 + 4 * 8 + 4 * 16 + 2) + 10 * 10)
    assert get_lines("sparse")["activations"] == saved + 4 * 10 * 4 * 16
    assert get_lines("low-rank")["activations"] == saved + 4 * 10 * (2 * 2) + 4 * 10 * 4 * 16
    twice = get_lines("sparse", batching={"micro": 2})["activations"]
    assert twice == 2 * get_lines("sparse")["activations"]


def test_layers_that_save_part_of_their_input_need_less():
    narrow = get_lines("sparse", method={"keeps_inputs": False})["activations"]
    assert get_lines("sparse")["activations"] - narrow == 4 * 10 * (2 * 8 + 16)


def test_logits_are_four_copies_of_the_vocabulary_for_every_token_and_none_for_a_classifier():
    assert get_lines("sparse")["logits"] == 4 * 4 * 10 * 50
    assert "logits" not in get_lines("sparse", classifies=True)


def test_logits_of_more_than_a_chunk_are_two_copies_of_the_chunk_and_the_hidden_states():
    # 10 tokens of a vocabulary of 50: so many sequences that all logits are two chunks and a bit.
    micro = 2 * LOSS_CHUNK["cpu"] // (4 * 10 * 50) + 1
    hidden = 2 * 4 * (10 * micro) * 8
    logits = get_lines("sparse", batching={"micro": micro})["logits"]
    assert logits == 2 * (4 * 10 * micro * 50 // 3) + hidden
    full = get_lines("full", kind="full", batching={"micro": micro})["logits"]
    assert full == logits + 2 * 4 * 50 * 8


def test_logits_that_exist_at_once_are_counted_whole_however_many_chunks_they_are():
    micro = 2 * LOSS_CHUNK["cpu"] // (4 * 10 * 50) + 1
    lines = get_lines("sparse", batching={"micro": micro}, keeps_logits=True)
    assert lines["logits"] == 3 * 4 * (10 * micro) * 50
    full = get_lines("full", kind="full", batching={"micro": micro}, keeps_logits=True)
    assert full["logits"] == lines["logits"]


def test_deepspeed_is_counted_where_it_is_loaded():
    runtime = get_lines("sparse")["runtime"]
    assert get_lines("low-rank", kind="lora")["runtime"] == runtime
    for sharding in ("node", "cluster"):
        assert get_lines("sparse", sharding)["runtime"] == runtime + DEEPSPEED
        assert get_lines("loading", sharding)["runtime"] == runtime + DEEPSPEED
    assert get_lines("full", kind="full")["runtime"] == runtime + DEEPSPEED


def test_a_gpu_counts_neither_heap_nor_process():
    memory = estimate_phases(resources={"cpu": False})
    assert [phase.name for phase in memory.phases] == ["sparse", "hand-off", "low-rank"]
    named = {line for phase in memory.phases for line in phase.lines}
    assert not named & {"runtime", "allocator", "snapshot"}


def test_full_fine_tuning_deals_out_the_optimiser_and_in_cluster_everything():
    replicated, sharded = (get_lines("full", way, kind="full") for way in ("replicate", "cluster"))
    assert (replicated["base"], replicated["gradients"]) == (4 * 1001, 4 * 1001)
    assert (replicated["trained"], replicated["optimiser"]) == (1001, 2 * 1001)
    assert (sharded["base"], sharded["gradients"], sharded["gathered"]) == (1001, 1001, 4 * 400)
    node = get_lines("full", "node", kind="full")
    assert node["base"] == 1001 + 2 * 1001
