"""Places on a real bucket: a prefix ends at its slash, also behind a glob, and copies are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.file_selection import select_files
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.model_folder import find_model_folder
from jobs.places.boundary import restrict_places
from jobs.places.places import PROBLEM, Places
from jobs.store.open import open_store
from jobs.store.s3.s3_store import S3Store
from orchestrator.control.new_data import compute_data_fingerprint
from orchestrator.registry import adapters
from orchestrator.registry.database import Database
from orchestrator.registry.migrate import upgrade
from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
from orchestrator.registry.tenancy.project_store import list_stored_projects
from tests.orchestrator.registry.stores import commit_version


@pytest.fixture
def places(s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    for folder in ("lab", "lab2", "other"):
        s3.put(f"{folder}/train.jsonl", b'{"text": "a"}\n')
    s3.put("lab/model/config.json", b"{}")
    s3.put("lab/hostile/tokenizer_config.json", b'{"vocab_file": "/etc/passwd"}')
    return Places(data=(s3.url("lab"),), models=())


def test_rows_and_models_of_the_prefix_are_copied_and_read(places: Places, s3: S3Store):
    with restrict_places(places):
        for address in ("lab", "lab/", "lab/train.jsonl", "lab/*.jsonl", "lab/t*"):
            (path,) = select_files(f"{s3.url('')}/{address}").files
            assert [row.values for row in read_rows(path)] == [{"text": "a"}]
        assert find_model_folder(s3.url("lab/model"))
        assert compute_data_fingerprint(s3.url("lab"))


@pytest.mark.parametrize(
    "address",
    ["lab2", "lab*", "lab*/train.jsonl", "other/train.jsonl", "absent", "*", "", "lab/../other",
     "lab//../other/train.jsonl", "lab/%2e%2e/other", "LAB/train.jsonl"],
)  # fmt: skip
def test_nothing_else_of_the_bucket_is_read(places: Places, s3: S3Store, address: str):
    with restrict_places(places):
        for read in (select_files, find_model_folder, compute_data_fingerprint):
            with pytest.raises(InputError) as error:
                read(f"{s3.url('')}/{address}")
            (fault,) = error.value.faults
            assert fault.problem == PROBLEM or "/" in fault.problem


def test_a_model_of_the_prefix_that_names_a_file_of_the_machine_is_refused(
    places: Places, s3: S3Store
):
    with restrict_places(places), pytest.raises(InputError, match="names a file outside"):
        find_model_folder(s3.url("lab/hostile"))


def test_a_copy_of_another_project_in_the_cache_is_no_local_file(places: Places, s3: S3Store):
    (copy,) = select_files(s3.url("other/train.jsonl")).files
    with restrict_places(places), pytest.raises(InputError, match=PROBLEM):
        select_files(str(copy))


def test_a_bucket_is_rebuilt_by_project(s3: S3Store, tmp_path: Path):
    for folder in ("", "projects/lab", "projects/other"):
        commit_version(open_store(s3.url(folder)), tmp_path / "adapter")
    assert list_stored_projects(s3) == ["lab", "other"]
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    upgrade(url)
    database = Database(url)
    assert rebuild_projects(database, s3).adapters.total == 3
    with database.read() as session:
        owners = {item.store: item.project for item in adapters.list_page(session)}
    assert owners == {
        s3.url(""): "default",
        s3.url("projects/lab"): "lab",
        s3.url("projects/other"): "other",
    }
    database.close()
