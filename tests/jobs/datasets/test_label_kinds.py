"""Rows with several labels, or with a number, as `data.labels` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.formats import LabelledExample, read_example
from jobs.inspect.datasets.scan import check_train_labels, scan_dataset
from tests.tiny import labelled_rows

CLASSES = "sequence-classification"


def read(label: Any, kind: str) -> Any:
    row = Row({"text": "a", "label": label}, "d.jsonl", 7)
    example = read_example(row, "classification", task=CLASSES, label_kind=kind)
    assert isinstance(example, LabelledExample)
    return example.label


@pytest.mark.parametrize(
    ("label", "kind", "expected"),
    [
        (["b", "a", "b"], "many", ("b", "a")),
        ([], "many", ()),
        ([1, 2.0, True], "many", ("1", "2", "true")),
        ('["a", "b"]', "many", ("a", "b")),
        (3, "number", 3.0),
        (-0.5, "number", -0.5),
        (" 4.25 ", "number", 4.25),
        (3, "one", "3"),
    ],
)
def test_labels_are_read_as_data_labels_says(label: Any, kind: str, expected: Any):
    assert read(label, kind) == expected and type(read(label, kind)) is type(expected)


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        ("a", "many", r"d.jsonl:7: label is 'a', not a list.*\[\"a\", \"b\"\].*data.labels: one"),
        (None, "many", r"label is missing. Use \[\]"),
        (["a", None], "many", r"label\[1\] is missing"),
        (["a", ["b"]], "many", r"label\[1\] is \['b'\]. It should be one name: write all names"),
        ([["a"], ["b"]], "many", r"label\[0\] is \['a'\]. It should be one name: write all names"),
        ([0.2, 0.8], "many", r"label\[0\] is 0.2. It should be a string, a whole number"),
        ("[a", "many", "label is not valid JSON"),
        ("good", "number", "d.jsonl:7: label is 'good', not a number, but data.labels is number"),
        (True, "number", "label is True, not a number"),
        (float("inf"), "number", "label is inf, not a number"),
        (None, "number", "label is missing"),
        ([1.0], "number", "not a number"),
        (["a"], "one", "For several a row, use data.labels: many"),
        (0.25, "one", "To predict a number, use data.labels: number"),
    ],
)
def test_a_label_of_another_kind_is_refused_with_its_place(label: Any, kind: str, message: str):
    with pytest.raises(InputError, match=message):
        read(label, kind)


def scan(folder: Path, labels: list[Any], kind: str) -> Any:
    path = labelled_rows(folder / "d.jsonl", labels)
    return scan_dataset(str(path), "auto", CLASSES, "data.train", label_kind=kind)


def test_a_scan_collects_the_names_of_all_rows_and_the_range_of_numbers(tmp_path: Path):
    many = scan(tmp_path, [["b"], [], ["a", "b"]], "many")
    assert (many.labels, many.numbers, many.label_kind) == (("a", "b"), None, "many")
    assert check_train_labels(many) == []
    numbers = scan(tmp_path, [2, 0.5, 4], "number")
    assert (numbers.labels, numbers.numbers) == ((), (0.5, 4.0))
    assert check_train_labels(numbers) == []


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[], []], "many", r"all 2 rows have the label \[\]"),
        ([3, 3.0], "number", "all 2 rows have the label 3.*all predictions would be this number"),
    ],
)
def test_labels_that_are_all_the_same_are_nothing_to_learn(
    tmp_path: Path, labels: list[Any], kind: str, message: str
):
    import re

    (fault,) = check_train_labels(scan(tmp_path, labels, kind))
    assert re.search(message, str(fault))


@pytest.mark.parametrize(
    "labels",
    [
        [[1, 0], [0, 0], [1, 1]],
        [[1, 0, 1], [0, 0, 0]],
        [[1.0, 0.0, 0.0]],
        [[True, False, True], [False, False, True]],
        ["[1, 0]", "[0, 0]"],
        [[1, 0, 1], None, [0, 0, 1]],
    ],
)
def test_vectors_of_a_number_for_each_class_are_refused_with_a_row(
    tmp_path: Path, labels: list[Any]
):
    path = str(labelled_rows(tmp_path / "d.jsonl", labels))
    # No row may be skipped for it.
    with pytest.raises(
        InputError, match=r"d.jsonl:[12]: label is \[.*names of the labels"
    ) as error:
        scan_dataset(path, "auto", CLASSES, "data.train", label_kind="many", row_faults="skip")
    assert 'e.g. ["a", "c"]' in str(error.value)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([[0, 2], [1]], ("0", "1", "2")),
        ([[0, 1], [1, 0]], ("0", "1")),
        ([[0, 0], [1]], ("0", "1")),
        ([[1, 1], [0, 2]], ("0", "1", "2")),
        ([[1, 1], []], ("1",)),
        ([[0], [1]], ("0", "1")),
        ([["a", "a"], ["b", "b"]], ("a", "b")),
    ],
)
def test_lists_of_class_ids_are_no_vectors(tmp_path: Path, labels: list[Any], names: Any):
    assert scan(tmp_path, labels, "many").labels == names


def test_one_class_among_none_is_enough(tmp_path: Path):
    assert check_train_labels(scan(tmp_path, [["a"], []], "many")) == []


def test_lists_of_class_labels_of_the_datasets_library_have_their_names(tmp_path: Path):
    import datasets

    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.List(datasets.ClassLabel(names=["no", "yes"]))
    )
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [[1, 0], []]}, features)
    path = tmp_path / "d.parquet"
    table.to_parquet(path)
    result = scan_dataset(str(path), "auto", CLASSES, "data.train", label_kind="many")
    assert result.labels == ("no", "yes")
