"""A project's runs use its own folder of a configured store, and nothing tells a lost run's project
but the folder that it lies in.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.errors import InputError
from jobs.store.open import open_store
from jobs.store.runs.run_store import format_run_key
from orchestrator.control.config import parse_config
from orchestrator.control.resolve import SubmitRequest
from orchestrator.registry import adapters
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.rebuild.adopt import adopt
from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
from orchestrator.registry.run_request import REQUEST_FILE
from orchestrator.registry.tenancy.project_store import list_stored_projects
from orchestrator.registry.values import Run
from tests.orchestrator.control.builders import make_spec, open_project
from tests.orchestrator.control.control import SUCCEEDED, ControlHarness

REGISTRY_TABLES = (
    "events", "attempts", "pointers", "adapters", "adapter_names", "searches", "runs", "projects",
)  # fmt: skip


def submit_to(control: ControlHarness, store: str | None, project: str = "lab") -> Run:
    open_project(control.database, project)
    spec = make_spec()
    spec |= {"store": store} if store is not None else {}
    if store is None:
        del spec["store"]
    return control.intake.accept(SubmitRequest(spec=spec, project=project))[0]


def lose_registry(control: ControlHarness) -> None:
    with control.database.write() as session:
        for table in REGISTRY_TABLES:
            session.execute(text(f"DELETE FROM {table}"))


def list_labels(control: ControlHarness, project: str) -> list[tuple[str, str]]:
    with control.database.read() as session:
        page = adapters.list_page(session, project=project)
        return [(adapter.store, adapter.label) for adapter in page]


def finish_run(control: ControlHarness, run: Run, folder: Path) -> None:
    control.reconcile()
    control.commit(run, folder)
    control.cluster.play(f"{run.id}-a1", SUCCEEDED)
    control.reconcile()
    assert control.read_status(run) is Status.DONE, control.read(run).detail


def test_the_service_adds_the_project_to_the_store(control: ControlHarness):
    own = f"{control.store}/projects/lab"
    for store in (None, control.store, f"{control.store}/", own, f"{own}/"):
        assert submit_to(control, store).store == own
    assert submit_to(control, None, "default").store == control.store
    assert open_store(own).head(format_run_key(submit_to(control, None).id, REQUEST_FILE))


@pytest.mark.parametrize(
    "suffix",
    [
        "/sub", "/projects", "/projects/other", "/projects/lab/sub", "/projects/lab2",
        "/projects/LAB", "/projects/lab/..", "/projects/other/../lab/../other", "/../store2",
        "/projects%2fother", "/projects/l\u0430b", "/projects/default", "//projects/other", "2",
        "\0",
    ],
)  # fmt: skip
@pytest.mark.parametrize("project", ["lab", "default"])
def test_a_free_store_is_refused_with_the_way_out(
    control: ControlHarness, suffix: str, project: str
):
    with pytest.raises(InputError) as error:
        submit_to(control, f"{control.store}{suffix}", project)
    (fault,) = error.value.faults
    assert fault.key == "store"


def test_the_remedy_names_the_configured_stores(control: ControlHarness):
    with pytest.raises(InputError, match=r"or use file://.*: the service adds the project"):
        submit_to(control, f"{control.store}/sub")


def test_a_link_in_place_of_a_projects_folder_is_not_followed(
    control: ControlHarness, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    root = Path(control.store.removeprefix("file://"))
    (root / "projects").mkdir(parents=True)
    (root / "projects/linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leaves the store"):
        open_store(control.store).url("projects/linked")


def test_stores_inside_each_other_are_refused():
    values = {"clusters": {"default": {"address": "http://127.0.0.1:1"}}}
    with pytest.raises(InputError, match="lies inside"):
        parse_config({**values, "stores": ["s3://bucket/x", "s3://bucket/x/projects/lab"]})
    assert parse_config({**values, "stores": ["s3://bucket/x", "s3://bucket/x2"]}).stores


def test_projects_may_use_the_same_name(control: ControlHarness, tmp_path: Path):
    for project in ("lab", "default", "other"):
        finish_run(control, submit_to(control, None, project), tmp_path / project)
    assert list_labels(control, "lab") == [(f"{control.store}/projects/lab", "chat@v1")]
    assert list_labels(control, "default") == [(control.store, "chat@v1")]
    assert list_stored_projects(open_store(control.store)) == ["lab", "other"]


def test_a_rebuild_gives_each_run_and_adapter_to_the_project_of_its_folder(
    control: ControlHarness, tmp_path: Path
):
    runs = {project: submit_to(control, None, project) for project in ("lab", "default")}
    for project, run in runs.items():
        finish_run(control, run, tmp_path / project)
    lose_registry(control)
    result = rebuild_projects(control.database, open_store(control.store))
    assert (result.runs.total, result.adapters.total, result.faults) == (2, 2, [])
    for project, run in runs.items():
        assert (control.read(run).project, control.read(run).store) == (project, run.store)
        assert list_labels(control, project) == [(run.store, "chat@v1")]
    assert rebuild_projects(control.database, open_store(control.store)).runs.changed == 0


def test_a_part_of_a_store_is_not_rebuilt_as_that_of_default(control: ControlHarness):
    part = open_store(submit_to(control, None).store)
    with pytest.raises(InputError, match="Use the whole store: file://"):
        rebuild_projects(control.database, part)


def test_a_request_that_names_another_project_gives_it_no_run(control: ControlHarness):
    run = submit_to(control, None)
    store, key = open_store(run.store), format_run_key(run.id, REQUEST_FILE)
    request = json.loads(store.get(key))
    store.put(key, json.dumps({**request, "project": "other", "store": control.store}).encode())
    lose_registry(control)
    rebuild_projects(control.database, open_store(control.store))
    assert (control.read(run).project, control.read(run).store) == ("lab", run.store)


def test_a_folder_with_the_id_of_anothers_run_does_not_take_it_over(control: ControlHarness):
    run = submit_to(control, None, "default")
    key = format_run_key(run.id, REQUEST_FILE)
    request = open_store(run.store).get(key)
    open_store(f"{control.store}/projects/lab").put(key, request)
    lose_registry(control)
    for _ in range(2):
        rebuild_projects(control.database, open_store(control.store))
        assert (control.read(run).project, control.read(run).store) == ("default", run.store)
    lab = open_store(f"{control.store}/projects/lab")
    assert adopt(control.database, lab, run.id, attempt=1, project="lab") is None
    assert control.read(run).project == "default"


@pytest.mark.parametrize("folder", ["projects/x", "projects/default/runs/x", "projects/a b/c/d"])
def test_a_folder_that_is_no_projects_is_ignored(control: ControlHarness, folder: str):
    store = open_store(control.store)
    store.put(f"{folder}.json", b"{}")
    assert list_stored_projects(store) == []


def test_the_job_of_a_lost_run_is_adopted_into_the_project_of_its_folder(control: ControlHarness):
    run = submit_to(control, None)
    control.reconcile(2)
    lose_registry(control)
    control.reconcile(2)
    adopted = control.read(run)
    assert (adopted.status, adopted.project, adopted.store) == (Status.RUNNING, "lab", run.store)
    assert control.cluster.stopped_ids == []


def test_a_job_that_names_another_project_is_adopted_into_none(control: ControlHarness):
    run = submit_to(control, None)
    control.reconcile(2)
    (job,) = control.cluster.started_jobs
    control.cluster.forget_all()
    lose_registry(control)
    foreign = type(job)(job.submission, job.module, (), {**job.metadata, "project": "../lab"})
    control.cluster.add_foreign_job(foreign, SUCCEEDED)
    control.reconcile(2)
    with pytest.raises(UnknownItem):
        control.read(run)
