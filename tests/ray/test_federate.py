"""Federations on a real Ray: the same bits on any number of sites, clients and servers killed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from jobs.federation.check import check_federation
from jobs.federation.round_log import open_round_log
from jobs.federation.server import FederationServer
from jobs.federation.sites.client_rows import make_request_partition
from jobs.federation.sites.local_sites import LocalSites
from jobs.search.trial_log import TrialLog
from jobs.spec.load import validate_spec
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.runs import folder_with_rows
from tests.ray_head import Head
from tests.tiny import merge_spec, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROUNDS = 8
FEDERATION = {"clients": 6, "clients_per_round": 3, "rounds": ROUNDS, "local_steps": 2,
              "partition": "dirichlet", "dirichlet_alpha": 0.5}  # fmt: skip


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
    """One run of the job, and what it left."""

    def __init__(self, head: Head, folder: Path, run: str, spec: Mapping[str, Any]) -> None:
        self._head, self.store, self.run = head, DirectoryStore(folder / "store"), run
        self.runs = RunStore(self.store, run)
        self._path = write_spec(folder / f"{run}.yaml", spec)

    def begun(self, *, attempt: int = 1, module: str = "jobs.federate") -> subprocess.Popen[str]:
        words = (module, "--spec", str(self._path), "--run", self.run, "--attempt", str(attempt))
        return self._head.run(*words)

    def ended(self, *, attempt: int = 1, module: str = "jobs.federate") -> str:
        job = self.begun(attempt=attempt, module=module)
        said, _ = job.communicate(timeout=400)
        assert job.returncode == 0, said
        return said

    def rounds(self) -> list[dict[str, Any]]:
        return open_round_log(self.runs).tail(0)[0]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.runs.events.tail(0)[0] if event["event"] == kind]


def _weights(manifest: Manifest) -> str:
    return next(one.sha256 for one in manifest.files if one.name == "adapter_model.safetensors")


def _until(true: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 200
    while not true():
        assert not _over(job, within=0.02) and time.monotonic() < until


def _over(job: subprocess.Popen[str], *, within: float) -> bool:
    """Whether the job has ended, after so many seconds at most."""
    with suppress(subprocess.TimeoutExpired):
        job.wait(within)
    return job.poll() is not None


@pytest.fixture(scope="module")
def in_one_process(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same federation without Ray: one site, uninterrupted."""
    torch.set_num_threads(1)
    spec = _spec(folder, "fed", {"drop_out": 0.3}, store=f"file://{folder / 'alone'}")
    asked = validate_spec(spec)
    found = check_federation(asked)
    request = dataclasses.replace(
        found.validated_run.make_request("alone"), federation=asked.section
    )
    store = DirectoryStore(folder / "alone")
    sites = LocalSites(request, store, torch.device("cpu"))
    made = FederationServer(
        request, RunStore(store, "alone"), sites, make_request_partition(request)
    ).run()
    assert made is not None
    return made


def test_two_sites_come_to_the_bits_of_one_and_tell_every_client(head, folder, in_one_process):
    job = Job(head, folder, "two", _spec(folder, "fed", {"drop_out": 0.3}))
    said = job.ended()
    made = resolve_adapter(job.store, "fed")
    assert _weights(made) == _weights(in_one_process)
    assert made.federation is not None and made.federation["rounds"] == ROUNDS
    assert len(job.rounds()) == ROUNDS and "held-out data" in said
    assert made.world_size == 2


def test_a_server_killed_between_rounds_goes_on_to_the_bits_of_one_that_was_not(
    head, folder, in_one_process
):
    job = Job(head, folder, "killed", _spec(folder, "fed-killed", {"drop_out": 0.3}))
    for attempt, at in ((1, 2), (2, 5)):
        driver = job.begun(attempt=attempt)
        _until(lambda: len(job.rounds()) >= at, driver)  # noqa: B023
        driver.kill()
        driver.communicate()
    job.ended(attempt=3)
    assert _weights(resolve_adapter(job.store, "fed-killed")) == _weights(in_one_process)
    assert len(job.events("resumed")) == 2


def test_a_client_that_dies_in_a_round_is_left_out_of_it_and_the_round_counts(head, folder):
    job = Job(head, folder, "dying", _spec(folder, "dying", {"rounds": 12}))
    driver = job.begun()
    _until(lambda: len(job.rounds()) >= 2, driver)
    victim = next(iter(head.family("SiteActor")))
    assert isinstance(victim, psutil.Process)
    victim.kill()
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said
    assert len(job.rounds()) == 12
    left = job.events("left out")
    assert len(left) <= 1 and resolve_adapter(job.store, "dying").ledger["left_out"] == len(left)


@pytest.mark.long
def test_sites_that_all_die_end_the_run_with_their_reason(head, folder):
    spec = _spec(folder, "hopeless", {"rounds": 200}, cluster={"max_failures": 1})
    job = Job(head, folder, "hopeless", spec)
    driver = job.begun()
    _until(lambda: len(job.rounds()) >= 1, driver)
    while not _over(driver, within=0.05):
        for process in head.family("SiteActor"):
            process.kill()
    said, _ = driver.communicate()
    assert driver.returncode == 1
    assert "the federation's sites" in said and "died without an answer" in said


@pytest.mark.long
def test_a_site_that_hangs_loses_its_client_for_the_round_and_is_replaced(head, folder):
    # Without evaluations, whose parts another site takes over in silence.
    alone = {"data": {"eval": None}, "train": {"eval_every": None}}
    spec = _spec(folder, "hung", {"rounds": 30}, cluster={"timeout": 10}, **alone)
    job = Job(head, folder, "hung", spec)
    driver = job.begun()
    _until(lambda: len(job.rounds()) >= 2, driver)
    head.family("SiteActor")[0].suspend()
    said, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, said
    (left,) = job.events("left out")
    assert left["why"] == "it did not answer within 10 s"
    assert len(job.rounds()) == 30


@pytest.mark.long
def test_sites_that_die_after_the_last_round_cost_no_run(head, folder):
    spec = _spec(folder, "late", {}, method={"kind": "sparse", "sparse_share": None})
    driver = head.run("tests.ray.dying_sites", str(write_spec(folder / "late.yaml", spec)))
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    # Ray has words of its own on workers that died, before it or behind it.
    told = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert told == {"before": 2, "after": 0, "adapter": "late@v1"}


@pytest.mark.long
def test_what_a_site_holds_back_for_an_earlier_stage_is_nothing_to_a_later_one(head, folder):
    """One client a round and no evaluation: a site may have no task of a stage for long."""
    federation = {"clients": 2, "clients_per_round": 1, "compress": "topk", "partition": "iid",
                  "dirichlet_alpha": None}  # fmt: skip
    spec = _spec(folder, "held", federation, data={"eval": None}, train={"eval_every": None})
    spec["federation"].pop("dirichlet_alpha")
    job = Job(head, folder, "held", spec)
    job.ended()
    stages = {(one["stage"], client["client"]) for one in job.rounds() for client in one["clients"]}
    assert {("sparse", 0), ("sparse", 1)} <= stages
    assert resolve_adapter(job.store, "held").ledger["left_out"] == 0


@pytest.mark.long
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
    job.ended(module="jobs.search")
    rows = TrialLog(job.runs).records
    assert [row.status for row in rows] == ["done"] * 4
    made = resolve_adapter(job.store, "searched")
    assert made.search == "searched" and made.federation is not None
    assert made.federation["local_steps"] in (1, 2)
    assert made.evaluation["end"]["loss"] == pytest.approx(min(row.metric or 9 for row in rows))
