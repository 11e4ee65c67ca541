"""Real trainings on two ranks beside their own plans: the bytes sent are the bytes planned."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.plan.audit import AuditLine, compare_with_plan
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from tests.tiny import label_rows, merge_spec, tiny_encoder, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

RANKS = 2
RUNS: dict[str, dict[str, Any]] = {
    "slora-replicate": {"cluster": {"sharding": "replicate"}},
    "slora-cluster": {"cluster": {"sharding": "cluster"}},
    "lora-cluster": {"cluster": {"sharding": "cluster"}, "method": {"kind": "lora"}},
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, AuditLine]]:
    """Return the lines of every run's audit, by name."""
    folder = tmp_path_factory.mktemp("audited")
    # A classifier answers no prompts, whose gathers belong to no step.
    tiny_encoder(folder / "model")
    label_rows(folder / "train.jsonl", 40)
    common = {"model": {"task": "sequence-classification"}, "data": {"format": "classification"}}
    specs = {
        name: tiny_spec(folder, **merge_spec(common, changes)) for name, changes in RUNS.items()
    }
    results = train_all([TrainingCase(name, spec) for name, spec in specs.items()], RANKS)
    lines_by_run = {}
    for name, spec in specs.items():
        planned = merge_spec(spec, {"cluster": {"workers": RANKS}})
        plan = validate_run(validate_spec(planned), quick=True).plan.to_json()
        ledger = results[name].ledger
        lines_by_run[name] = {line.name: line for line in compare_with_plan(name, plan, ledger)}
    return lines_by_run


@pytest.mark.parametrize("run", RUNS)
def test_gradients_travel_to_the_byte_as_planned(
    audited: dict[str, dict[str, AuditLine]], run: str
):
    lines = [line for name, line in audited[run].items() if name.startswith("gradients")]
    assert len(lines) == (2 if run.startswith("slora") else 1)
    for line in lines:
        assert line.planned and line.tolerance_text == "exact"
        assert not line.violated, line


@pytest.mark.parametrize("run", [name for name in RUNS if name.endswith("cluster")])
def test_gathers_of_the_base_are_within_two_in_a_hundred(
    audited: dict[str, dict[str, AuditLine]], run: str
):
    lines = [line for name, line in audited[run].items() if name.startswith("base")]
    assert lines
    for line in lines:
        assert line.planned and line.tolerance_text == "2%"
        assert not line.violated, line


def test_a_replicated_base_sends_nothing_and_the_hand_off_is_sent_as_planned(
    audited: dict[str, dict[str, AuditLine]],
):
    lines = audited["slora-replicate"]
    assert not [name for name in lines if name.startswith("base")]
    assert lines["hand-off"].planned == lines["hand-off"].actual
