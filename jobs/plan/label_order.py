"""The order of a classifier's labels: that of a tuned model, where the rows have its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelOrder:
    """The labels in the order of the head's rows."""

    labels: tuple[str, ...]
    new_head: bool = False
    """The model's files have a head, but it is drawn anew: its labels are others."""
    note: str = ""
    """What the user should know of the choice; empty if there was none."""


def order_labels(
    row_labels: Sequence[str], saved: Sequence[str], *, has_head: bool, complete: bool = True
) -> LabelOrder:
    """Return the order for the rows' labels. `saved` are those of a tuned model, `has_head` says
    that its files have a head. Without `complete`, not all rows have been read.
    """
    if not has_head:
        return LabelOrder(tuple(row_labels))
    own = {_normalize(label): label for label in row_labels}
    order = [_normalize(label) for label in saved]
    is_unique = len(own) == len(row_labels) and len(set(order)) == len(order)
    if is_unique and set(own) == set(order):
        note = f"the model's own head is kept, with its labels: {_join(saved)}"
        return LabelOrder(tuple(own[label] for label in order), note=note)
    if is_unique and not complete and set(own) < set(order):
        return LabelOrder(tuple(own.get(_normalize(label), label) for label in saved))
    if len(saved) == len(row_labels) and all(label.startswith("LABEL_") for label in saved):
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(saved, row_labels, strict=True))
        note = (
            f"the model's own head is kept; its labels have no names, and are matched in order: "
            f"{pairs}. If the order is another, name them in id2label of its config.json"
        )
        return LabelOrder(tuple(row_labels), note=note)
    note = "the head is new: the model's"
    if saved:
        note = f"{note} labels ({_join(saved)}) are not those of the rows ({_join(row_labels)})"
    else:
        note = f"{note} config.json names other labels than its files have"
    return LabelOrder(tuple(row_labels), new_head=True, note=note)


def _normalize(label: str) -> str:
    return label.strip().casefold().removeprefix("label_")


def _join(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return f"{', '.join(labels[:8])}{rest}"
