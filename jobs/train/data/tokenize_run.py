"""Tokenise the rows of a validated run before it starts, and put their tally into its plan.

It loads transformers, and only if no table of the rows exists. Where it is not installed, the
workers tokenise the rows before their first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.scan import STREAMED_ROWS, DatasetScan
from jobs.plan.plan import add_tallies
from jobs.plan.preflight import QUICK_ROWS, ValidatedRun
from jobs.plan.token_tally import TokenTally, check_dropped
from jobs.train.data.token_pass import (
    PassProgress,
    ensure_table,
    make_token_inputs,
    read_sealed_tally,
    recall_tally,
)

if TYPE_CHECKING:
    from jobs.train.data.tokenization import Encoder


def tokenize_run(
    validated: ValidatedRun,
    *,
    quick: bool = False,
    progress: PassProgress | None = None,
    allows_dropped: bool = False,
) -> ValidatedRun:
    """Return the run with the tallies of its rows in its plan. Raise InputError with all faults,
    those of the scans too.

    `quick` reads the first rows only, unless all are tokenised already. `allows_dropped` refuses
    no data set for its dropped rows, not even one of which nothing is learnt.
    """
    scans = {"data.train": validated.train_scan, "data.eval": validated.eval_scan}
    if validated.plan.tallies or find_spec("transformers") is None:
        _raise_any([fault for scan in scans.values() if scan for fault in scan.row_faults])
        return validated
    passes, faults = _RunPass(validated, quick, progress), list[Fault]()
    tallies = dict[str, TokenTally]()
    for key, scan in scans.items():
        if scan is None:
            continue
        try:
            with include_scan_faults(scan):
                tallies[key] = tally = passes.tokenize(scan)
        except InputError as error:
            faults += error.faults
            continue
        if not allows_dropped:
            faults += check_dropped(tally, key, limit=validated.spec.data.max_dropped)
    _raise_any(faults)
    plan = add_tallies(validated.plan, tallies)
    if validated.spec.data.streaming:
        notes = (_note_streaming(validated, k, tally, quick) for k, tally in tallies.items())
        plan = replace(plan, notes=(*plan.notes, *filter(None, notes)))
    if validated.spec.method.train_tokens:
        plan = replace(plan, notes=(*plan.notes, passes.note_trained_tokens()))
    return replace(validated, plan=plan)


def _note_streaming(validated: ValidatedRun, key: str, tally: TokenTally, quick: bool) -> str:
    """Return a note on the rows that were not checked; empty if all were."""
    if tally.is_complete:
        return ""
    skips = validated.spec.data.on_bad_row == "skip"
    what = "is skipped" if skips else "ends the run"
    labels = ", and so does a label that they lack" if tally.labels and not skips else ""
    checked = f"its first {tally.rows:,} rows were checked"
    if quick:
        checked += f" for this plan, and a run checks {STREAMED_ROWS:,} before it starts"
    return f"{key}: {checked}; a bad one after them {what}{labels}"


def _raise_any(faults: list[Fault]) -> None:
    if faults:
        raise InputError(list(dict.fromkeys(faults)))


@contextmanager
def include_scan_faults(scan: DatasetScan) -> Iterator[None]:
    """Raise the faults of a pass over the rows with those that the scan has returned: in its words
    where both have one of the same row.
    """
    scanned = {fault.key: fault for fault in scan.row_faults if fault.is_of_row}
    try:
        yield
    except InputError as error:
        faults = [scanned.pop(fault.key, fault) for fault in error.faults]
        raise InputError([*faults, *scanned.values()]) from error
    _raise_any(list(scan.row_faults))


class _RunPass:
    """The pass over the data sets of one run; its encoder is made when it is first needed."""

    def __init__(self, validated: ValidatedRun, quick: bool, progress: PassProgress | None) -> None:
        self._validated, self._progress, self._is_quick = validated, progress, quick
        streamed = STREAMED_ROWS if validated.spec.data.streaming else None
        self._limit = QUICK_ROWS if quick else streamed

    @cached_property
    def _encoder(self) -> Encoder:
        from jobs.train.data.run_encoder import make_run_encoder

        run = self._validated
        return make_run_encoder(run.spec, run.model.folder, run.plan.labels)

    def note_trained_tokens(self) -> str:
        """Return a note on the tokens of method.train_tokens."""
        from jobs.train.data.run_encoder import note_trained_tokens

        return note_trained_tokens(self._validated.spec, self._validated.model.folder)

    def tokenize(self, scan: DatasetScan) -> TokenTally:
        """Return the tally of a data set: of its table, or of its first rows."""
        run, labels = self._validated, self._validated.plan.labels
        inputs = make_token_inputs(run.spec, run.model.folder, scan, labels)
        if not run.spec.data.streaming and (tally := read_sealed_tally(inputs)) is not None:
            return tally
        if self._is_quick or run.spec.data.streaming:
            first = replace(inputs, limit=None if scan.is_complete else self._limit)
            return recall_tally(first, lambda: self._encoder, self._progress)
        ensure_table(inputs, lambda: self._encoder, self._progress)
        tally = read_sealed_tally(inputs)
        assert tally is not None
        return tally
