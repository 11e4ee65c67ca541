"""The source of a base: hub ids and URLs are kept, with a commit; a folder is a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.inspect.base_digest import digest_base
from jobs.inspect.base_source import BaseSource, find_base_source
from jobs.inspect.model_folder import find_model_folder
from jobs.store.adapters.manifest import BaseRecord
from jobs.store.adapters.operations import commit, verify_adapter
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.tiny import hollow_model

HUB_ID, OLD, NEW = "org/tiny", "a" * 40, "b" * 40


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a hub cache with two commits of one model, the second of which is `main`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--tiny"
    hollow_model(repository / "snapshots" / OLD)
    hollow_model(repository / "snapshots" / NEW, says={"hidden_act": "gelu"})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    return repository / "snapshots"


def test_the_source_of_a_hub_id_is_the_id_and_the_commit_in_the_cache(hub_cache: Path):
    folder = find_model_folder(HUB_ID)
    assert folder == hub_cache / NEW
    assert find_base_source(HUB_ID, folder) == BaseSource(HUB_ID, NEW)


def test_a_commit_is_found_although_a_newer_one_is_in_the_cache(hub_cache: Path):
    assert find_model_folder(HUB_ID, OLD) == hub_cache / OLD
    assert find_model_folder(HUB_ID, "c" * 40) is None


def test_a_url_stays_and_a_folder_stays(hub_cache: Path):
    snapshot = str(hub_cache / OLD)
    assert find_base_source("s3://b/base", Path("/cache/x")) == BaseSource("s3://b/base")
    assert find_base_source(snapshot, hub_cache / OLD) == BaseSource(snapshot)
    assert find_base_source("/models/tiny", Path("/models/tiny")) == BaseSource("/models/tiny")


def test_verification_compares_the_recorded_commit(hub_cache: Path, tmp_path: Path):
    store = DirectoryStore(tmp_path / "store")
    base = BaseRecord(path=HUB_ID, revision=OLD, **vars(digest_base(hub_cache / OLD)))
    manifest = commit(store, make_adapter_folder(tmp_path / "files"), make_draft(base=base))
    assert verify_adapter(store, manifest) == []
    moved = base.model_copy(update={"revision": NEW})
    [fault] = verify_adapter(store, manifest.model_copy(update={"base": moved}))
    assert (fault.key, NEW in fault.problem) == ("base", True)
