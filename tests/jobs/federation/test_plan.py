"""What a federation will send, counted by hand: the hollow model has layers 8x8, 4x8 and 16x8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.federation.federation_plan import compute_up_bytes
from jobs.plan.estimate.output_files import HEADER
from jobs.plan.estimate.traffic import Flow
from jobs.spec.sections.federation import FederationSection
from tests.jobs.federation.specs import a_federation
from tests.tiny import hollow_model, label_rows

SPARSE = 11
"""Entries of masks of density 0.05: 3 + 2 + 6."""
B, A = 2 * (8 + 4 + 16), 2 * (8 + 8 + 8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    hollow_model(folder / "model")
    hollow_model(folder / "encoder", says={"architectures": ["BertModel"], "model_type": "bert"})
    for name in ("train", "eval"):
        rows = [{"messages": [{"role": "assistant", "content": f"{n}"}]} for n in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    label_rows(folder / "labels.jsonl", 12)
    return folder


def planned(
    place: Path, federation: dict[str, Any] | None = None, **spec: Any
) -> ValidatedFederation:
    return check_federation(a_federation(place, federation, **spec), store=False)


def flow(found: ValidatedFederation, cause: str, stage: str) -> Flow:
    prediction = found.validated_run.plan.estimate
    assert prediction is not None
    [one] = [f for f in prediction.selected.flows if (f.cause, f.stage) == (cause, stage)]
    return one


def told(found: ValidatedFederation, cause: str, stage: str) -> tuple[int, int | None]:
    one = flow(found, cause, stage)
    return one.sent, one.times


def causes(found: ValidatedFederation) -> list[tuple[str, str]]:
    return [(flow.cause, flow.stage) for flow in found.plan.flows]


def test_each_client_of_each_round_gets_all_and_sends_all(place):
    found = planned(place)
    assert told(found, "down", "sparse") == told(found, "up", "sparse") == (4 * SPARSE, 3 * 2)
    assert told(found, "down", "low-rank") == (4 * (A + B), 7 * 2)
    assert flow(found, "up", "low-rank").exact
    assert flow(found, "up", "low-rank").per_step == 2
    assert found.plan.down == found.plan.up == 4 * SPARSE * 6 + 4 * (A + B) * 14


UP = {
    "bf16": ({"compress": "bf16"}, 2 * SPARSE, 2 * (A + B)),
    "int8": ({"compress": "int8"}, SPARSE + 4 * 3, A + B + 4 * 6),
    "topk": ({"compress": "topk"}, 8 * 2, 8 * 11),
    "half": ({"compress": "topk", "topk": 0.5}, 8 * 6, 8 * (A + B) // 2),
    "int8 of B alone": ({"compress": "int8", "freeze_a": True}, SPARSE + 4 * 3, B + 4 * 3),
}


@pytest.mark.parametrize(("section", "sparse", "low_rank"), UP.values(), ids=UP)
def test_what_goes_up_is_what_the_compression_leaves(place, section, sparse, low_rank):
    found = planned(place, section)
    assert flow(found, "up", "sparse").sent == sparse
    assert flow(found, "up", "low-rank").sent == low_rank
    assert flow(found, "down", "sparse").sent == 4 * SPARSE


def test_a_frozen_a_is_neither_trained_nor_sent_but_once(place):
    found = planned(place, {"freeze_a": True})
    assert found.validated_run.plan.stages[1].trainable == B
    assert flow(found, "down", "low-rank").sent == 4 * B
    assert flow(found, "hand-off", "low-rank").sent == 4 * (A + B)


@given(st.integers(1, 10**7), st.integers(1, 500), st.floats(1e-6, 1))
def test_no_compression_sends_more_than_twice_what_none_does(trained, slots, share):
    sizes = {
        name: compute_up_bytes(
            FederationSection(compress=name, topk=share), trained, min(slots, trained)
        )
        for name in ("none", "bf16", "int8", "topk")
    }
    assert sizes["none"] == 2 * sizes["bf16"] == 4 * trained
    assert 8 <= sizes["topk"] <= 2 * sizes["none"]
    assert trained < sizes["int8"] <= 5 * trained


def test_the_heads_tensors_have_scales_too(place):
    spec = {
        "model": {"path": str(place / "encoder"), "task": "sequence-classification"},
        "data": {"train": str(place / "labels.jsonl"), "eval": None, "format": "classification"},
    }
    found = planned(place, {"compress": "int8", "sparse_rounds": 0}, **spec)
    head = 8 * 2 + 2
    assert flow(found, "up", "low-rank").sent == A + B + head + 4 * (6 + 2)
    assert causes(found) == [
        ("install", "sparse"), ("down", "low-rank"), ("up", "low-rank"), ("install", "low-rank"),
    ]  # fmt: skip


def test_drop_outs_are_sent_all_and_answer_nothing(place):
    found = planned(place, {"drop_out": 0.3})
    assert told(found, "down", "low-rank")[1] == 14
    assert told(found, "up", "low-rank")[1] == 10
    assert flow(found, "down", "low-rank").exact
    assert not flow(found, "up", "low-rank").exact


SCORED = {
    "entries": ("gradient", 4 * (64 + 32 + 128), SPARSE),
    "rows": ("rows", 4 * (8 + 4 + 16), 3),
    "columns": ("columns", 4 * (8 + 8 + 8), 3),
    "blocks": ("blocks", 4 * (64 + 32 + 128), 2 + 2 + 1 + 2 + 4 + 2),
}


@pytest.mark.parametrize(("mask", "size", "places"), SCORED.values(), ids=SCORED)
def test_scores_are_sent_once_and_masks_to_each_client(place, mask, size, places):
    found = planned(place, method={"mask": mask})
    assert told(found, "calibration", "sparse") == (size, 2)
    # 4 clients, 2 a round, 3 rounds: 4 x (1 - 0.5^3) of them are drawn, as it is to be expected,
    # and the site that opens the stage needs them too.
    assert told(found, "masks", "sparse") == (4 * places + 3 * HEADER, 1 + round(3.5))


@pytest.mark.parametrize("method", [{"mask": "random"}, {"mask": "magnitude"},
                                    {"mask": "rows", "score": "magnitude"}])  # fmt: skip
def test_masks_that_every_site_can_make_do_not_travel(place, method):
    assert {cause for cause, _ in causes(planned(place, method=method))} == {
        "down", "up", "evaluation", "install",
    }  # fmt: skip


def test_what_a_hand_off_keeps_beside_the_factors_travels_once(place):
    found = planned(place, method={"handoff": {"residual": "keep"}})
    assert told(found, "hand-off", "low-rank") == (4 * (A + B + SPARSE), 5)


def test_what_waits_with_clients_is_fetched_for_each_checkpoint(place):
    found = planned(place, {"compress": "topk"}, train={"checkpoint_every": 2})
    assert told(found, "checkpoint", "sparse") == (4 * SPARSE, 2 * 4)
    assert ("checkpoint", "sparse") not in causes(planned(place))


def test_evaluations_and_checkpoints_go_by_the_rounds_of_both_stages(place):
    """3 sparse rounds and 7 others: the 4th and the 8th are of the second stage."""
    every = {"eval_every": 4, "checkpoint_every": 4}
    found = planned(place, {"compress": "topk"}, train=every)
    assert told(found, "evaluation", "sparse") == (4 * SPARSE, 2)
    assert told(found, "evaluation", "low-rank") == (4 * (A + B), 2 + 2)
    assert told(found, "checkpoint", "low-rank") == (4 * (A + B), (1 + 2) * 4)


def test_evaluations_send_the_weights_to_every_site(place):
    found = planned(place, cluster={"workers": 3}, train={"eval_every": 2})
    assert told(found, "evaluation", "sparse") == (4 * SPARSE, 3 * (2 + 1))
    assert told(found, "evaluation", "low-rank") == (4 * (A + B), 3 * (2 + 3))


def test_seconds_are_those_of_one_clients_link(place):
    plan = planned(place).plan
    assert plan.stages[1].estimate_seconds(1) == pytest.approx(2 * 4 * (A + B) * 8 / 1e6)
    assert plan.estimate_seconds(10) == pytest.approx((3 * 8 * SPARSE + 7 * 8 * (A + B)) * 8 / 1e7)


def test_the_prediction_is_of_all_sites(place):
    speed = {"tokens_per_second": 100.0, "price_per_hour": 3.6, "workers_per_node": 2}
    found = planned(place, cluster={"workers": 4, "machine": speed})
    prediction = found.validated_run.plan.estimate
    assert prediction is not None
    assert (prediction.workers, prediction.nodes, prediction.steps) == (4, 2, 30)
    assert prediction.tokens == 10 * 2 * 3 * 4 * 64
    assert prediction.seconds == prediction.tokens / 100
    assert prediction.cost == pytest.approx(2 * prediction.seconds * 0.001)


def test_sites_that_share_a_machine_share_its_memory(place):
    machine = {"memory_gb": 0.1}
    with pytest.raises(InputError, match="replicate needs"):
        planned(place, cluster={"machine": machine})
    with pytest.raises(InputError, match=r"cluster\.workers: each of 4000 sites needs 0\.8 GB"):
        planned(place, cluster={"workers": 4000})


def test_the_papers_have_it_all_as_plain_values(place):
    plain = json.loads(json.dumps(planned(place).to_json()))
    assert plain["workers"] == 1
    assert plain["estimate"]["workers"] == 1
    assert plain["federation"]["clients"] == 4
    assert plain["federation"]["stages"][0]["seconds_a_round"].keys() == {"1", "10", "100"}
    assert plain["federation"]["up"] == planned(place).plan.up
