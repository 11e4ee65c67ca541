"""Tokenise the rows of a validated run before it starts, and put their tally into its plan.

It loads transformers, and only if no table of the rows exists. Where it is not installed, the
workers tokenise the rows before their first step.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.plan.plan import add_tallies
from jobs.plan.preflight import QUICK_ROWS, ValidatedRun
from jobs.plan.token_tally import TokenTally, check_dropped
from jobs.train.data.token_pass import (
    PassProgress,
    ensure_table,
    make_token_inputs,
    read_sealed_tally,
    tokenize_rows,
)

if TYPE_CHECKING:
    from jobs.inspect.datasets.scan import DatasetScan
    from jobs.train.data.tokenization import Encoder


def tokenize_run(
    validated: ValidatedRun, *, quick: bool = False, progress: PassProgress | None = None
) -> ValidatedRun:
    """Return the run with the tallies of its rows in its plan. Raise InputError with all faults.

    `quick` reads the first rows only, unless all are tokenised already.
    """
    if validated.plan.tallies or find_spec("transformers") is None:
        return validated
    passes, faults = _RunPass(validated, quick, progress), list[Fault]()
    scans = {"data.train": validated.train_scan, "data.eval": validated.eval_scan}
    tallies = dict[str, TokenTally]()
    for key, scan in scans.items():
        if scan is None:
            continue
        try:
            tallies[key] = tally = passes.tokenize(scan)
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
        else:
            faults += check_dropped(tally, key, limit=validated.spec.data.max_dropped)
    if faults:
        raise InputError(faults)
    return replace(validated, plan=add_tallies(validated.plan, tallies))


class _RunPass:
    """The pass over the data sets of one run; its encoder is made when it is first needed."""

    def __init__(self, validated: ValidatedRun, quick: bool, progress: PassProgress | None) -> None:
        self._validated, self._progress = validated, progress
        self._limit = QUICK_ROWS if quick or validated.spec.data.streaming else None

    @cached_property
    def _encoder(self) -> Encoder:
        from jobs.train.data.run_encoder import make_run_encoder

        run = self._validated
        return make_run_encoder(run.spec, run.model.folder, run.plan.labels)

    def tokenize(self, scan: DatasetScan) -> TokenTally:
        """Return the tally of a data set: of its table, or of its first rows."""
        run, labels = self._validated, self._validated.plan.labels
        inputs = make_token_inputs(run.spec, run.model.folder, scan, labels, self._limit)
        if not run.spec.data.streaming and (tally := read_sealed_tally(inputs)) is not None:
            return tally
        if self._limit is not None:
            return tokenize_rows(inputs, self._encoder, lambda *_, **__: None, self._progress)
        ensure_table(inputs, lambda: self._encoder, self._progress)
        tally = read_sealed_tally(inputs)
        assert tally is not None
        return tally
