"""The predicted traffic, counted by hand: the hollow model has layers 8x8, 4x8 and 16x8."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.federation.averaging.upload_size import compute_upload_size
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.plan.estimate.output_files import HEADER
from jobs.plan.estimate.traffic import Flow
from tests.jobs.federation.specs import a_federation
from tests.tiny import hollow_model, label_rows

SPARSE = 11
"""Entries of masks of density 0.05: 3 + 2 + 6."""
B, A = 2 * (8 + 4 + 16), 2 * (8 + 8 + 8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    hollow_model(folder / "model")
    hollow_model(folder / "encoder", says={"architectures": ["BertModel"], "model_type": "bert"})
    for name in ("train", "eval"):
        rows = [{"messages": [{"role": "assistant", "content": f"{n}"}]} for n in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label_rows(folder / "labels.jsonl", 12)
    return folder


def check(
    workspace: Path, federation: dict[str, Any] | None = None, **spec: Any
) -> ValidatedFederation:
    return check_federation(a_federation(workspace, federation, **spec), store=False)


def find_flow(validated: ValidatedFederation, cause: str, stage: str) -> Flow:
    estimate = validated.validated_run.plan.estimate
    assert estimate is not None
    flows = estimate.selected.flows
    return next(entry for entry in flows if (entry.cause, entry.stage) == (cause, stage))


def read_flow(validated: ValidatedFederation, cause: str, stage: str) -> tuple[int, int | None]:
    entry = find_flow(validated, cause, stage)
    return entry.sent, entry.times


def list_causes(validated: ValidatedFederation) -> list[tuple[str, str]]:
    return [(entry.cause, entry.stage) for entry in validated.plan.flows]


def test_each_sampled_client_receives_and_sends_all_weights(workspace):
    validated = check(workspace)
    assert (
        read_flow(validated, "down", "sparse")
        == read_flow(validated, "up", "sparse")
        == (4 * SPARSE, 3 * 2)
    )
    assert read_flow(validated, "down", "low-rank") == (4 * (A + B), 7 * 2)
    assert find_flow(validated, "up", "low-rank").exact
    assert find_flow(validated, "up", "low-rank").per_step == 2
    assert validated.plan.down == validated.plan.up == 4 * SPARSE * 6 + 4 * (A + B) * 14


UP = {
    "bf16": ({"compress": "bf16"}, 2 * SPARSE, 2 * (A + B)),
    "int8": ({"compress": "int8"}, SPARSE + 4 * 3, A + B + 4 * 6),
    "topk": ({"compress": "topk"}, 8 * 2, 8 * 11),
    "half": ({"compress": "topk", "topk": 0.5}, 8 * 6, 8 * (A + B) // 2),
    "int8 of B alone": ({"compress": "int8", "freeze_a": True}, SPARSE + 4 * 3, B + 4 * 3),
}


@pytest.mark.parametrize(("section", "sparse", "low_rank"), UP.values(), ids=UP)
def test_the_size_of_an_update_depends_on_the_compression(workspace, section, sparse, low_rank):
    validated = check(workspace, section)
    assert find_flow(validated, "up", "sparse").sent == sparse
    assert find_flow(validated, "up", "low-rank").sent == low_rank
    assert find_flow(validated, "down", "sparse").sent == 4 * SPARSE


def test_a_frozen_a_is_not_trained_and_sent_only_once(workspace):
    validated = check(workspace, {"freeze_a": True})
    assert validated.validated_run.plan.stages[1].trainable == B
    assert find_flow(validated, "down", "low-rank").sent == 4 * B
    assert find_flow(validated, "hand-off", "low-rank").sent == 4 * (A + B)


@pytest.mark.parametrize("kind", ["slora", "lora"])
def test_under_masks_of_the_factors_rounds_send_their_values_and_a_hand_off_its_start_once(
    workspace, kind
):
    validated = check(workspace, method={"kind": kind, "factor_density": 0.25})
    assert find_flow(validated, "down", "low-rank").sent == 4 * (A + B) / 4
    assert find_flow(validated, "up", "low-rank").sent == 4 * (A + B) / 4
    has_handoff = ("hand-off", "low-rank") in list_causes(validated)
    assert has_handoff == (kind == "slora")
    if has_handoff:
        assert find_flow(validated, "hand-off", "low-rank").sent == 4 * (A + B)
    frozen = check(workspace, {"freeze_a": True}, method={"kind": kind, "factor_density": 0.25})
    assert find_flow(frozen, "up", "low-rank").sent == 4 * B / 4


@given(st.integers(1, 10**7), st.integers(0, 10**5), st.integers(1, 500), st.floats(1e-6, 1))
def test_no_compression_more_than_doubles_the_bytes(adapter, head, tensor_count, share):
    trained = adapter + head
    sizes = {
        name: compute_upload_size(name, (adapter, head), min(tensor_count, trained), share)
        for name in ("none", "bf16", "int8", "topk")
    }
    assert sizes["none"] == 2 * sizes["bf16"] == 4 * trained
    assert 8 <= sizes["topk"] <= 2 * sizes["none"]
    assert trained < sizes["int8"] <= 5 * trained


def test_the_tensors_of_the_head_have_scales_and_a_share_too(workspace):
    classifier: dict[str, Any] = {
        "model": {"path": str(workspace / "encoder"), "task": "sequence-classification"},
        "data": {
            "train": str(workspace / "labels.jsonl"),
            "eval": None,
            "format": "classification",
        },
        "method": {"targets": ["query", "key", "intermediate.dense"]},
    }
    validated = check(workspace, {"compress": "int8", "sparse_rounds": 0}, **classifier)
    head, larger_b = 8 * 2 + 2, 2 * (8 + 8 + 16)
    assert find_flow(validated, "up", "low-rank").sent == A + larger_b + head + 4 * (6 + 2)
    assert list_causes(validated) == [
        ("install", "sparse"), ("down", "low-rank"), ("up", "low-rank"), ("install", "low-rank"),
    ]  # fmt: skip
    topk = check(workspace, {"compress": "topk", "topk": 0.3, "sparse_rounds": 0}, **classifier)
    # Of the head 6 of 18, and not what a third of all numbers leaves it.
    assert find_flow(topk, "up", "low-rank").sent == 8 * (ceil(0.3 * (A + larger_b)) + 6)


def test_the_head_of_a_fully_trained_classifier_is_counted_once(workspace):
    classifier: dict[str, Any] = {
        "model": {"path": str(workspace / "encoder"), "task": "sequence-classification"},
        "data": {
            "train": str(workspace / "labels.jsonl"),
            "eval": None,
            "format": "classification",
        },
        "method": {"kind": "full", "targets": "all-linear"},
    }
    validated = check(workspace, {"compress": "topk", "topk": 0.3}, **classifier)
    (stage,) = validated.plan.stages
    assert stage.trained == validated.validated_run.plan.stages[0].trainable
    assert stage.up == 8 * (ceil(0.3 * (stage.trained - 18)) + 6)


def test_clients_that_drop_out_receive_the_weights_and_send_nothing(workspace):
    validated = check(workspace, {"drop_out": 0.3})
    assert read_flow(validated, "down", "low-rank")[1] == 14
    assert read_flow(validated, "up", "low-rank")[1] == 10
    assert find_flow(validated, "down", "low-rank").exact
    assert not find_flow(validated, "up", "low-rank").exact


SCORED = {
    "entries": ("gradient", 4 * (64 + 32 + 128), SPARSE),
    "rows": ("rows", 4 * (8 + 4 + 16), 3),
    "columns": ("columns", 4 * (8 + 8 + 8), 3),
    "blocks": ("blocks", 4 * (64 + 32 + 128), 2 + 2 + 1 + 2 + 4 + 2),
}


@pytest.mark.parametrize(("mask", "size", "positions"), SCORED.values(), ids=SCORED)
def test_scores_are_sent_once_and_masks_to_each_client(workspace, mask, size, positions):
    validated = check(workspace, method={"mask": mask})
    assert read_flow(validated, "calibration", "sparse") == (size, 2)
    # 4 clients, 2 in each of 3 rounds: 4 x (1 - 0.5^3) of them are expected to be sampled, and the
    # site that opens the stage needs the masks too.
    assert read_flow(validated, "masks", "sparse") == (
        4 * positions + 3 * HEADER,
        1 + round(3.5),
    )


@pytest.mark.parametrize("method", [{"mask": "random"}, {"mask": "magnitude"},
                                    {"mask": "rows", "score": "magnitude"}])  # fmt: skip
def test_masks_that_every_site_can_make_are_not_sent(workspace, method):
    assert {cause for cause, _ in list_causes(check(workspace, method=method))} == {
        "down", "up", "evaluation", "install", "hand-off",
    }  # fmt: skip


@pytest.mark.parametrize("norm", ["outputs", "loss"])
def test_the_next_rounds_clients_get_the_values_and_send_sketches(workspace, norm):
    validated = check(workspace, method={"handoff": {"norm": norm}})
    (flow,) = (flow for flow in validated.plan.flows if flow.cause == "hand-off")
    # 2 x 2 + 8 columns, but no more than a layer has rows: 8, 4 and 8; two facts a layer.
    numbers = {"outputs": 8 * 8 + 8 * 4 + 8 * 8, "loss": 16 * 8 + 12 * 4 + 24 * 8}[norm] + 6
    assert (flow.sent, flow.times) == (4 * (SPARSE + numbers), 2)
    assert "hand-off" not in {
        cause for cause, _ in list_causes(check(workspace, method={"handoff": {"norm": "weights"}}))
    }


def test_the_residual_of_a_hand_off_is_sent_once(workspace):
    validated = check(workspace, method={"handoff": {"residual": "keep"}})
    assert read_flow(validated, "hand-off", "low-rank") == (4 * (A + B + SPARSE), 5)


def test_the_clients_residuals_are_collected_for_each_checkpoint(workspace):
    validated = check(workspace, {"compress": "topk"}, train={"checkpoint_every": 2})
    assert read_flow(validated, "checkpoint", "sparse") == (4 * SPARSE, 2 * 4)
    assert ("checkpoint", "sparse") not in list_causes(check(workspace))


def test_evaluations_and_checkpoints_count_the_rounds_of_both_stages(workspace):
    """3 sparse rounds and 7 others: the 4th and the 8th are of the second stage."""
    every = {"eval_every": 4, "checkpoint_every": 4}
    validated = check(workspace, {"compress": "topk"}, train=every)
    assert read_flow(validated, "evaluation", "sparse") == (4 * SPARSE, 2)
    assert read_flow(validated, "evaluation", "low-rank") == (4 * (A + B), 2 + 2)
    assert read_flow(validated, "checkpoint", "low-rank") == (4 * (A + B), (1 + 2) * 4)


def test_evaluations_send_the_weights_to_every_site(workspace):
    validated = check(workspace, cluster={"workers": 3}, train={"eval_every": 2})
    assert read_flow(validated, "evaluation", "sparse") == (4 * SPARSE, 3 * (2 + 1))
    assert read_flow(validated, "evaluation", "low-rank") == (4 * (A + B), 3 * (2 + 3))


def test_the_seconds_are_those_of_one_clients_link(workspace):
    plan = check(workspace).plan
    assert plan.stages[1].estimate_seconds(1) == pytest.approx(2 * 4 * (A + B) * 8 / 1e6)
    assert plan.estimate_seconds(10) == pytest.approx((3 * 8 * SPARSE + 7 * 8 * (A + B)) * 8 / 1e7)


def test_the_estimate_is_that_of_all_sites(workspace):
    speed = {"tokens_per_second": 100.0, "price_per_hour": 3.6, "workers_per_node": 2}
    validated = check(workspace, cluster={"workers": 4, "machine": speed})
    estimate = validated.validated_run.plan.estimate
    assert estimate is not None
    assert (estimate.workers, estimate.nodes, estimate.steps) == (4, 2, 30)
    assert estimate.tokens == 10 * 2 * 3 * 4 * 64
    assert estimate.seconds == estimate.tokens / 100
    assert estimate.cost == pytest.approx(2 * estimate.seconds * 0.001)


def test_sites_that_share_a_machine_share_its_memory(workspace):
    machine = {"memory_gb": 0.1}
    with pytest.raises(InputError, match="replicate needs"):
        check(workspace, cluster={"machine": machine})
    with pytest.raises(InputError, match=r"cluster\.workers: each of 4000 sites needs 0\.8 GB"):
        check(workspace, cluster={"workers": 4000})


def test_the_plan_is_written_as_plain_values(workspace):
    values = json.loads(json.dumps(check(workspace).to_json()))
    assert values["workers"] == 1
    assert values["estimate"]["workers"] == 1
    assert values["federation"]["clients"] == 4
    assert values["federation"]["stages"][0]["seconds_per_round"].keys() == {"1", "10", "100"}
    assert values["federation"]["up"] == check(workspace).plan.up
