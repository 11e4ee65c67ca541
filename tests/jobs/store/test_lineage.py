"""Lineage: all parents back to the first, readable or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.adapters.operations import commit, list_ancestors
from jobs.store.local import DirectoryStore
from tests.jobs.store.builders import make_adapter_folder, make_draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_adapter_folder(tmp_path / "exported")


def test_the_lineage_goes_back_to_the_first_adapter(store: DirectoryStore, folder: Path):
    commit(store, folder, make_draft(run="r1", name="old"))
    commit(store, folder, make_draft(run="r2", parent="old@v1"))
    last = commit(store, folder, make_draft(run="r3", parent="chat@v1"))
    assert [ancestor.label for ancestor in list_ancestors(store, last)] == ["chat@v1", "old@v1"]


@pytest.mark.parametrize(
    ("parent", "problem"),
    [
        ("gone@v3", "not in the store"),
        ("chat", "no version"),
        ("chat@v1", "cyclic"),
        ("../../x", "not the name of an adapter"),
        ("\x1b[2J", "not the name of an adapter"),
    ],
)
def test_a_parent_that_cannot_be_resolved_ends_the_lineage(
    store, folder, parent: str, problem: str
):
    [ancestor] = list_ancestors(store, commit(store, folder, make_draft(parent=parent)))
    assert ancestor.manifest is None
    assert problem in ancestor.problem
