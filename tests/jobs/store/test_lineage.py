"""Lineage: parents back to the first, whatever became of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.adapters import ancestors, commit
from jobs.store.directory import DirectoryStore
from tests.jobs.store.made import adapter_folder, draft


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return adapter_folder(tmp_path / "exported")


def test_the_line_goes_back_to_the_first(store: DirectoryStore, folder: Path):
    commit(store, folder, draft(run="r1", name="old"))
    commit(store, folder, draft(run="r2", parent="old@v1"))
    last = commit(store, folder, draft(run="r3", parent="chat@v1"))
    assert [one.label for one in ancestors(store, last)] == ["chat@v1", "old@v1"]


@pytest.mark.parametrize(
    ("parent", "why"),
    [
        ("gone@v3", "not in the store"),
        ("chat", "no version"),
        ("chat@v1", "circle"),
        ("../../x", "no adapter"),
        ("\x1b[2J", "no adapter"),
    ],
)
def test_a_parent_that_can_not_be_followed_ends_the_line(store, folder, parent: str, why: str):
    [one] = ancestors(store, commit(store, folder, draft(parent=parent)))
    assert one.manifest is None
    assert why in one.why
