"""The rows that an adapter was evaluated on: unchanged, or missing with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.retrain.previous_eval import find_previous_rows
from jobs.store.local import DirectoryStore
from jobs.train.request import HeldOutRows
from tests.jobs.retrain.builders import committed, lora_files
from tests.tiny import chat_rows

SHARE: dict[str, Any] = {"eval": None, "eval_fraction": 0.25}


def _find_rows(workspace: Path, **data: Any) -> HeldOutRows | str:
    adapter = committed(workspace, lora_files(workspace / "one"), spec={"data": data})
    return find_previous_rows(DirectoryStore(workspace / "store"), adapter)


def test_an_unchanged_file_is_read_again(workspace):
    rows = _find_rows(workspace)
    assert isinstance(rows, HeldOutRows)
    assert (rows.scan.rows, rows.fraction) == (4, None)


def _change_rows(workspace: Path) -> None:
    chat_rows(workspace / "eval.jsonl", 5)


def _remove_rows(workspace: Path) -> None:
    (workspace / "eval.jsonl").unlink()


def _replace_spec(workspace: Path) -> None:
    (workspace / "store/runs/r1/spec.yaml").write_text("name: other")


def _remove_spec(workspace: Path) -> None:
    (workspace / "store/runs/r1/spec.yaml").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_change_rows, "has changed since tiny@v1 was evaluated on it"),
        (_remove_rows, "can no longer be read"),
        (_replace_spec, "the spec of run r1 has changed since"),
        (_remove_spec, "the files of run r1 are not in the store"),
    ],
    ids=["changed", "removed", "another spec", "no spec"],
)
def test_missing_rows_are_reported(damage, reason, workspace):
    adapter = committed(workspace, lora_files(workspace / "one"))
    damage(workspace)
    rows = find_previous_rows(DirectoryStore(workspace / "store"), adapter)
    assert isinstance(rows, str)
    assert reason in rows


def test_an_adapter_without_an_evaluation_is_reported(workspace):
    assert "was evaluated on none" in str(_find_rows(workspace, eval=None))


def _folder(workspace: Path) -> dict[str, Any]:
    (workspace / "rows").mkdir()
    chat_rows(workspace / "rows" / "a.jsonl", 8)
    return {**SHARE, "train": str(workspace / "rows")}


def test_a_share_of_the_first_files_survives_files_added_after_them(workspace):
    adapter = committed(workspace, lora_files(workspace / "one"), spec={"data": _folder(workspace)})
    chat_rows(workspace / "rows" / "b.jsonl", 5)
    rows = find_previous_rows(DirectoryStore(workspace / "store"), adapter)
    assert isinstance(rows, HeldOutRows)
    assert ([path.name for path in rows.scan.files], rows.file_count) == (["a.jsonl"], 1)
    assert (rows.fraction, rows.seed) == (0.25, 0)


@pytest.mark.parametrize("name", ["0.jsonl", "a.jsonl"], ids=["one before them", "one of them"])
def test_a_share_of_files_that_changed_is_missing(name, workspace):
    adapter = committed(workspace, lora_files(workspace / "one"), spec={"data": _folder(workspace)})
    chat_rows(workspace / "rows" / name, 5)
    rows = find_previous_rows(DirectoryStore(workspace / "store"), adapter)
    assert "first files have changed" in str(rows)
