"""Select the rows that are held out for evaluation, by a hash of seed, file and row number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jobs.errors import Fault


def is_held_out(file: int, row: int, *, fraction: float, seed: int) -> bool:
    """Return whether a row (index of its file, its number in the file) is for evaluation.

    The position decides and not the content: this needs no pass over the data, and every worker
    comes to the same result in any order of the files.
    """
    digest = hashlib.blake2b(f"{seed}:{file}:{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def count_split(rows_by_file: Sequence[int], *, fraction: float, seed: int) -> tuple[int, int]:
    """Return how many rows are trained on, and how many are held out."""
    held_out = sum(
        is_held_out(file, row, fraction=fraction, seed=seed)
        for file, rows in enumerate(rows_by_file)
        for row in range(rows)
    )
    return sum(rows_by_file) - held_out, held_out


def check_split(rows_by_file: Sequence[int], *, fraction: float, seed: int) -> list[Fault]:
    """Return a fault if the split leaves one side without rows."""
    train, held_out = count_split(rows_by_file, fraction=fraction, seed=seed)
    if train and held_out:
        return []
    effect = "hold out no rows" if train else "leave no rows to train on"
    problem = f"{fraction} of {train + held_out:,} rows would {effect}"
    return [Fault("data.eval_fraction", problem, "Use another share, or set data.eval to a file.")]
