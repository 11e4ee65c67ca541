"""The check before a run: what it finds, and that it finds all of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.heldout import check_split, count_split, is_held_out
from jobs.inspect.datasets.labels import sort_labels
from jobs.inspect.datasets.scan import (
    check_eval_labels,
    check_train_labels,
    scan_dataset,
)
from tests.jobs.datasets.builders import write_jsonl

CLASSES = "sequence-classification"


def test_a_scan_returns_files_format_rows_labels_and_digest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": label} for label in (10, 9, 9)])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "y", "label": "2"}])
    scan = scan_dataset(str(tmp_path), "auto", CLASSES, "data.train")
    both = b"".join(path.read_bytes() for path in scan.files)
    assert [path.name for path in scan.files] == ["a.jsonl", "b.jsonl"]
    assert (scan.format, scan.rows, scan.rows_by_file) == ("classification", 4, (3, 1))
    assert scan.labels == ("2", "9", "10")
    assert scan.sha256 == hashlib.sha256(both).hexdigest()
    assert scan.bytes == len(both)


def test_labels_are_numbered_by_value_only_if_all_are_numbers() -> None:
    assert sort_labels(["10", "9", "-1"]) == ("-1", "9", "10")
    assert sort_labels(["10", "9", "x"]) == ("10", "9", "x")


def test_a_scan_with_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 3)
    path.write_text(path.read_text() + "bad")
    scan = scan_dataset(str(path), "auto", "causal-lm", "data.train", limit=3)
    assert (scan.rows, scan.sha256) == (3, None)
    with pytest.raises(InputError, match=":4: invalid JSON"):
        scan_dataset(str(path), "auto", "causal-lm", "data.train")


def test_all_faults_of_all_files_are_reported_together(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}, {"text": 3}, {"txt": "x"}])
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n{bad\n{"text": ""}\n')
    with pytest.raises(InputError) as error:
        scan_dataset(str(tmp_path), "auto", "causal-lm", "data.train")
    places = [fault.key.rpartition("/")[2] for fault in error.value.faults]
    assert places == ["a.jsonl:2", "a.jsonl:3", "b.jsonl:2", "b.jsonl:3"]


def test_more_than_twenty_faults_are_counted_and_not_listed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": 3}] * 1234)
    with pytest.raises(InputError, match="1,214 more errors") as error:
        scan_dataset(str(path), "text", "causal-lm", "data.train")
    assert len(error.value.faults) == 21


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["empty", "blank"])
def test_data_without_a_row_is_a_fault_of_its_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"^data.eval: no rows in .*a\.jsonl"):
        scan_dataset(str(tmp_path), "auto", "causal-lm", "data.eval")


def test_a_format_that_does_not_fit_the_task_is_refused() -> None:
    with pytest.raises(InputError):
        scan_dataset("nowhere", "chat", CLASSES, "data.train")


def test_a_format_that_does_not_fit_the_task_names_those_that_do(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    with pytest.raises(InputError, match=r"chat does not fit sequence-class.*Use classification"):
        scan_dataset(str(path), "chat", CLASSES, "data.train")


def test_one_file_holds_one_format(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x"}, {"prompt": "a", "completion": "b"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=":2: text needs 'text'; the row has 'prompt'"):
        scan_dataset(str(path), "auto", "causal-lm", "data.train")


def test_progress_ends_with_all_rows_and_all_bytes(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 2500)
    calls: list[tuple[int, int, int]] = []
    scan_dataset(
        str(path), "auto", "causal-lm", "data.train", progress=lambda *seen: calls.append(seen)
    )
    size = path.stat().st_size
    assert [rows for rows, _, _ in calls] == [1000, 2000, 2500]
    assert calls[-1] == (2500, size, size)


def test_labels_that_only_evaluation_has_are_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x", "label": label} for label in "ab"]
    train = scan_dataset(
        str(write_jsonl(tmp_path / "a.jsonl", rows)), "auto", CLASSES, "data.train"
    )
    rows.append({"text": "x", "label": "c"})
    evaluation = scan_dataset(
        str(write_jsonl(tmp_path / "b.jsonl", rows)), "auto", CLASSES, "data.eval"
    )
    (fault,) = check_eval_labels(train, evaluation)
    assert "'c'" in str(fault) and "'a'" not in str(fault)
    assert check_eval_labels(evaluation, train) == []


def test_a_single_label_is_nothing_to_classify(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": "spam"}] * 2)
    (fault,) = check_train_labels(scan_dataset(str(path), "auto", CLASSES, "data.train"))
    assert "'spam'" in str(fault)


def test_the_held_out_share_is_close_to_the_fraction_and_depends_on_the_seed() -> None:
    train, held = count_split([6000, 4000], fraction=0.05, seed=1)
    assert train + held == 10_000 and 400 < held < 600
    chosen = [
        [is_held_out(0, row, fraction=0.5, seed=seed) for row in range(50)] for seed in (1, 2)
    ]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    ("fraction", "effect"),
    [(1e-9, "hold out no rows"), (1 - 1e-9, "leave no rows")],
    ids=["none", "all"],
)
def test_a_split_with_an_empty_side_is_a_fault(fraction: float, effect: str) -> None:
    (fault,) = check_split([10], fraction=fraction, seed=0)
    assert fault.key == "data.eval_fraction" and effect in fault.problem
    assert check_split([10, 10], fraction=0.5, seed=0) == []


def test_a_scan_imports_none_of_the_heavy_libraries() -> None:
    heavy = {"torch", "datasets", "transformers", "pyarrow", "huggingface_hub", "numpy", "pandas"}
    modules = ("file_selection", "files", "formats", "scan", "heldout")
    code = "import sys\n" + "".join(f"import jobs.inspect.datasets.{name}\n" for name in modules)
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())
