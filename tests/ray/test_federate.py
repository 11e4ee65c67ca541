"""Federations on a real Ray: the same bits on any number of sites, through killed clients."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs.federation.check import check_federation
from jobs.federation.round_log import open_round_log
from jobs.search.trial_log import TrialLog
from jobs.spec.kinds import require_kind
from jobs.spec.load import validate_spec
from jobs.spec.schema import FederatedSpec
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.runs import folder_with_rows, make_loop
from tests.long import long_asked
from tests.ray.gates import Gate, gate_at
from tests.ray_head import Head, ray_head
from tests.tiny import merge_spec, tiny_spec, write_spec

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(600)]
ROUNDS = 8
FEDERATION = {"clients": 6, "clients_per_round": 3, "rounds": ROUNDS, "local_steps": 2,
              "partition": "dirichlet", "dirichlet_alpha": 0.5}  # fmt: skip


@pytest.fixture(scope="module")
def head(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Head]:
    """A Ray of this module's own where sites are killed, which the long tests do."""
    if not long_asked(request):
        yield request.getfixturevalue("head")
        return
    with ray_head(tmp_path_factory.mktemp("federate-head", numbered=True)) as ready:
        yield ready


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with_rows(tmp_path_factory.mktemp("federated"))


def _spec(folder: Path, name: str, federation: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    spec = tiny_spec(
        folder,
        name=name,
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval": str(folder / "eval.jsonl"), "packing": False},
        train={"steps": None, "checkpoint_every": 1, "eval_every": 4},
        method={"sparse_share": 0.5},
        cluster={"workers": 2},
        federation={**FEDERATION, **federation},
    )
    return merge_spec(spec, more)


class Job:
    """One run of the job, and its results."""

    def __init__(self, head: Head, folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        self._head, self.store, self.run = head, DirectoryStore(folder / "store"), run
        self.runs = RunStore(self.store, run)
        self._path = write_spec(folder / f"{run}.yaml", spec)

    def start(
        self, gate: Gate | None = None, *, attempt: int = 1, module: str = "jobs.federate"
    ) -> subprocess.Popen[str]:
        words = (module, "--spec", str(self._path), "--run", self.run, "--attempt", str(attempt))
        return self._head.run(*(gate.words if gate else ()), *words)

    def run_to_end(self, *, attempt: int = 1, module: str = "jobs.federate") -> str:
        job = self.start(attempt=attempt, module=module)
        output, _ = job.communicate(timeout=400)
        assert job.returncode == 0, output
        return output

    def read_rounds(self) -> list[dict[str, Any]]:
        return open_round_log(self.runs).tail(0)[0]

    def read_events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.runs.events.tail(0)[0] if event["event"] == kind]


def _weights(manifest: Manifest) -> str:
    files = {file.name: file.sha256 for file in manifest.files}
    return files["adapter_model.safetensors"]


def _wait_until(true: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not true():
        assert not _has_ended(job, within=0.02) and time.monotonic() < deadline


def _has_ended(job: subprocess.Popen[str], *, within: float) -> bool:
    """Return whether the job ends within so many seconds."""
    with suppress(subprocess.TimeoutExpired):
        job.wait(within)
    return job.poll() is not None


@pytest.fixture(scope="module")
def in_one_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Run the same federation without Ray: one site, uninterrupted."""
    torch.set_num_threads(1)
    spec = _spec(folder, "fed", {"drop_out": 0.3}, store=f"file://{folder / 'alone'}")
    validated = check_federation(require_kind(validate_spec(spec), FederatedSpec))
    runs = RunStore(DirectoryStore(folder / "alone"), "alone")
    request = validated.extend_request(validated.validated_run.make_request("alone"), runs)
    manifest = make_loop(request).run()
    assert manifest is not None
    return manifest


def test_two_sites_train_the_same_bits_as_one(head, folder, in_one_process):
    job = Job(head, folder, "two", _spec(folder, "fed", {"drop_out": 0.3}))
    output = job.run_to_end()
    manifest = resolve_adapter(job.store, "fed")
    assert _weights(manifest) == _weights(in_one_process)
    assert manifest.federation is not None and manifest.federation["rounds"] == ROUNDS
    assert len(job.read_rounds()) == ROUNDS and "held-out data" in output
    assert manifest.world_size == 2


def test_a_server_killed_between_rounds_resumes_to_the_same_bits(head, folder, in_one_process):
    job = Job(head, folder, "killed", _spec(folder, "fed-killed", {"drop_out": 0.3}))
    for attempt, rounds in ((1, 2), (2, 5)):
        with gate_at(folder, rounds) as gate:
            driver = job.start(gate, attempt=attempt)
            _wait_until(lambda: len(job.read_rounds()) >= rounds, driver)  # noqa: B023
            driver.kill()
            driver.communicate()
    job.run_to_end(attempt=3)
    assert _weights(resolve_adapter(job.store, "fed-killed")) == _weights(in_one_process)
    assert len(job.read_events("resumed")) == 2


def test_a_client_that_dies_in_a_round_is_dropped_and_the_round_counts(head, folder):
    job = Job(head, folder, "dying", _spec(folder, "dying", {"rounds": 6}))
    with gate_at(folder, 2) as gate:
        driver = job.start(gate)
        _wait_until(lambda: len(job.read_rounds()) >= 2, driver)
        victim = next(iter(head.family("SiteActor")))
        assert isinstance(victim, psutil.Process)
        victim.kill()
        gate.open()
        output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    assert len(job.read_rounds()) == 6
    dropped = job.read_events("client_dropped")
    assert len(dropped) <= 1 and resolve_adapter(job.store, "dying").ledger[
        "dropped_clients"
    ] == len(dropped)


def test_sites_that_all_die_end_the_run_with_their_reason(head, folder):
    spec = _spec(folder, "hopeless", {"rounds": 200}, cluster={"max_failures": 1})
    job = Job(head, folder, "hopeless", spec)
    with gate_at(folder, 1) as gate:
        driver = job.start(gate)
        _wait_until(lambda: len(job.read_rounds()) >= 1, driver)
        gate.open()
        while not _has_ended(driver, within=0.05):
            for process in head.family("SiteActor"):
                process.kill()
        output, _ = driver.communicate()
    assert driver.returncode == 1
    assert "the federation's sites" in output and "losses in a row" in output


def test_a_site_that_hangs_is_replaced_and_its_client_dropped_from_the_round(head, folder):
    # Without evaluations, whose parts another site takes over in silence.
    alone = {"data": {"eval": None}, "train": {"eval_every": None}}
    spec = _spec(folder, "hung", {"rounds": 6}, cluster={"timeout": 10}, **alone)
    job = Job(head, folder, "hung", spec)
    with gate_at(folder, 2) as gate:
        driver = job.start(gate)
        _wait_until(lambda: len(job.read_rounds()) >= 2, driver)
        head.family("SiteActor")[0].suspend()
        gate.open()
        output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    (dropped,) = job.read_events("client_dropped")
    assert dropped["why"] == "it did not reply within 10 s"
    assert len(job.read_rounds()) == 6


def test_sites_that_die_after_the_last_round_do_not_fail_the_run(head, folder):
    spec = _spec(folder, "late", {}, method={"kind": "sparse", "sparse_share": None})
    driver = head.run("tests.ray.dying_sites", str(write_spec(folder / "late.yaml", spec)))
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    # Ray prints its own lines on workers that died.
    report = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert report == {"before": 2, "after": 0, "adapter": "late@v1"}


def test_residuals_of_an_earlier_stage_are_not_used_in_a_later_one(head, folder):
    """One client a round and no evaluation: a site may have no task of a stage for long."""
    federation = {"clients": 2, "clients_per_round": 1, "compress": "topk", "partition": "iid",
                  "dirichlet_alpha": None}  # fmt: skip
    spec = _spec(folder, "held", federation, data={"eval": None}, train={"eval_every": None})
    spec["federation"].pop("dirichlet_alpha")
    job = Job(head, folder, "held", spec)
    job.run_to_end()
    stages = {
        (line["stage"], client["client"])
        for line in job.read_rounds()
        for client in line["clients"]
    }
    assert {("sparse", 0), ("sparse", 1)} <= stages
    assert resolve_adapter(job.store, "held").ledger["dropped_clients"] == 0


def test_a_search_over_a_federation_commits_its_best_trial(head, folder):
    spec = _spec(folder, "searched", {"rounds": 4}, cluster={"workers": 1})
    spec["search"] = {
        "space": {
            "federation.local_steps": {"choice": [1, 2]},
            "method.rank": {"choice": [1, 2]},
        },
        "algorithm": "grid",
        "scheduler": "none",
    }
    spec["search"]["space"] = {
        key: {"grid": domain["choice"]} for key, domain in spec["search"]["space"].items()
    }
    job = Job(head, folder, "searched", spec)
    job.run_to_end(module="jobs.search")
    records = TrialLog(job.runs).records
    assert [record.status for record in records] == ["done"] * 4
    manifest = resolve_adapter(job.store, "searched")
    assert manifest.search == "searched" and manifest.federation is not None
    assert manifest.federation["local_steps"] in (1, 2)
    assert manifest.evaluation["end"]["loss"] == pytest.approx(
        min(record.metric or 9 for record in records)
    )
