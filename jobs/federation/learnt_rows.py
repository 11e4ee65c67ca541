"""Find the rows of a federation that something is learnt of: only those are given to clients.

A client of bad or cut rows alone would have nothing to train on, and its weight in a mean counts
its rows.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import numpy as np

from jobs.plan.preflight import ValidatedRun
from jobs.train.data.token_pass import ensure_table, make_token_inputs
from jobs.train.data.token_table import open_table
from jobs.train.data.tokenization import Encoder

RowMask = np.ndarray[Any, np.dtype[np.bool_]]


def find_learnt_rows(run: ValidatedRun) -> RowMask | None:
    """Return for each row, counted over all files, whether something of it is learnt. None where
    rows can't be tokenised. Raise InputError with the faults of all rows.
    """
    if find_spec("transformers") is None:
        return None
    scan, labels = run.train_scan, run.plan.labels

    def make_encoder() -> Encoder:
        # It loads transformers, and the table exists if the rows were tokenised before.
        from jobs.train.data.run_encoder import make_run_encoder

        return make_run_encoder(run.spec, run.model.folder, labels)

    inputs = make_token_inputs(run.spec, run.model.folder, scan, labels)
    table = open_table(ensure_table(inputs, make_encoder))
    mask = np.zeros(scan.rows, np.bool_)
    places = table.list_rows()[table.count_targets() > 0]
    offsets = np.array([0, *accumulate(scan.rows_by_file)], np.int64)
    mask[offsets[places[:, 0]] + places[:, 1]] = True
    return mask


def digest_rows(mask: RowMask | None) -> str | None:
    """Return the SHA-256 of a mask, or None if all rows are taken."""
    if mask is None or mask.all():
        return None
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()
