"""Cells of the table of architectures: the status of one model in one column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OK, REFUSED, WRONG, ABSENT = "ok", "refused", "WRONG", "-"

COLUMNS = {
    "plan": "the plan's counts, targets and names are those of the model and of the run",
    "slora": "SLoRA trains: the loss falls, and nothing but the adapter and the head changes",
    "lora": "the same for LoRA; its first loss is the stock model's",
    "sparse": "the same for sparse values alone",
    "full": "full fine-tuning trains every weight that has a gradient, and nothing else",
    "shard": "2 ranks with a sharded base have the losses of 2 with a replicated one",
    "pack": "rows in one sequence have the logits of rows alone, or the plan says: not packed",
    "names": "full fine-tuning saves the names, shapes and types that the stock model saves",
    "reload": "what is loaded from the store has the logits of what was trained",
    "peft": "stock PEFT with the folder has the logits of the merged model, or the plan says no",
}
"""Short heads of the columns, and what `ok` means in each."""
STATUSES = {
    OK: "right",
    REFUSED: "the plan refuses it, before anything starts, and says why and what to do",
    WRONG: "neither right nor refused",
    ABSENT: "does not apply",
}


@dataclass(frozen=True)
class Cell:
    """The status of a column, and the reason in one line unless it is right."""

    status: str
    reason: str = ""


@dataclass
class Row:
    """A model's cells by column, and the seconds that they took."""

    name: str
    group: str
    cells: dict[str, Cell] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_wrong(self) -> bool:
        return any(cell.status == WRONG for cell in self.cells.values())

    @property
    def is_refused(self) -> bool:
        return self.cells.get("plan", Cell(ABSENT)).status == REFUSED

    @property
    def is_trainable(self) -> bool:
        """Whether the model's own plan was made and nothing of it is wrong."""
        return not self.is_wrong and not self.is_refused

    def to_json(self) -> dict[str, object]:
        cells = {
            name: cell.status if not cell.reason else [cell.status, cell.reason]
            for name, cell in self.cells.items()
        }
        return {"name": self.name, "group": self.group, "cells": cells}

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Row:
        cells = values["cells"]
        assert isinstance(cells, dict)
        return cls(
            str(values["name"]),
            str(values["group"]),
            {
                name: Cell(cell) if isinstance(cell, str) else Cell(*cell)
                for name, cell in cells.items()
            },
        )


class WrongError(AssertionError):
    """A cell is wrong, for the reason that it carries."""


def shorten(text: object, length: int = 200) -> str:
    """Return the text in one line of at most this length."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 3] + "..."
