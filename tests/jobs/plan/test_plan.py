"""The plan of a small model, counted by hand, and the faults of specs that cannot be planned."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.plan.estimate.base_tensors import describe_base
from jobs.plan.estimate.from_spec import CheckedFacts
from jobs.plan.plan import (
    MeasuredFacts,
    ModelShape,
    Plan,
    complete_plan,
    count_steps,
    make_plan,
    split_steps,
)
from jobs.plan.stage_rates import get_head_rate
from jobs.spec.sections.training import TrainSection
from slora.layers.patterns import count_entries
from slora.masks.mask import draw_random_mask
from tests.jobs.plan.plans import SHAPE, list_faults, make_spec, make_test_plan

# Density 0.05: 3 of 64, 2 of 32, 6 of 128, 3 of 64. Rank 2: twice the sum of both sides,
# 2 * (16 + 12 + 24 + 16).
SPARSE, LOW_RANK = 3 + 2 + 6 + 3, 136

KINDS: dict[str, list[tuple[str, int, int, float]]] = {
    "slora": [("sparse", 2, SPARSE, (SPARSE + 20) / 1020),
              ("low-rank", 4, LOW_RANK, (LOW_RANK + 20) / 1020)],
    "sparse": [("sparse", 6, SPARSE, (SPARSE + 20) / 1020)],
    "lora": [("low-rank", 6, LOW_RANK, (LOW_RANK + 20) / 1020)],
    "full": [("full", 6, 1020, 1.0)],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "stages"), KINDS.items(), ids=KINDS)
def test_each_kind_trains_what_was_counted_by_hand(
    kind: str, stages: list[tuple[str, int, int, float]]
):
    plan = make_test_plan(method={"kind": kind, "density": 0.05, "rank": 2})
    stage_rows = [(s.name, s.steps, s.trainable, plan.compute_share(s)) for s in plan.stages]
    assert stage_rows == stages
    assert plan.model_parameters == 1020
    assert plan.target_weights == (0 if kind == "full" else 288)
    assert plan.targets == (() if kind == "full" else tuple(SHAPE.linears))


def test_a_language_model_has_no_head_to_count():
    plan = make_test_plan(ModelShape(1000, SHAPE.linears, head=0))
    assert [plan.compute_share(stage) for stage in plan.stages] == [SPARSE / 1000, LOW_RANK / 1000]


def test_the_recorded_plan_is_plain_values_with_the_shares_in_it():
    plan = make_test_plan()
    document = plan.to_json()
    assert [stage["share"] for stage in document["stages"]] == [
        plan.compute_share(s) for s in plan.stages
    ]
    assert [stage["trainable"] for stage in document["stages"]] == [SPARSE, LOW_RANK]
    assert (document["workers"], document["sharding"], document["batch_size"]) == (
        1,
        "replicate",
        4,
    )


def test_the_sparse_stage_may_have_a_rate_of_its_own():
    rates = {"learning_rate": 0.1, "sparse_learning_rate": 0.3}
    assert [stage.learning_rate for stage in make_test_plan(train=rates).stages] == [0.3, 0.1]
    assert [stage.learning_rate for stage in make_test_plan().stages] == [0.01, 0.01]
    lora = make_test_plan(train=rates, method={"kind": "lora"})
    assert [stage.learning_rate for stage in lora.stages] == [0.1]


def test_a_head_has_one_rate_in_all_stages_or_that_of_each():
    rates = {"learning_rate": 0.1, "sparse_learning_rate": 0.3}
    shape = dataclasses.replace(SHAPE, head_modules=("classifier",))

    def list_head_rates(shape: ModelShape, **train: Any) -> list[float | None]:
        plan = make_test_plan(shape, train={**rates, **train})
        return [stage.head_learning_rate for stage in plan.stages]

    assert list_head_rates(shape) == [0.01, 0.01]
    assert list_head_rates(shape, head_learning_rate=0.2) == [0.2, 0.2]
    train = TrainSection(learning_rate=0.1, sparse_learning_rate=0.3, head_learning_rate=None)
    assert [get_head_rate(train, stage) for stage in ("sparse", "low-rank")] == [0.3, 0.1]
    assert list_head_rates(SHAPE, head_learning_rate=0.2) == [None, None]


SPLITS = {
    "a third": (60, 0.3, (18, 42)),
    "all sparse": (5, 1.0, (5, 0)),
    "none sparse": (5, 0.0, (0, 5)),
    "rounded": (7, 0.5, (4, 3)),
    "one step": (1, 0.3, (0, 1)),
}


@pytest.mark.parametrize(("steps", "share", "expected"), SPLITS.values(), ids=SPLITS)
def test_the_steps_are_split_by_the_sparse_share(
    steps: int, share: float, expected: tuple[int, int]
):
    assert split_steps(make_spec(method={"sparse_share": share}), steps) == expected


@given(steps=st.integers(1, 10**6), share=st.floats(0, 1), kind=st.sampled_from(sorted(KINDS)))
def test_the_split_neither_drops_nor_adds_steps(steps: int, share: float, kind: str):
    split = split_steps(make_spec(method={"kind": kind, "sparse_share": share}), steps)
    assert sum(split) == steps and min(split) >= 0
    assert len(split) == (2 if kind == "slora" else 1)
    assert kind != "slora" or abs(split[0] - steps * share) <= 0.5


def test_with_epochs_only_the_rows_can_tell_the_steps():
    plan = make_test_plan(train={"steps": None, "epochs": 2})
    assert [stage.steps for stage in plan.stages] == [None, None]


def test_a_plan_is_completed_by_the_loaded_model_and_the_tokenized_rows():
    plan = make_estimated_plan(train={"steps": None, "epochs": 2})
    spec = make_spec(train={"steps": None, "epochs": 2})
    loaded = dataclasses.replace(SHAPE, head=0)
    complete = complete_plan(plan, spec, MeasuredFacts(loaded, sequences=10))
    # 20 sequences in batches of 4, a third of them in the sparse stage.
    assert [stage.steps for stage in complete.stages] == [2, 3]
    assert (complete.model_parameters, complete.head) == (1000, 0)
    assert complete.estimate is plan.estimate


def test_a_plan_that_fits_the_loaded_model_is_not_made_again():
    for kind in KINDS:
        plan, spec = make_estimated_plan(method={"kind": kind}), make_spec(method={"kind": kind})
        assert complete_plan(plan, spec, MeasuredFacts(SHAPE)) is plan, kind


def test_a_loaded_model_that_does_not_allow_the_plan_is_refused():
    plan, spec = make_test_plan(method={"rank": 4}), make_spec(method={"rank": 4})
    loaded = ModelShape(1000, {"layer": (2, 8)}, head=20)
    with pytest.raises(InputError, match=r"method\.rank"):
        complete_plan(plan, spec, MeasuredFacts(loaded))


@pytest.mark.parametrize(
    ("sequences", "epochs", "batch", "steps"),
    [(8, 1, 4, 2), (9, 1, 4, 3), (9, 3, 4, 7), (1, 1, 100, 1), (10, 2, 5, 4)],
)
def test_epochs_end_after_every_sequence(sequences: int, epochs: int, batch: int, steps: int):
    assert count_steps(sequences, epochs, batch) == steps


BATCHES = {
    "alone": (4, 1, 1, (4, 1, 4)),
    "micro-batches of two": (8, 2, 2, (4, 2, 2)),
    "a micro-batch above the share": (4, 4, 2, (2, 2, 1)),
    "one each": (2, 2, 2, (1, 1, 1)),
}


@pytest.mark.parametrize(("batch", "micro", "workers", "expected"), BATCHES.values(), ids=BATCHES)
def test_a_batch_is_split_over_workers_and_micro_batches(
    batch: int, micro: int, workers: int, expected: tuple[int, int, int]
):
    plan = make_test_plan(
        train={"batch_size": batch, "micro_batch_size": micro}, cluster={"workers": workers}
    )
    assert (plan.per_worker, plan.micro_batch_size, plan.accumulation) == expected
    assert plan.workers * plan.micro_batch_size * plan.accumulation == batch


UNEVEN = {
    "workers": (4, 1, 3, "train.batch_size", "3 workers", "multiple of 3, e.g. 3."),
    "more workers than sequences": (2, 1, 5, "train.batch_size", "5 workers", "e.g. 5."),
    "near the next multiple": (11, 1, 4, "train.batch_size", "11 sequences", "e.g. 12."),
    "micro-batches": (12, 5, 2, "train.micro_batch_size", "micro-batches of 5", "e.g. 3."),
    "a prime share": (14, 4, 2, "train.micro_batch_size", "7 sequences per worker", "e.g. 1."),
}


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "key", "problem", "remedy"), UNEVEN.values(), ids=UNEVEN
)
def test_an_indivisible_batch_is_refused_with_a_divisible_size(
    batch: int, micro: int, workers: int, key: str, problem: str, remedy: str
):
    train = {"batch_size": batch, "micro_batch_size": micro}
    [fault] = list_faults(train=train, cluster={"workers": workers})
    assert fault.key == key and problem in fault.problem and remedy in fault.remedy


def test_faults_of_the_plan_are_reported_together():
    faults = list_faults(method={"rank": 9, "targets": ["q_proj", "x"]}, cluster={"workers": 3})
    assert [fault.key for fault in faults] == [
        "train.batch_size", "method.targets[1]", "method.rank",
    ]  # fmt: skip


@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
def test_a_requested_sharding_is_used(sharding: str):
    plan = make_test_plan(cluster={"sharding": sharding})
    assert (plan.sharding, plan.sharding_reason) == (sharding, "set in the spec")


def make_facts(**changes: Any) -> CheckedFacts:
    base = describe_base(
        {"model.up.weight": (50, 20)}, SHAPE.linears, {}, has_logits=True, file_bytes=4000
    )
    return dataclasses.replace(CheckedFacts(base, head=20, local_memory=10**11), **changes)


def make_estimated_plan(**overrides: Any) -> Plan:
    plan, faults = make_plan(make_spec(**overrides), SHAPE, facts=make_facts())
    assert plan is not None and not faults
    return plan


def test_a_plan_with_an_outlook_predicts_and_records_it():
    plan = make_estimated_plan(cluster={"workers": 2})
    assert plan.estimate is not None
    assert (plan.sharding, plan.sharding_reason) == ("replicate", "auto: it fits")
    document = json.loads(json.dumps(plan.to_json()))["estimate"]
    assert [way["sharding"] for way in document["options"]] == ["replicate", "node", "cluster"]
    # A ring of 2 sends each number once: the head's 20 and 4 beside them count.
    sent = {flow["stage"]: flow["sent"] for flow in document["options"][0]["wire"]
            if flow["cause"] == "gradients"}  # fmt: skip
    assert sent == {"sparse": 4 * (SPARSE + 24), "low-rank": 4 * (LOW_RANK + 24)}
    assert (document["steps"], document["tokens"], document["checkpoint"]) == (
        6,
        6 * 4 * 64,
        12 * 156,
    )
    assert make_test_plan().to_json()["estimate"] is None


def test_a_previous_estimate_is_reused_with_its_sharding():
    estimate = make_estimated_plan(cluster={"sharding": "cluster"}).estimate
    assert estimate is not None
    plan, _ = make_plan(make_spec(), SHAPE, estimate=estimate)
    assert plan is not None
    assert (plan.sharding, plan.estimate) == ("cluster", estimate)


def test_a_run_that_fits_nowhere_is_a_fault_and_no_plan():
    plan, [fault] = make_plan(make_spec(), SHAPE, facts=make_facts(local_memory=10**8))
    assert plan is None
    assert fault.key == "cluster.sharding" and "of this machine's memory" in fault.problem


ADAPTERS: dict[str, tuple[dict[str, Any], int]] = {
    "factors": ({}, 4 * (136 + 20)),
    "values alone": ({"kind": "sparse"}, 4 * (SPARSE + 20)),
    "values and where they are": ({"kind": "sparse", "mask": "magnitude"}, 4 * (2 * SPARSE + 20)),
    "values beside factors": ({"handoff": {"residual": "keep"}}, 4 * (136 + SPARSE + 20)),
    "factors twice": ({"kind": "lora", "init": "pissa"}, 4 * (2 * 136 + 20)),
    "factors under masks, as a LoRA": ({"factor_density": 0.25}, 4 * (136 + 20)),
    "factors under masks alone": (
        {"kind": "lora", "factor_density": 0.25, "factor_storage": "compact"},
        4 * (34 + 20),
    ),
    "all": ({"kind": "full"}, 4 * 1020),
}


UNSTORABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no masks": ({"kind": "lora"}, "they have none"),
    "gates": (
        {"kind": "lora", "factor_density": 0.5, "factor_pruning": "gates"}, "they have none"),
    "a hand-off": ({"factor_density": 0.5}, "the factors of a hand-off are not zero outside"),
    "pissa": (
        {"kind": "lora", "init": "pissa", "factor_density": 0.5}, "the factors of pissa are not"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "problem"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_factors_with_more_than_their_masks_entries_are_not_stored_compactly(
    method: dict[str, Any], problem: str
):
    [fault] = list_faults(method={**method, "factor_storage": "compact"})
    assert fault.key == "method.factor_storage" and problem in fault.problem


@pytest.mark.parametrize("mask", ["balanced", "random", "lines"])
def test_masked_factors_train_their_share_and_hand_off_what_whole_ones_do(mask: str):
    method = {"factor_density": 0.25, "factor_mask": mask}
    plan, whole = make_test_plan(method=method), make_test_plan()
    assert [stage.trainable for stage in plan.stages] == [SPARSE, LOW_RANK // 4]
    assert plan.notes == whole.notes


@pytest.mark.parametrize(("method", "expected"), ADAPTERS.values(), ids=ADAPTERS)
def test_the_adapters_size_is_that_of_its_tensors_and_some_header(
    method: dict[str, Any], expected: int
):
    estimate = make_estimated_plan(method=method).estimate
    assert estimate is not None
    assert expected <= estimate.adapter <= expected + 3 * 110 * len(SHAPE.linears)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.floats(1e-4, 1),
    seed=st.integers(0, 9),
)
def test_the_plan_counts_the_entries_that_a_mask_has(
    shape: tuple[int, int], density: float, seed: int
):
    mask = draw_random_mask(seed=seed, name="layer", shape=shape, density=density)
    assert mask.nnz == count_entries(shape, density)
    plan = make_test_plan(
        ModelShape(1600, {"layer": shape}, 0), method={"kind": "sparse", "density": density}
    )
    assert plan.stages[0].trainable == mask.nnz


@pytest.mark.parametrize(
    ("kind", "cluster", "key"),
    [
        pytest.param("full", {"sync_every": 2}, "cluster.sync_every", id="full alone"),
        pytest.param("full", {"exchange_dtype": "bfloat16"}, "cluster.exchange_dtype", id="full"),
        pytest.param("slora", {"outer": "nesterov"}, "cluster.outer", id="no local steps"),
        pytest.param("slora", {"average": "product"}, "cluster.average", id="nothing to average"),
        pytest.param("slora", {"workers": {"min": 4, "max": 2}}, "cluster.workers", id="turned"),
    ],
)
def test_wishes_of_the_cluster_that_would_do_nothing_are_faults(
    kind: str, cluster: dict[str, Any], key: str
):
    assert [fault.key for fault in list_faults(method={"kind": kind}, cluster=cluster)] == [key]
