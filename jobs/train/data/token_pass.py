"""Tokenise a data set in one pass before the first step: every fault together, then a table.

The table's name is a digest of the files, the tokenizer, the options and the encoder's own code: a
second run finds it, and a change of anything makes another. Unused tables are removed in time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError, StoreError, TemplateRejection
from jobs.inspect.answer_cache import recall_answer
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.datasets.formats import LabelledExample, read_example
from jobs.inspect.datasets.labels import list_names
from jobs.inspect.file_stamps import stamp_files
from jobs.plan.token_tally import (
    BAD,
    CUT_OFF,
    SEAL,
    SKIPPED,
    UNWEIGHTED,
    TokenTally,
    parse_tally,
    read_tally,
)
from jobs.store.settings import read_store_settings
from jobs.train.data.template_rejections import TemplateRejections, find_template_file

if TYPE_CHECKING:
    from jobs.inspect.datasets.scan import DatasetScan
    from jobs.spec.schema import RunSpec
    from jobs.train.data.tokenization import Encoder, Sample

FOLDER = "tokens"
UNUSED_S = 14 * 24 * 3600
"""A table that nobody has opened for two weeks is removed."""
MAX_FAULTS = 20
PROGRESS_EVERY_ROWS = 500
MAX_COMPARED_ROWS = 5_000_000
"""Rows that are searched for duplicates: each takes about 60 bytes of memory."""
MODEL_SUFFIXES = (".json", ".jinja", ".model", ".txt")

PassProgress = Callable[[int], None]
"""A callback with the number of rows tokenised so far."""


@dataclass(frozen=True)
class TokenInputs:
    """What the tokens of a data set depend on."""

    folder: Path
    """The base's folder, with its tokenizer and its chat template."""
    files: tuple[Path, ...]
    format: str
    columns: Mapping[str, str]
    """The column of each field that has another name."""
    task: str
    labels: tuple[str, ...]
    max_length: int
    label_kind: str = "one"
    """data.labels."""
    tokens: tuple[str, ...] = ()
    """Tokens that the run trains: its tokenizer knows them."""
    skips_bad_rows: bool = False
    limit: int | None = None
    """Read only so many rows; there is a tally then, but no table."""

    def find_table(self) -> Path:
        """Return the folder of the table or the tally, whether it exists or not."""
        tokenizer = sorted(p for p in self.folder.iterdir() if p.suffix in MODEL_SUFFIXES)
        identity = [
            [vars(stamp) for stamp in stamp_files((*self.files, *tokenizer))],
            *(
                self.format,
                dict(self.columns),
                self.task,
                self.labels,
                self.label_kind,
                self.max_length,
                self.tokens,
                self.skips_bad_rows,
            ),
            [version(name) for name in ("transformers", "tokenizers", "jinja2")],
            _digest_code(),
            *([] if self.limit is None else [self.limit]),
        ]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        return read_store_settings().cache / FOLDER / name


def make_token_inputs(
    spec: RunSpec, base: Path, scan: DatasetScan, labels: tuple[str, ...]
) -> TokenInputs:
    """Return what the tokens of a scanned data set depend on. Of a data set that the scan has read
    to its end there is no limit.
    """
    return TokenInputs(
        folder=base,
        files=scan.files,
        format=scan.format,
        columns=scan.columns,
        task=spec.model.task,
        labels=labels,
        label_kind=spec.data.labels,
        max_length=spec.data.max_length,
        tokens=spec.method.train_tokens,
        skips_bad_rows=spec.data.on_bad_row == "skip",
    )


def _digest_code() -> str:
    """Return a digest of the code that reads and encodes rows."""
    package = Path(__file__).parent
    sources = [*package.glob("*.py"), *package.parents[1].glob("inspect/datasets/**/*.py")]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def ensure_table(
    inputs: TokenInputs,
    make_encoder: Callable[[], Encoder],
    progress: PassProgress | None = None,
) -> Path:
    """Return the folder of the sealed table; write it if it does not exist. Raise InputError with
    all faults. Of several processes one writes, and the others wait.
    """
    folder = inputs.find_table()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / SEAL).is_file():
                _remove_unused(folder.parent)
                temporary = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
                try:
                    write_table(temporary, inputs, make_encoder(), progress)
                    shutil.rmtree(folder, ignore_errors=True)
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            os.utime(folder / SEAL)
    except OSError as error:
        problem = f"{folder.parent}: {error.strerror or error}"
        raise StoreError(f"{problem}. Set SLORA_CACHE to another folder.") from error
    return folder


def write_table(
    folder: Path, inputs: TokenInputs, encoder: Encoder, progress: PassProgress | None = None
) -> TokenTally:
    """Tokenise the rows into a new table in a folder, and return their tally. Raise InputError."""
    from jobs.train.data.token_table import TableWriter

    writer = TableWriter(folder)
    try:
        tally = tokenize_rows(inputs, encoder, writer.append, progress)
        writer.close(tally)
    finally:
        writer.close()
    return tally


def read_sealed_tally(inputs: TokenInputs) -> TokenTally | None:
    """Return the tally of the table of these inputs, or None if there is no table."""
    return read_tally(inputs.find_table() / SEAL)


def recall_tally(
    inputs: TokenInputs,
    make_encoder: Callable[[], Encoder],
    progress: PassProgress | None = None,
) -> TokenTally:
    """Return the tally of rows without a table, which are tokenised once. Raise InputError."""

    def tokenize() -> dict[str, Any]:
        return tokenize_rows(inputs, make_encoder(), lambda *_, **__: None, progress).to_json()

    name = inputs.find_table().name
    return recall_answer("tallies", name, parse=parse_tally, ask=tokenize)


