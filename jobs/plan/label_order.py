"""The order of a classifier's labels: that of a tuned model, where the rows have its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jobs.spec.tasks import NUMBER_LABEL

_SCORES = {"one": "one label a row", "many": "several labels a row", "number": "a number"}


@dataclass(frozen=True)
class LabelOrder:
    """The labels in the order of the head's rows."""

    labels: tuple[str, ...]
    new_head: bool = False
    """The model's files have a head, but it is drawn anew: its labels are others."""
    note: str = ""
    """What the user should know of the choice; empty if there was none."""


@dataclass(frozen=True)
class TunedHead:
    """The head that a model's files have."""

    labels: tuple[str, ...]
    """Empty if its config does not fit it."""
    kind: str = "one"
    """The labels of a row that it was trained for, as data.labels."""


def order_labels(
    row_labels: Sequence[str], head: TunedHead | None, *, kind: str = "one", complete: bool = True
) -> LabelOrder:
    """Return the order for the rows' labels, of which there are none for a number.

    `kind` is data.labels. Without `complete`, not all rows have been read.
    """
    names = (NUMBER_LABEL,) if kind == "number" else tuple(row_labels)
    if head is None:
        return LabelOrder(names)
    if head.kind != kind:
        note = f"the head is new: the model's was trained for {_SCORES[head.kind]}"
        return LabelOrder(names, new_head=True, note=note)
    if kind != "number":
        return _match_labels(names, head.labels, complete=complete)
    if len(head.labels) == 1:
        return LabelOrder(head.labels, note="the model's own head is kept: it predicts a number")
    return LabelOrder(names, new_head=True, note="the head is new: config.json does not fit it")


def _match_labels(
    row_labels: tuple[str, ...], saved: tuple[str, ...], *, complete: bool
) -> LabelOrder:
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
        return LabelOrder(row_labels, note=note)
    note = "the head is new: the model's"
    if saved:
        note = f"{note} labels ({_join(saved)}) are not those of the rows ({_join(row_labels)})"
    else:
        note = f"{note} config.json names other labels than its files have"
    return LabelOrder(row_labels, new_head=True, note=note)


def _normalize(label: str) -> str:
    return label.strip().casefold().removeprefix("label_")


def _join(labels: Sequence[str]) -> str:
    rest = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return f"{', '.join(labels[:8])}{rest}"
