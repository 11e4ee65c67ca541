"""What a hostile project submits: names of others, numbers that jump, files outside its places."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.places.boundary import VARIABLE
from jobs.places.places import PROBLEM, Places
from jobs.spec.strategies import get_allowed_masks
from jobs.store.adapters.manifest import get_manifest_key
from jobs.store.open import open_store
from orchestrator.control.intake import Intake
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import adapters, projects
from orchestrator.registry.errors import NameTaken
from orchestrator.registry.lifecycle import Reason, Status
from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
from orchestrator.registry.tenancy import adapter_names
from orchestrator.registry.values import ProjectInputs, ProjectLimits, Run
from tests.jobs.store.builders import make_adapter_folder
from tests.orchestrator.control.builders import make_spec, open_project
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness


def own_name(control: ControlHarness, project: str, name: str = "chat") -> None:
    """Make a project the owner of a name at the root, as before projects had stores."""
    open_project(control.database, project)
    with control.database.write() as session:
        adapter_names.claim(session, control.store, name, project)


def end_job(control: ControlHarness, run: Run) -> Run:
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    return control.read(run)


def test_a_name_of_another_project_is_refused_without_telling_whose_it_is(control: ControlHarness):
    own_name(control, "lab")
    with pytest.raises(InputError) as error:
        control.submit()
    assert str(error.value) == "name: it is in use in this store. Use another name."
    assert control.submit("chat2").name == "chat2"


def test_a_run_that_fails_takes_no_name(control: ControlHarness):
    run = control.submit()
    control.reconcile()
    assert end_job(control, run).status is Status.FAILED
    own_name(control, "lab")


def test_a_name_that_was_claimed_meanwhile_ends_the_run_with_a_reason(
    control: ControlHarness, tmp_path: Path
):
    run = control.submit()
    control.reconcile()
    own_name(control, "lab")
    control.commit(run, tmp_path / "adapter")
    ended = end_job(control, run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert ended.detail == "The adapter name 'chat' is in use in this store. Use another name."
    with control.database.read() as session:
        assert adapters.list_page(session) == []


def test_the_first_version_of_a_name_makes_its_project_the_owner(
    control: ControlHarness, tmp_path: Path
):
    run = control.submit()
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    assert end_job(control, run).status is Status.DONE
    with pytest.raises(NameTaken):
        own_name(control, "lab")


def write_version(control: ControlHarness, run: Run, version: int, folder: Path) -> None:
    """Write a version as a job could that does not count."""
    control.commit(run, make_adapter_folder(folder))
    store = open_store(run.store)
    manifest = json.loads(store.get(get_manifest_key(run.name, 1)))
    data = json.dumps({**manifest, "version": version}).encode()
    store.put(get_manifest_key(run.name, version), data)
    store.delete(get_manifest_key(run.name, 1))


def test_a_number_that_jumps_ends_the_run_and_the_name_stays_usable(
    control: ControlHarness, tmp_path: Path
):
    run = control.submit()
    control.reconcile()
    write_version(control, run, 999_999_999, tmp_path / "one")
    ended = end_job(control, run)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.REFUSED)
    assert "chat@v999999999 is not recorded: its number jumps" in ended.detail
    result = rebuild_projects(control.database, open_store(control.store))
    assert [fault.key for fault in result.faults] == ["adapters/chat/v999999999/manifest.json"]
    later = control.submit()
    control.reconcile()
    control.commit(later, make_adapter_folder(tmp_path / "two", "other"))
    assert end_job(control, later).status is Status.DONE
    with control.database.read() as session:
        assert [adapter.version for adapter in adapters.list_page(session)] == [2]


@pytest.mark.parametrize("run_of_another", [True, False])
def test_a_manifest_that_names_a_run_of_another_project_stays_in_its_own(
    control: ControlHarness, tmp_path: Path, run_of_another: bool
):
    victim = control.submit()
    run = control.submit(project="lab")
    control.reconcile()
    control.commit(run, tmp_path / "adapter")
    store, key = open_store(run.store), get_manifest_key("chat", 1)
    if run_of_another:
        values = {**json.loads(store.get(key)), "run": victim.id, "search": run.id}
        store.put(key, json.dumps(values).encode())
    assert end_job(control, run).status is Status.DONE
    with control.database.read() as session:
        assert [item.project for item in adapters.list_page(session)] == ["lab"]


PLACES = ProjectInputs(places=("/data/lab", "s3://bucket/lab"), models=("/models/tiny", "org/*"))
OUTSIDE = {
    "data.train": "/data/other/x.jsonl",
    "data.eval": "/data/lab/../other/x.jsonl",
    "model.path": "/models/tiny2",
}


def restrict(control: ControlHarness, name: str = "lab") -> None:
    with control.database.write() as session:
        projects.add(session, name, ProjectLimits(), PLACES)


def make_inside_spec(**changes: Any) -> dict[str, Any]:
    data = {"train": "/data/lab/train.jsonl", "eval": "s3://bucket/lab/eval.jsonl"}
    spec = {**make_spec(data={**data, "max_length": 64}), **changes}
    del spec["store"]
    return spec


def submit_restricted(control: ControlHarness, spec: dict[str, Any], kind: Any = "finetune") -> Run:
    return control.intake.accept(SubmitRequest(spec=spec, project="lab", kind=kind))[0]


def test_a_submission_inside_its_places_is_accepted(control: ControlHarness):
    restrict(control)
    assert submit_restricted(control, make_inside_spec()).project == "lab"
    own = {"train": f"{control.store.removeprefix('file://')}/projects/lab/rows.jsonl"}
    assert submit_restricted(control, make_inside_spec(data=own))
    assert submit_restricted(control, make_inside_spec(model={"path": "org/small"}))


@pytest.mark.parametrize("key", OUTSIDE)
def test_each_key_outside_is_refused(control: ControlHarness, key: str):
    restrict(control)
    spec = make_inside_spec()
    section, name = key.split(".")
    spec[section] = {**spec[section], name: OUTSIDE[key]}
    with pytest.raises(InputError) as error:
        submit_restricted(control, spec)
    assert [fault.key for fault in error.value.faults] == [key]


def test_the_trials_of_a_search_are_held_to_the_places_too(control: ControlHarness):
    restrict(control)
    space = {"data.train": {"choice": ["/data/lab/a.jsonl", "/etc/passwd"]},
             "model.path": {"grid": ["/models/tiny", "/models"]}}  # fmt: skip
    search = {"space": space, "scheduler": "none"}
    with pytest.raises(InputError) as error:
        submit_restricted(control, make_inside_spec(search=search), "search")
    assert [(fault.key, fault.problem) for fault in error.value.faults] == [
        ("search.space.model.path", PROBLEM), ("search.space.data.train", PROBLEM),
    ]  # fmt: skip


def test_the_store_of_another_project_is_no_place_even_of_an_open_project(control: ControlHarness):
    open_project(control.database, "lab")
    root = control.store.removeprefix("file://")
    for path in (f"{root}/projects/other/x", f"{root}/runs/x", f"{root}/projects/*/x"):
        with pytest.raises(InputError, match=r"data\.train: it is not inside"):
            submit_restricted(control, make_inside_spec(data={"train": path}))


def test_a_project_that_nobody_has_opened_reads_its_own_store_only(control: ControlHarness):
    with control.database.write() as session:
        projects.ensure_project(session, "lab")
    with pytest.raises(InputError) as error:
        submit_restricted(control, make_inside_spec())
    assert len(error.value.faults) == 3


def test_the_job_is_given_the_places_as_they_are_when_it_starts(control: ControlHarness):
    restrict(control)
    run = submit_restricted(control, make_inside_spec())
    control.submit("free")
    with control.database.write() as session:
        project = projects.get(session, "lab")
        changed = ProjectInputs(places=("/data/lab/now",), models=())
        projects.set_limits(session, project, ProjectLimits(), changed)
    control.reconcile()
    environments = {job.metadata["run"]: job.environment for job in control.cluster.started_jobs}
    given = Places.model_validate_json(environments.pop(run.id)[VARIABLE])
    assert (given.data, given.models, given.store) == (("/data/lab/now",), (), run.store)
    assert list(environments.values()) == [{}]


def test_a_job_gets_the_masks_that_the_operator_allows(control: ControlHarness):
    control.rules = replace(control.rules, masks=("loudest",))
    control.main = control.make_reconciler("here")
    control.submit()
    control.reconcile()
    (job,) = control.cluster.started_jobs
    assert get_allowed_masks(job.environment) == ("loudest",)


@pytest.mark.parametrize("masks", [(), ("loudest",)])
@pytest.mark.parametrize("key", ["mask", "score"])
def test_only_the_masks_that_the_operator_allows_are_accepted(
    control: ControlHarness, masks: tuple[str, ...], key: str
):
    intake = Intake(control.database, [control.store], ["default"], masks=masks)
    spec = make_spec(control.store, method={"mask": "rows", key: "loudest"})
    spec["search"] = {"space": {f"method.{key}": {"choice": ["fisher", "deadly"]}},
                      "scheduler": "none"}  # fmt: skip
    with pytest.raises(InputError) as error:
        intake.resolve(SubmitRequest(spec=spec, kind="search"))
    keys = [fault.key for fault in error.value.faults]
    assert keys == [*(() if masks else (f"method.{key}",)), f"search.space.method.{key}"]
    del spec["search"]
    if masks:
        assert intake.resolve(SubmitRequest(spec=spec)).name == "chat"