def tokenize_rows(
    inputs: TokenInputs,
    encoder: Encoder,
    append: Callable[..., None],
    progress: PassProgress | None = None,
) -> TokenTally:
    """Tokenise the rows and return their tally. Raise InputError with the faults of all rows."""
    counter, faults = _RowCounter(encoder), _RowFaults()
    rejections = TemplateRejections()
    rows = islice(_iter_rows(inputs, counter, faults), inputs.limit)
    for number, (file, place, row) in enumerate(rows, start=1):
        try:
            example = read_example(
                row,
                inputs.format,
                task=inputs.task,
                columns=inputs.columns,
                label_kind=inputs.label_kind,
            )
            samples = encoder(example, where=row.location)
        except InputError as error:
            if isinstance(error, TemplateRejection):
                rejections.add(error)
            faults.add(*error.faults)
            counter.count_bad()
            continue
        counter.count(example, samples)
        for sample in samples:
            append(sample, file=file, row=place)
        if progress and number % PROGRESS_EVERY_ROWS == 0:
            progress(number)
    fault = None if counter.has_encoded else rejections.summarize(find_template_file(inputs.folder))
    if fault is not None and inputs.skips_bad_rows:
        if rejections.fails_always or inputs.limit is None:
            raise InputError([fault])
    elif fault is not None:
        faults.replace(rejections.count, rejections.reason, fault)
    if not inputs.skips_bad_rows:
        faults.raise_any()
    return counter.make_tally(is_complete=inputs.limit is None, faults=faults.first)


class _RowFaults:
    """Keeps the first faults of rows and counts all."""

    def __init__(self) -> None:
        self.first, self.count = list[Fault](), 0

    def add(self, *faults: Fault) -> None:
        self.count += len(faults)
        self.first += faults[: max(0, MAX_FAULTS - len(self.first))]

    def replace(self, count: int, reason: str, fault: Fault) -> None:
        """Put one fault in place of the `count` faults of rows that begin with a reason."""
        self.first = [fault, *(f for f in self.first if not f.problem.startswith(reason))]
        self.count += 1 - count

    def raise_any(self) -> None:
        if omitted := self.count - len(self.first):
            remedy = "Fix these first, or set data.on_bad_row: skip."
            summary = Fault("data", f"{omitted:,} more errors are not shown", remedy)
            raise InputError([*self.first, summary])
        if self.first:
            raise InputError(self.first)


def _iter_rows(
    inputs: TokenInputs, counter: _RowCounter, faults: _RowFaults
) -> Iterator[tuple[int, int, Row]]:
    """Yield each row with the number of its file and its own number in it."""

    def note_fault(fault: Fault) -> None:
        if not fault.is_of_row:
            raise InputError([fault])
        faults.add(fault)
        counter.count_bad()

    for file, path in enumerate(inputs.files):
        for number, row in enumerate(read_rows(path, on_fault=note_fault)):
            yield file, number, row


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_S
    for seal in folder.glob(f"*/{SEAL}"):
        if seal.stat().st_mtime < oldest:
            shutil.rmtree(seal.parent, ignore_errors=True)


class _RowCounter:
    """Counts rows as they are tokenised."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._counts, self._dropped, self._labels = Counter[str](), Counter[str](), Counter[str]()
        self._keys = set[int]()
        self._numbers: tuple[float, float] | None = None

    @property
    def has_encoded(self) -> bool:
        """Whether a row is not bad."""
        return self._counts["rows"] > self._dropped[BAD]

    def count_bad(self) -> None:
        self._counts["rows"] += 1
        self._dropped[BAD] += 1

    def count(self, example: Any, samples: tuple[Sample, ...]) -> None:
        counts = self._counts
        counts["rows"] += 1
        truncated = sum(sample.truncated for sample in samples)
        counts["cut"] += truncated > 0
        counts["cut_tokens"] += truncated
        whole = (sample.longest_side + sample.truncated for sample in samples)
        counts["longest"] = max(counts["longest"], *whole, 0)
        if isinstance(example, LabelledExample):
            self._labels.update(map(self._encoder.match_label, list_names(example.label)))
            if isinstance(number := example.label, float):
                low, high = self._numbers or (number, number)
                self._numbers = min(low, number), max(high, number)
        learnt = [sample for sample in samples if sample.targets]
        if not learnt:
            self._dropped[CUT_OFF if truncated else UNWEIGHTED] += 1
            return
        counts["samples"] += len(learnt)
        counts["tokens"] += sum(sample.tokens for sample in learnt)
        counts["targets"] += sum(sample.targets for sample in learnt)
        key = hash(tuple((sample.input_ids, sample.labels) for sample in learnt))
        counts["duplicates"] += key in self._keys
        if len(self._keys) < MAX_COMPARED_ROWS:
            self._keys.add(key)

    def make_tally(self, *, is_complete: bool, faults: list[Fault]) -> TokenTally:
        names = (
            *("rows", "samples", "tokens", "targets", "longest", "cut", "cut_tokens"),
            "duplicates",
        )
        skipped = [f"{SKIPPED}{str(fault).removesuffix('.')}" for fault in faults[:3]]
        return TokenTally(
            **{name: self._counts[name] for name in names},
            dropped=dict(self._dropped),
            labels=dict(sorted(self._labels.items())),
            numbers=self._numbers,
            notes=(*self._encoder.notes, *skipped),
            is_complete=is_complete,
        )
