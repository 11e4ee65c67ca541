"""A tuned classifier keeps its head where the rows have its labels."""

from __future__ import annotations

import pytest

from jobs.plan.label_order import TunedHead, order_labels

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
    result = order_labels(rows, TunedHead(saved))
    assert result.labels == order and not result.new_head
    assert result.note.startswith("the model's own head is kept")


def test_labels_without_names_are_matched_in_order_and_told():
    result = order_labels(ROWS, TunedHead(("LABEL_0", "LABEL_1", "LABEL_2")))
    assert result.labels == ROWS and not result.new_head
    assert "LABEL_0 = bad, LABEL_1 = fair, LABEL_2 = good" in result.note


@pytest.mark.parametrize(
    "saved", [("x", "y", "z"), ("bad", "good"), ("LABEL_0", "LABEL_1"), ("Bad", "bad", "good"), ()]
)
def test_other_labels_or_another_number_of_them_are_a_new_head(saved: tuple[str, ...]):
    result = order_labels(ROWS, TunedHead(saved))
    assert result.labels == ROWS and result.new_head
    assert result.note.startswith("the head is new")


def test_without_a_head_in_the_files_there_is_no_choice():
    result = order_labels(ROWS, None)
    assert (result.labels, result.new_head, result.note) == (ROWS, False, "")


def test_the_first_rows_need_not_have_all_labels():
    result = order_labels(("bad",), TunedHead(("good", "bad")), complete=False)
    assert result.labels == ("good", "bad") and not result.new_head


@pytest.mark.parametrize(
    ("head", "kind", "labels", "is_new"),
    [
        (None, "number", ("value",), False),
        (TunedHead(("LABEL_0",), "number"), "number", ("LABEL_0",), False),
        (TunedHead((), "number"), "number", ("value",), True),
        (TunedHead(("bad", "fair", "good")), "number", ("value",), True),
        (TunedHead(("bad", "fair", "good")), "many", ROWS, True),
        (TunedHead(("good", "bad", "fair"), "many"), "many", ("good", "bad", "fair"), False),
        (TunedHead(("LABEL_0",), "number"), "one", ROWS, True),
    ],
)
def test_a_head_for_another_kind_of_labels_is_not_kept(
    head: TunedHead | None, kind: str, labels: tuple[str, ...], is_new: bool
):
    rows = () if kind == "number" else ROWS
    result = order_labels(rows, head, kind=kind)
    assert (result.labels, result.new_head) == (labels, is_new)
    assert is_new == result.note.startswith("the head is new")
