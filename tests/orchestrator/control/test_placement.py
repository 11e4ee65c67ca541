"""Placement: whether a run fits on the whole cluster, after a grace period."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from orchestrator.cluster.base import Capacity
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.dispatcher import FITS
from orchestrator.control.placement import (
    SHORTAGE_TIMEOUT_S,
    Placement,
    find_shortage,
    set_node_memory,
)
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry.values import Run
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.builders import make_spec
from tests.orchestrator.control.control import ControlHarness
from tests.tiny import chat_rows, hollow_model

SMALL = Capacity(cpus=4, gpus=0, free_cpus=0, free_gpus=0, nodes=2, node_memory=8 << 30)


def load_cluster_spec(**cluster: Any) -> RunSpec:
    return validate_spec(make_spec(cluster=cluster))


@pytest.mark.parametrize(
    ("cluster", "shortage"),
    [
        pytest.param({"workers": 4}, "", id="fits, though all is busy"),
        pytest.param(
            {"workers": 5}, "the run needs 5 CPUs, but the cluster has 4 in total", id="workers"
        ),
        pytest.param({"workers": 2, "cpus_per_worker": 3}, "the run needs 6 CPUs", id="CPUs each"),
        pytest.param({"workers": 1, "gpus_per_worker": 1}, "the run needs 1 GPUs", id="GPUs"),
    ],
)
def test_a_shortage_of_the_whole_cluster_is_described(cluster: dict[str, Any], shortage: str):
    result = find_shortage(load_cluster_spec(**cluster), SMALL)
    assert result.startswith(shortage) and bool(result) == bool(shortage)


def test_the_memory_of_a_node_is_shared_by_its_workers():
    machine = set_node_memory(load_cluster_spec(workers=4), SMALL).cluster.machine
    assert (machine.workers_per_node, machine.memory_gb) == (2, pytest.approx(4.295, abs=0.01))


@pytest.mark.parametrize(
    "cluster",
    [
        pytest.param({"machine": {"memory_gb": 3}}, id="its memory is given"),
        pytest.param({"gpus_per_worker": 1}, id="a GPU's memory is not the node's"),
    ],
)
def test_a_given_memory_is_not_replaced(cluster: dict[str, Any]):
    original = load_cluster_spec(workers=1, **cluster)
    assert set_node_memory(original, SMALL) == original


class PlacementHarness:
    """A placement on a small cluster, with a settable clock."""

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
        values = make_spec(self.control.store, **changes)
        return self.control.intake.accept(SubmitRequest(spec=values))[0]


def test_a_small_cluster_has_time_for_its_nodes_to_rejoin(control: ControlHarness):
    harness = PlacementHarness(control)
    run = harness.run(cluster={"workers": 8})
    assert (
        harness.placement(run).wait_reason == "the run needs 8 CPUs, but the cluster has 4 in total"
    )
    harness.at = SHORTAGE_TIMEOUT_S - 1
    assert harness.placement(run).wait_reason
    harness.at = SHORTAGE_TIMEOUT_S
    assert (
        harness.placement(run).rejection == "the run needs 8 CPUs, but the cluster has 4 in total"
    )


def test_a_run_fits_after_nodes_rejoined_in_time(control: ControlHarness):
    harness = PlacementHarness(control)
    run = harness.run(cluster={"workers": 8})
    assert harness.placement(run).wait_reason
    harness.cluster.cluster_capacity = Capacity(16, 0, 16, 0, 4, None)
    assert harness.placement(run) == FITS


def test_an_autoscaling_cluster_is_never_too_small(control: ControlHarness):
    harness = PlacementHarness(control, autoscaling=True)
    harness.cluster.unreachable = True
    assert harness.placement(harness.run(cluster={"workers": 8})) == FITS


def test_nothing_is_rejected_while_the_cluster_is_unreachable(control: ControlHarness):
    harness = PlacementHarness(control)
    run = harness.run()
    harness.cluster.unreachable = True
    with pytest.raises(ClusterUnreachable):
        harness.placement(run)


def test_nothing_is_rejected_while_the_store_is_unreachable(control: ControlHarness):
    harness = PlacementHarness(control)
    run = harness.run()

    def fail(url: str) -> Any:
        raise StoreUnreachable("the store does not answer")

    control.open = fail
    assert harness.placement(run) == FITS


def test_an_invalid_plan_is_rejected_before_submission(control: ControlHarness, tmp_path: Path):
    model = hollow_model(tmp_path / "model")
    rows = chat_rows(tmp_path / "train.jsonl", 4)
    good = {"model": {"path": str(model)}, "data": {"train": str(rows), "max_length": 32}}
    good["method"] = {"rank": 2}
    harness = PlacementHarness(control, shared_filesystem=True)
    assert harness.placement(harness.run(**good)) == FITS
    missing = {**good, "data": {"train": str(tmp_path / "none.jsonl")}}
    assert "none.jsonl" in harness.placement(harness.run(**missing)).rejection
    # The job itself checks what the service cannot see.
    assert PlacementHarness(control).placement(harness.run(**missing)) == FITS
