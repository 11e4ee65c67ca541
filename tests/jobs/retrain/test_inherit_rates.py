"""A retraining that leaves its rates to the rule has those that the adapter's run has settled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.plan.preflight import validate_run
from jobs.retrain.pipeline import Retraining
from jobs.retrain.retrain_artifacts import Baseline, write_baseline
from jobs.store.adapters.manifest import RateRecord
from jobs.store.adapters.operations import promote
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from orchestrator.cli.retrain_plan import plan_retraining
from tests.jobs.retrain.builders import committed, lora_files
from tests.jobs.retrain.specs import a_retrain
from tests.tiny import chat_rows

AUTO: dict[str, Any] = {"train": {"learning_rate": "auto"}}
SETTLED = {"learning_rate": 0.0123, "sparse_learning_rate": 0.0321, "head_learning_rate": 1e-2}
"""What the rule of no release says."""
BY_RULE = ("learning_rate", "sparse_learning_rate")


def record_rates(by_rule: tuple[str, ...] = BY_RULE) -> RateRecord:
    return RateRecord(stages={"sparse": 0.0321, "low-rank": 0.0123}, by_rule=by_rule)


@pytest.fixture
def store(workspace: Path) -> DirectoryStore:
    """Return a store whose tiny@v1 was trained at rates of the rule; data.train has grown since."""
    committed(
        workspace, lora_files(workspace / "one"), spec={"train": SETTLED}, rates=record_rates()
    )
    store = DirectoryStore(workspace / "store")
    promote(store, "tiny", 1)
    chat_rows(workspace / "train.jsonl", 9)
    return store


def test_the_plan_has_the_rates_of_the_adapters_run(workspace: Path, store: DirectoryStore):
    checked, _ = plan_retraining(a_retrain(workspace, **AUTO))
    (stage,) = checked.plan.stages
    assert (stage.name, stage.learning_rate) == ("low-rank", 0.0123)
    assert (checked.plan.rates.by_rule, checked.plan.rates.reason) == (
        BY_RULE,
        "the run of tiny@v1",
    )
    assert checked.spec.train.model_dump().items() >= SETTLED.items()


def test_one_from_scratch_has_those_of_both_stages(workspace: Path, store: DirectoryStore):
    checked, _ = plan_retraining(a_retrain(workspace, {"start": "scratch"}, **AUTO))
    assert [stage.learning_rate for stage in checked.plan.stages] == [0.0321, 0.0123]


OTHERWISE: dict[str, tuple[Callable[[Path], dict[str, Any]], dict[str, Any], list[float]]] = {
    "a rate in the spec": (
        lambda folder: {"train": {"learning_rate": 0.004}}, {}, [0.004, 0.004]),
    "another density": (
        lambda folder: {**AUTO, "method": {"density": 0.3}}, {}, [-1, 0.0123]),
    "another mask": (
        lambda folder: {**AUTO, "method": {"mask": "fisher"}}, {}, [-1, 0.0123]),
    "sparse factors": (
        lambda folder: {**AUTO, "method": {"factor_density": 0.5}}, {}, [0.0321, -1]),
    "rates that were set": (
        lambda folder: AUTO, {"rates": record_rates(())}, [-1, -1]),
    "one that was set": (
        lambda folder: AUTO, {"rates": record_rates(("learning_rate",))}, [-1, 0.0123]),
    "an earlier release": (
        lambda folder: AUTO, {"rates": None}, [-1, -1]),
}  # fmt: skip
"""The changed spec, the fields of the manifest, and the rates of the stages; -1: today's rule."""


@pytest.mark.parametrize(("change", "fields", "rates"), OTHERWISE.values(), ids=OTHERWISE)
def test_the_rule_is_asked_where_the_question_is_another(workspace: Path, change, fields, rates):
    manifest = {"rates": record_rates(), **fields}
    committed(workspace, lora_files(workspace / "one"), spec={"train": SETTLED}, **manifest)
    spec = a_retrain(workspace, {"start": "scratch"}, **change(workspace))
    by_rule = validate_run(spec).plan.stages
    checked, _ = plan_retraining(spec)
    expected = [
        stage.learning_rate if rate == -1 else rate
        for rate, stage in zip(rates, by_rule, strict=True)
    ]
    assert [stage.learning_rate for stage in checked.plan.stages] == expected


def test_rows_that_the_same_training_has_seen_are_recognised(
    workspace: Path, store: DirectoryStore
):
    """The digest of a spec includes its rates: with other ones a schedule would train it again."""
    spec = {"train": SETTLED, "method": {"kind": "lora"}}
    committed(workspace, lora_files(workspace / "two"), spec=spec, parent="tiny@v1", run="r2")
    runs = RunStore(store, "r3")
    Retraining(a_retrain(workspace, **AUTO), runs, 1).run()
    (event,), _ = runs.events.tail(0)
    assert event["event"] == "no_new_data"
    assert "tiny@v2 was trained on these rows with this spec" in event["why"]


def test_a_later_attempt_has_the_rates_of_the_first(workspace: Path, store: DirectoryStore):
    """Between the two another version was promoted, whose run had other rates."""
    other = {"train": {**SETTLED, "learning_rate": 0.0456}}
    files = lora_files(workspace / "two")
    committed(workspace, files, spec=other, run="r2", rates=record_rates())
    promote(store, "tiny", 2)
    spec, runs = a_retrain(workspace, **AUTO), RunStore(store, "r3")
    validated = validate_run(spec)
    retraining = Retraining(spec, runs, 2)
    assert retraining._inherit_rates(validated).spec.train.learning_rate == 0.0456
    write_baseline(runs, Baseline(current="tiny@v1", train_sha256="0" * 64))
    assert retraining._inherit_rates(validated).spec.train.learning_rate == 0.0123
