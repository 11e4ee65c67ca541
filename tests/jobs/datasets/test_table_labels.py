"""Labels of tables, whose cells have no types: `1.0` is the class `1` where all are numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.inspect.datasets.labels import list_unknown_labels
from jobs.inspect.datasets.scan import DatasetScan, check_eval_labels, scan_dataset
from tests.tiny import labelled_rows


def scan_table(path: Path, labels: list[str], mark: str = ",") -> DatasetScan:
    lines = [f"x{number}{mark}{label}" for number, label in enumerate(labels)]
    path.write_text("\n".join([f"text{mark}label", *lines, ""]))
    return scan_dataset(str(path), "auto", "sequence-classification", "data.train")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0.0", "1.0", "0.0"], ("0", "1")),
        (["10.0", "2", "-1.00", "-0.0"], ("-1", "0", "2", "10")),
        (["1", "1.0", "2"], ("1", "2")),
        (["1.0", "1.5", "2.0"], ("1.0", "1.5", "2.0")),
        (["1.0", "2.0", "beta"], ("1.0", "2.0", "beta")),
        (["007", "008"], ("007", "008")),
        (["000", "1.0"], ("000", "1.0")),
        (["1.0.0", "2.0.0"], ("1.0.0", "2.0.0")),
    ],
)
def test_whole_numbers_of_a_table_are_written_without_a_point_if_all_labels_are(
    tmp_path: Path, labels: list[str], expected: tuple[str, ...]
) -> None:
    assert set(scan_table(tmp_path / "d.csv", labels).labels) == set(expected)
    assert set(scan_table(tmp_path / "d.tsv", labels, "\t").labels) == set(expected)


def test_texts_of_json_stay_as_they_are(tmp_path: Path) -> None:
    path = labelled_rows(tmp_path / "d.jsonl", ["1.0", "2.0"])
    scan = scan_dataset(str(path), "auto", "sequence-classification", "data.train")
    assert scan.labels == ("1.0", "2.0")


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        (["0", "1"], ["0.0", "1.0"]),
        (["0.0", "1.0"], ["0", "1"]),
        (["1.0", "1.5", "2.0"], ["1.0", "2.0"]),
    ],
)
def test_numbers_of_training_and_evaluation_agree_however_they_are_written(
    tmp_path: Path, train: list[str], evaluation: list[str]
) -> None:
    scans = [
        scan_table(tmp_path / f"{index}.csv", labels)
        for index, labels in enumerate((train, evaluation))
    ]
    assert check_eval_labels(*scans) == []
    assert list_unknown_labels(["1.0", "01", "3.0"], ["1"]) == ["01", "3.0"]


def test_codes_that_are_equal_as_numbers_are_warned_of(tmp_path: Path) -> None:
    scan = scan_table(tmp_path / "d.csv", ["001", "1", "01", "1.0"])
    assert len(scan.labels) == 4
    assert scan.warnings == ("the labels '001' and '01' and '1' and '1.0' are different classes",)
