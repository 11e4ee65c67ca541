"""Placement: whether a run fits on the whole cluster, after a grace period."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnreachable
from jobs.places.places import PROBLEM, REMEDY, Places
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from orchestrator.cluster.base import Capacity
from orchestrator.cluster.errors import ClusterUnreachable
from orchestrator.control.dispatcher import FITS, PlacementResult
from orchestrator.control.looking.look_protocol import LookLimits
from orchestrator.control.looking.look_runner import LookRunner
from orchestrator.control.placement import (
    BEING_CHECKED,
    SHORTAGE_TIMEOUT_S,
    Placement,
    find_shortage,
    set_node_memory,
)
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry.values import Run
from tests.orchestrator.cluster.fake import FakeCluster
from tests.orchestrator.control.builders import make_spec, open_project
from tests.orchestrator.control.control import ControlHarness
from tests.orchestrator.control.misbehaving_child import MODULE
from tests.tiny import chat_rows, hollow_model
from tests.waiting import wait_for

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
        self,
        control: ControlHarness,
        *,
        autoscaling: bool = False,
        shared_filesystem: bool = False,
        looks: LookRunner | None = None,
        find_places: Callable[[str, str], Places | None] = lambda project, store: None,
    ):
        self.control, self.at = control, 0.0
        self.cluster = FakeCluster()
        self.cluster.cluster_capacity = SMALL
        self.looks = looks or LookRunner(limits=LookLimits(wall_s=300))
        self.woken = threading.Event()
        self.placement = Placement(
            self.cluster,
            self.looks,
            shared_filesystem=shared_filesystem,
            autoscaling=autoscaling,
            find_places=find_places,
            store_opener=lambda url: control.open(url),
            clock=lambda: self.at,
            wake=self.woken.set,
        )

    def run(self, project: str = "default", **changes: Any) -> Run:
        values = make_spec(self.control.store, **changes)
        return self.control.intake.accept(SubmitRequest(spec=values, project=project))[0]

    def wait_for_look(self, run: Run) -> PlacementResult:
        """Return the placement once the look at the run's files is over."""
        while (result := self.placement(run)) == BEING_CHECKED:
            assert self.woken.wait(300)
            self.woken.clear()
        return result


@pytest.fixture
def files(open_folder: Path) -> dict[str, Any]:
    """The parts of a spec that name files, all of them right."""
    model = hollow_model(open_folder / "model")
    rows = chat_rows(open_folder / "train.jsonl", 4)
    data = {"train": str(rows), "max_length": 32}
    return {"model": {"path": str(model)}, "data": data, "method": {"rank": 2}}


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


@pytest.fixture
def shared(control: ControlHarness) -> Iterator[PlacementHarness]:
    harness = PlacementHarness(control, shared_filesystem=True)
    yield harness
    harness.looks.close()


def test_an_invalid_plan_is_rejected_before_submission(
    shared: PlacementHarness, files: dict[str, Any], open_folder: Path
):
    good = shared.run(**files)
    assert shared.placement(good) == BEING_CHECKED
    assert shared.wait_for_look(good) == FITS
    missing = {**files, "data": {"train": str(open_folder / "none.jsonl")}}
    assert "none.jsonl" in shared.wait_for_look(shared.run(**missing)).rejection
    # The job itself checks what the service cannot see.
    assert PlacementHarness(shared.control).placement(shared.run(**missing)) == FITS


def test_a_run_that_cannot_be_checked_is_left_to_its_job(
    control: ControlHarness, files: dict[str, Any]
):
    looks = LookRunner(limits=LookLimits(wall_s=0.001))
    harness = PlacementHarness(control, shared_filesystem=True, looks=looks)
    assert harness.wait_for_look(harness.run(**files)) == FITS
    looks.close()


def test_a_slow_look_of_a_project_delays_no_other_project(
    control: ControlHarness, files: dict[str, Any], open_folder: Path
):
    os.mkfifo(pipe := open_folder / "pipe.jsonl")
    looks = LookRunner(module=MODULE, limits=LookLimits(wall_s=3600))
    harness = PlacementHarness(control, shared_filesystem=True, looks=looks)
    open_project(control.database, "lab")
    slow = {**files, "data": {"train": str(pipe)}}
    hostile = [harness.run("lab", **slow) for _ in range(3)]
    quick = harness.run(**files)
    control.fits = harness.placement

    def dispatch() -> bool | None:
        control.reconcile()
        return control.list_submissions(quick) != [] or None

    wait_for(dispatch, timeout_s=300)
    assert [control.read(run).wait_reason for run in hostile] == [BEING_CHECKED.wait_reason] * 3
    looks.close()


def test_requests_of_runs_that_wait_for_a_look_are_not_read_again(
    control: ControlHarness, files: dict[str, Any], open_folder: Path
):
    os.mkfifo(pipe := open_folder / "pipe.jsonl")
    looks = LookRunner(module=MODULE, limits=LookLimits(wall_s=3600))
    harness = PlacementHarness(control, shared_filesystem=True, looks=looks)
    waiting = [harness.run(**{**files, "data": {"train": str(pipe)}}) for _ in range(2)]
    assert [harness.placement(run) for run in waiting] == [BEING_CHECKED] * 2

    def fail(url: str) -> Any:
        raise AssertionError("the store was read again")

    control.open = fail
    assert [harness.placement(run) for run in waiting] == [BEING_CHECKED] * 2
    looks.close()


def test_a_run_is_rejected_for_files_outside_of_its_project(
    control: ControlHarness, files: dict[str, Any]
):
    requests = list[tuple[str, str]]()

    def find_places(project: str, store: str) -> Places:
        requests.append((project, store))
        return Places(data=(), models=())

    harness = PlacementHarness(control, shared_filesystem=True, find_places=find_places)
    run = harness.run(**files)
    rejection = harness.wait_for_look(run).rejection
    sentence = f"{PROBLEM}. {REMEDY}"
    assert rejection == f"model.path: {sentence}\ndata.train: {sentence}"
    assert requests == [("default", run.store)]
    harness.looks.close()
