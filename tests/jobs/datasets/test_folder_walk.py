"""A folder is read with what its links lead to: each folder once, and nothing vanishes silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.file_selection import select_files

JSONL = b'{"text": "a"}\n'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with a file, and one beside it."""
    for name in ("rows/a.jsonl", "beside/b.jsonl", "beside/deep/c.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(JSONL)
    return tmp_path / "rows"


def read_folder(rows: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the files, and the reasons of what is left out."""
    selection = select_files(str(rows))
    names = [str(path.relative_to(rows)) for path in selection.files]
    return names, {str(item.path.relative_to(rows)): item.reason for item in selection.skipped}


def test_a_link_to_a_folder_is_followed(rows: Path) -> None:
    (rows / "more").symlink_to(rows.parent / "beside")
    assert read_folder(rows) == (["a.jsonl", "more/b.jsonl", "more/deep/c.jsonl"], {})


def test_a_link_to_a_folder_tells_the_split(rows: Path) -> None:
    (rows / "test").symlink_to(rows.parent / "beside")
    names = select_files(str(rows), key="data.eval").files
    assert [path.name for path in names] == ["b.jsonl", "c.jsonl"]


def test_links_that_lead_in_a_circle_are_left_out(rows: Path) -> None:
    (rows / "up").symlink_to("..")
    (rows / "itself").symlink_to(rows)
    (rows / "more").symlink_to(rows.parent / "beside")
    (rows.parent / "beside" / "deep" / "back").symlink_to(rows)
    names, reasons = read_folder(rows)
    assert names == ["a.jsonl", "more/b.jsonl", "more/deep/c.jsonl"]
    assert set(reasons) == {"up", "itself", "more/deep/back"}
    assert all("the folder that it is in" in reason for reason in reasons.values())


def test_each_folder_is_read_once(rows: Path) -> None:
    (rows / "v2").mkdir()
    (rows / "v2" / "d.jsonl").write_bytes(JSONL)
    (rows / "current").symlink_to("v2")
    for name in ("first", "second"):
        (rows / name).symlink_to(rows.parent / "beside")
    (rows / "third").symlink_to(rows.parent / "beside" / "deep")
    names, reasons = read_folder(rows)
    assert names == ["a.jsonl", "first/b.jsonl", "third/c.jsonl", "v2/d.jsonl"]
    assert set(reasons) == {"current", "second", "first/deep"}
    assert all("read already" in reason for reason in reasons.values())


def test_a_link_to_a_hidden_folder_is_followed(rows: Path) -> None:
    (rows / ".v3").mkdir()
    (rows / ".v3" / "e.jsonl").write_bytes(JSONL)
    (rows / "current").symlink_to(".v3")
    assert read_folder(rows) == (["a.jsonl", "current/e.jsonl"], {})


def test_a_broken_link_is_left_out_with_its_target(rows: Path) -> None:
    (rows / "b.jsonl").symlink_to("/nonexistent")
    (rows / "c.jsonl").symlink_to("c.jsonl")
    reasons = {"b.jsonl": "a broken link to /nonexistent", "c.jsonl": "a broken link to c.jsonl"}
    assert read_folder(rows) == (["a.jsonl"], reasons)
    selection = select_files(f"{rows}/*.jsonl")
    assert [path.name for path in selection.files] == ["a.jsonl"]
    assert {item.path.name: item.reason for item in selection.skipped} == reasons


def test_a_broken_link_is_named_where_it_is_the_only_file(rows: Path) -> None:
    (rows / "b.jsonl").symlink_to("/nonexistent")
    (rows / "a.jsonl").unlink()
    for address in (str(rows), f"{rows}/*.jsonl", f"{rows}/b.jsonl"):
        with pytest.raises(InputError, match="a broken link to /nonexistent"):
            select_files(address)
