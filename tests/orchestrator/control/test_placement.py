"""Whether a run fits on a cluster: judged from what the whole of it has, and with patience."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from orchestrator.cluster.base import Capacity
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.cluster.fake import FakeCluster
from orchestrator.control.dispatcher import FITS
from orchestrator.control.placement import (
    SHORTAGE_TIMEOUT_S,
    Placement,
    find_shortage,
    set_node_memory,
)
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import ControlHarness
from tests.tiny import chat_rows, hollow_model

SMALL = Capacity(cpus=4, gpus=0, free_cpus=0, free_gpus=0, nodes=2, node_memory=8 << 30)


def spec(**cluster: Any) -> RunSpec:
    return validate_spec(make_spec(cluster=cluster))


@pytest.mark.parametrize(
    ("cluster", "lack"),
    [
        pytest.param({"workers": 4}, "", id="fits, though all is busy"),
        pytest.param({"workers": 5}, "needs 5 CPUs, but the whole cluster has 4", id="workers"),
        pytest.param({"workers": 2, "cpus_per_worker": 3}, "needs 6 CPUs", id="CPUs each"),
        pytest.param({"workers": 1, "gpus_per_worker": 1}, "needs 1 GPUs", id="GPUs"),
    ],
)
def test_what_the_whole_cluster_lacks(cluster: dict[str, Any], lack: str):
    found = find_shortage(spec(**cluster), SMALL)
    assert found.startswith(lack) and bool(found) == bool(lack)


def test_a_node_s_memory_is_shared_by_its_workers():
    machine = set_node_memory(spec(workers=4), SMALL).cluster.machine
    assert (machine.workers_per_node, machine.memory_gb) == (2, pytest.approx(4.295, abs=0.01))


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param({"machine": {"memory_gb": 3}}, id="the spec names its memory"),
        pytest.param({"gpus_per_worker": 1}, id="a GPU's memory is not the node's"),
    ],
)
def test_what_the_spec_says_of_its_memory_stays(kept: dict[str, Any]):
    asked = spec(workers=1, **kept)
    assert set_node_memory(asked, SMALL) == asked


class Patient:
    """A placement on a small cluster, on a clock that is set."""

    def __init__(
        self, control: ControlHarness, *, autoscaling: bool = False, shared_filesystem: bool = False
    ):
        self.control, self.at = control, 0.0
        self.cluster = FakeCluster()
        self.cluster.cluster_capacity = SMALL
        self.placement = Placement(
            self.cluster,
            shared_filesystem=shared_filesystem,
            autoscaling=autoscaling,
            store_opener=lambda url: control.open(url),
            clock=lambda: self.at,
        )

    def run(self, **changes: Any) -> Run:
        asked = make_spec(self.control.store, **changes)
        return self.control.intake.accept(SubmitRequest(spec=asked))[0]


def test_a_cluster_that_is_too_small_gets_time_for_its_nodes_to_come_back(control: ControlHarness):
    patient = Patient(control)
    run = patient.run(cluster={"workers": 8})
    assert patient.placement(run).wait_reason == "needs 8 CPUs, but the whole cluster has 4"
    patient.at = SHORTAGE_TIMEOUT_S - 1
    assert patient.placement(run).wait_reason
    patient.at = SHORTAGE_TIMEOUT_S
    assert patient.placement(run).rejection == "needs 8 CPUs, but the whole cluster has 4"


def test_nodes_that_came_back_in_time_make_it_fit(control: ControlHarness):
    patient = Patient(control)
    run = patient.run(cluster={"workers": 8})
    assert patient.placement(run).wait_reason
    patient.cluster.cluster_capacity = Capacity(16, 0, 16, 0, 4, None)
    assert patient.placement(run) == FITS


def test_a_cluster_that_grows_is_never_too_small(control: ControlHarness):
    patient = Patient(control, autoscaling=True)
    patient.cluster.unreachable = True
    assert patient.placement(patient.run(cluster={"workers": 8})) == FITS


def test_a_cluster_that_does_not_answer_refuses_nothing(control: ControlHarness):
    patient = Patient(control)
    run = patient.run()
    patient.cluster.unreachable = True
    with pytest.raises(ClusterUnreachable):
        patient.placement(run)


def test_a_store_that_is_away_refuses_nothing(control: ControlHarness):
    patient = Patient(control)
    run = patient.run()

    def away(url: str) -> Any:
        raise StoreUnreachable("the store is away")

    control.open = away
    assert patient.placement(run) == FITS


def test_a_plan_that_can_not_hold_is_known_before_the_cluster_is_asked(
    control: ControlHarness, tmp_path: Path
):
    model = hollow_model(tmp_path / "model")
    rows = chat_rows(tmp_path / "train.jsonl", 4)
    good = {"model": {"path": str(model)}, "data": {"train": str(rows), "max_length": 32}}
    good["method"] = {"rank": 2}
    patient = Patient(control, shared_filesystem=True)
    assert patient.placement(patient.run(**good)) == FITS
    missing = {**good, "data": {"train": str(tmp_path / "none.jsonl")}}
    assert "none.jsonl" in patient.placement(patient.run(**missing)).rejection
    # What the service can't see is the job's own to check.
    assert Patient(control).placement(patient.run(**missing)) == FITS
