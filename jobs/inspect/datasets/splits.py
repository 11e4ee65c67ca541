"""Recognise the split of a file by its name, and select the files of one side."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Side = Literal["train", "eval"]

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(
        ("validation", "valid", "val", "dev", "eval", "evaluation"),
        "validation",
    ),
    **dict.fromkeys(("test", "testing", "heldout", "holdout"), "test"),
}
"""Words in the names of files and folders, and the split that they mean."""

PREFERENCES: dict[Side, tuple[str | None, ...]] = {
    "train": ("train", None),
    "eval": ("validation", "test", None),
}
"""Splits that a side takes; the first that has files. None is a file that names no split."""


def find_split(path: Path) -> str | None:
    """Return the split that a file's name tells, or else the nearest folder's name."""
    for name in (path.name.partition(".")[0], *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", re.sub(r"\bheld[-_ ]?out", "heldout", name.lower()))
        splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def choose_split(splits: Iterable[str | None], side: Side) -> tuple[bool, str | None]:
    """Return whether the side has files among these splits, and the split that it takes."""
    available = set(splits)
    if side == "eval" and "train" in available and not available & {"validation", "test"}:
        return False, None
    for split in PREFERENCES[side]:
        if split in available:
            return True, split
    return False, None
