"""A tuned classifier keeps its head where the rows have its labels."""

from __future__ import annotations

import pytest

from jobs.plan.label_order import order_labels

ROWS = ("bad", "fair", "good")


@pytest.mark.parametrize(
    ("rows", "saved", "order"),
    [
        (ROWS, ("good", "bad", "fair"), ("good", "bad", "fair")),
        (ROWS, ("GOOD", "Bad", "fair "), ("good", "bad", "fair")),
        (("0", "1", "2"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")),
        (("label_2", "label_10"), ("LABEL_2", "LABEL_10"), ("label_2", "label_10")),
    ],
)
def test_the_models_order_holds_for_the_same_names(
    rows: tuple[str, ...], saved: tuple[str, ...], order: tuple[str, ...]
):
    result = order_labels(rows, saved, has_head=True)
    assert result.labels == order and not result.new_head
    assert result.note.startswith("the model's own head is kept")


def test_labels_without_names_are_matched_in_order_and_told():
    result = order_labels(ROWS, ("LABEL_0", "LABEL_1", "LABEL_2"), has_head=True)
    assert result.labels == ROWS and not result.new_head
    assert "LABEL_0 = bad, LABEL_1 = fair, LABEL_2 = good" in result.note


@pytest.mark.parametrize(
    "saved", [("x", "y", "z"), ("bad", "good"), ("LABEL_0", "LABEL_1"), ("Bad", "bad", "good"), ()]
)
def test_other_labels_or_another_number_of_them_are_a_new_head(saved: tuple[str, ...]):
    result = order_labels(ROWS, saved, has_head=True)
    assert result.labels == ROWS and result.new_head
    assert result.note.startswith("the head is new")


def test_without_a_head_in_the_files_there_is_no_choice():
    result = order_labels(ROWS, (), has_head=False)
    assert (result.labels, result.new_head, result.note) == (ROWS, False, "")


def test_the_first_rows_need_not_have_all_labels():
    result = order_labels(("bad",), ("good", "bad"), has_head=True, complete=False)
    assert result.labels == ("good", "bad") and not result.new_head
