"""Plans of models far larger than this machine: made in time, and with the right sharding."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.plan.plan import Plan
from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from tests.giants import LLAMA_600B, giant_llama
from tests.tiny import chat_rows, merge_spec, tiny_spec, write_spec

SECONDS = 2.0
NODES = {
    "model": {"dtype": "bfloat16"},
    "data": {"max_length": 1024},
    "method": {"rank": 8, "density": 1e-4},
    "train": {"batch_size": 64, "steps": 100},
    "cluster": {
        "workers": 64,
        "gpus_per_worker": 1,
        "machine": {"workers_per_node": 8, "memory_gb": 80},
    },
}
"""8 machines with 8 GPUs of 80 GB each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("giants")
    giant_llama(root / "70b")
    giant_llama(root / "600b", LLAMA_600B)
    chat_rows(root / "train.jsonl", 8)
    return root


def make_spec(folder: Path, model: str, **changes: Any) -> dict[str, Any]:
    nodes = merge_spec(NODES, {"model": {"path": str(folder / model)}})
    return tiny_spec(folder, **merge_spec(nodes, changes))


def plan_giant(folder: Path, model: str, **changes: Any) -> Plan:
    return validate_run(validate_spec(make_spec(folder, model, **changes)), quick=True).plan


def test_seventy_billion_parameters_are_held_once_a_machine(folder: Path):
    plan = plan_giant(folder, "70b")
    assert plan.model_parameters == 70_553_706_496
    assert (plan.sharding, plan.sharding_reason) == (
        "node", "auto: the first option that fits; replicate does not",
    )  # fmt: skip
    assert plan.estimate is not None
    fits = {way.sharding: way.fits for way in plan.estimate.options}
    assert fits == {"replicate": False, "node": True, "cluster": True}
    lines = plan.estimate.selected.memory.worst.lines
    # 141.1 GB over 8 workers.
    assert lines["base"] == pytest.approx(17.64e9, rel=1e-3)
    assert not any(
        flow.crosses_nodes for flow in plan.estimate.selected.flows if flow.cause == "base"
    )


def test_a_base_larger_than_a_machine_is_sharded_over_all_with_a_warning(folder: Path):
    plan = plan_giant(folder, "600b", data={"max_length": 256})
    assert plan.model_parameters * 2 == pytest.approx(1.2e12, rel=0.05)
    assert plan.sharding == "cluster"
    assert any("the base dominates the traffic" in note for note in plan.notes)


def test_what_no_sharding_can_hold_is_refused_before_a_worker_starts(folder: Path):
    small = {"cluster": {"machine": {"memory_gb": 16}}}
    with pytest.raises(InputError) as refused:
        plan_giant(folder, "600b", **small)
    [fault] = refused.value.faults
    assert fault.key == "cluster.sharding"
    assert "cluster needs" in fault.problem and "GB more than the 16.0 GB" in fault.problem
    assert "more workers or larger ones" in fault.remedy


@pytest.mark.slow
def test_seventy_billion_parameters_are_planned_again_in_two_seconds(folder: Path):
    spec = write_spec(folder / "70b.yaml", make_spec(folder, "70b"))
    code = "from orchestrator.cli.main import main; main()"
    command = [sys.executable, "-c", code, "plan", str(spec), "--json"]
    # The first plan asks transformers about the model, and remembers the answers.
    subprocess.run(command, capture_output=True, check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, start-up included: on a busy machine the clock on the wall tells of others.
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert json.loads(done.stdout)["estimate"]["sharding"] == "node"
    assert seconds < SECONDS
