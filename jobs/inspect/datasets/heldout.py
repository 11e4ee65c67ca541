"""Which rows are held out for evaluation: a hash of the seed and of where the row stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jobs.errors import Fault


def is_held_out(file: int, row: int, *, fraction: float, seed: int) -> bool:
    """Whether a row (its file's index, its number in that file) is for evaluation.

    The place and not the content decides: it needs no pass over the data, and any worker, in any
    order of the files, says the same.
    """
    digest = hashlib.blake2b(f"{seed}:{file}:{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def count_split(rows_by_file: Sequence[int], *, fraction: float, seed: int) -> tuple[int, int]:
    """How many rows are trained on, and how many are held out."""
    held_out = sum(
        is_held_out(file, row, fraction=fraction, seed=seed)
        for file, rows in enumerate(rows_by_file)
        for row in range(rows)
    )
    return sum(rows_by_file) - held_out, held_out


def check_split(rows_by_file: Sequence[int], *, fraction: float, seed: int) -> list[Fault]:
    """A split that leaves nothing on one side is a fault."""
    train, held_out = count_split(rows_by_file, fraction=fraction, seed=seed)
    if train and held_out:
        return []
    effect = "hold out none" if train else "leave none to train on"
    problem = f"{fraction} of {train + held_out:,} rows would {effect}"
    return [Fault("data.eval_fraction", problem, "Change it, or name a file under data.eval.")]
