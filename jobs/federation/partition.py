"""Assign rows to clients: at random, by shares of labels, by a column, or one client for each file.

numpy, no torch. A row is identified by its number over all files of data.train in their order; the
numbers of held-out rows are counted too, and belong to no client.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.files import is_table, read_rows
from jobs.inspect.datasets.formats import LabelledExample, read_example
from jobs.inspect.datasets.heldout import is_held_out
from jobs.inspect.datasets.labels import merge_numbers, shorten_number, sort_labels
from jobs.spec.checks.federation import PARTITIONS_BY_COUNT, make_no_labels_fault
from jobs.spec.sections.federation import FederationSection

RowNumbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Shares = np.ndarray[tuple[int], np.dtype[np.float64]]

MAX_FAULTS = 20
"""More of them are most likely one mistake."""
MAX_NAME_LENGTH = 200
"""Characters. A longer value of a column is most likely a text and not a client's name."""


@dataclass(frozen=True, eq=False)
class Partition:
    """The clients of a federation and their rows."""

    names: tuple[str, ...]
    rows: tuple[RowNumbers, ...]
    """The row numbers of each client, ascending."""

    @property
    def count(self) -> int:
        """Return the number of clients."""
        return len(self.names)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the number of rows of each client, which is its weight in a mean."""
        return tuple(len(rows) for rows in self.rows)

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of names and rows."""
        hasher = hashlib.sha256()
        for name, rows in zip(self.names, self.rows, strict=True):
            hasher.update(f"{name!r}:{len(rows)}:".encode())
            hasher.update(rows.astype("<i8").tobytes())
        return hasher.hexdigest()


def make_partition(
    files: Sequence[Path],
    section: FederationSection,
    *,
    fmt: str,
    task: str,
    eval_fraction: float | None,
    seed: int,
    columns: Mapping[str, str] | None = None,
    learnt: Sequence[bool] | None = None,
) -> Partition:
    """Assign the rows, always in the same way for the same arguments. Raise InputError.

    `columns` has the column of each field that has another name; `learnt` tells for each row
    whether a client may have it. Bad rows are skipped then: somebody has judged them.
    `eval_fraction` and `seed` are those of the spec, which also decide which rows are held out.
    """
    clients = section.clients or 0
    assert clients or section.partition not in PARTITIONS_BY_COUNT, "the spec's check requires it"
    reader = _RowReader(files, section, fmt, task, eval_fraction, seed, columns or {}, learnt)
    if section.partition == "by":
        partition = _partition_by_key(reader.group_by_key())
    elif section.partition == "files":
        partition = _partition_by_file(reader)
    elif section.partition == "iid":
        partition = _partition_iid(reader.read_numbers(), clients, seed=seed)
    elif task != "sequence-classification":
        raise InputError([make_no_labels_fault(task, "one")])
    else:
        partition = _partition_dirichlet(
            reader.group_by_key(), clients, section.dirichlet_alpha, seed=seed
        )
    if faults := [*_check_client_count(section, partition)]:
        raise InputError(faults)
    return partition


@dataclass(frozen=True)
class _RowReader:
    """Reads the training rows of the files, without those that are held out."""

    files: Sequence[Path]
    section: FederationSection
    fmt: str
    task: str
    eval_fraction: float | None
    seed: int
    columns: Mapping[str, str]
    learnt: Sequence[bool] | None = None

    def iterate_rows(self) -> Iterator[tuple[int, int, Row]]:
        """Yield the number of each row, the index of its file, and the row."""
        number = 0
        for file_index, path in enumerate(self.files):
            for row_index, row in enumerate(read_rows(path, on_fault=self._handle_fault)):
                is_learnt = self.learnt is None or self.learnt[number]
                if is_learnt and not self._is_held_out(file_index, row_index):
                    yield number, file_index, row
                number += 1

    def _handle_fault(self, fault: Fault) -> None:
        if self.learnt is None or not fault.is_of_row:
            raise InputError([fault])

    def read_numbers(self) -> RowNumbers:
        return np.fromiter((number for number, _, _ in self.iterate_rows()), np.int64)

    def group_by_key(self) -> dict[str, RowNumbers]:
        """Return the row numbers by label or by the value of the column."""
        groups, faults = dict[str, list[int]](), list[Fault]()
        for number, _, row in self.iterate_rows():
            try:
                key = self._read_key(row)
            except InputError as error:
                faults += error.faults
                if len(faults) >= MAX_FAULTS:
                    break
            else:
                groups.setdefault(key, []).append(number)
        if faults:
            raise InputError(faults)
        if self.section.partition != "by" and any(map(is_table, self.files)):
            groups = _merge_labels(groups)
        return {key: np.array(numbers, np.int64) for key, numbers in groups.items()}

    def _is_held_out(self, file_index: int, row_index: int) -> bool:
        fraction = self.eval_fraction
        return fraction is not None and is_held_out(
            file_index, row_index, fraction=fraction, seed=self.seed
        )

    def _read_key(self, row: Row) -> str:
        if self.section.partition == "by":
            assert self.section.column is not None
            return _read_client_name(row, self.section.column)
        example = read_example(row, self.fmt, task=self.task, columns=self.columns)
        assert isinstance(example, LabelledExample) and isinstance(example.label, str)
        return example.label


def _merge_labels(groups: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the row numbers by class: `1` and `1.0` are one if all labels are whole numbers."""
    if merge_numbers(groups) == groups.keys():
        return groups
    merged = dict[str, list[int]]()
    for label, numbers in groups.items():
        merged.setdefault(shorten_number(label), []).extend(numbers)
    return {label: sorted(numbers) for label, numbers in merged.items()}


def _read_client_name(row: Row, column: str) -> str:
    """Return the name of the client in a row. Raise InputError."""
    if column not in row.values:
        field_names = ", ".join(map(repr, list(row.values)[:12])) or "none"
        problem = f"no field {column!r}; the row's fields are {field_names}"
        raise _make_row_error(row, problem, "Change federation.column.")
    value = row.values[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    excerpt = repr(value)[:60]
    if not isinstance(value, str):
        problem = f"{column} is {excerpt}"
        raise _make_row_error(row, problem, "Use a string or a whole number: it names the client.")
    if not value.strip():
        raise _make_row_error(row, f"{column} is empty", "Set the field, or remove the row.")
    # JSON may contain half of a surrogate pair, which no file of the run could hold.
    if len(value) > MAX_NAME_LENGTH or not value.isprintable():
        problem = f"{column} is {excerpt}, which can't be a client's name"
        raise _make_row_error(
            row, problem, f"Use one line of at most {MAX_NAME_LENGTH} characters."
        )
    return value


def _make_row_error(row: Row, problem: str, remedy: str) -> InputError:
    return InputError([Fault(row.location, problem, remedy)])


def _partition_by_key(groups: dict[str, RowNumbers]) -> Partition:
    names = sort_labels(groups)
    return Partition(names, tuple(groups[name] for name in names))


def _partition_by_file(reader: _RowReader) -> Partition:
    rows_by_file: list[list[int]] = [[] for _ in reader.files]
    for number, file_index, _ in reader.iterate_rows():
        rows_by_file[file_index].append(number)
    faults = [
        Fault(
            str(path),
            "the file has no training row for its client",
            "Remove the file, or add rows.",
        )
        for path, rows in zip(reader.files, rows_by_file, strict=True)
        if not rows
    ]
    if faults:
        raise InputError(faults[:MAX_FAULTS])
    rows = tuple(np.array(numbers, np.int64) for numbers in rows_by_file)
    return Partition(_make_short_names(reader.files), rows)


def _make_short_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Return each file's name, with as many of its folders as make the names unique."""

    def tail(path: Path, parts: int) -> str:
        return "/".join(path.parts[-parts:])

    max_depth = max(len(path.parts) for path in files)
    counts = {n: Counter(tail(path, n) for path in files) for n in range(1, max_depth + 1)}
    return tuple(
        next((name for n in counts if counts[n][name := tail(path, n)] == 1), str(path))
        for path in files
    )


def _make_numbered_names(count: int) -> tuple[str, ...]:
    width = len(str(count - 1))
    return tuple(f"{number:0{width}}" for number in range(count))


def _partition_iid(numbers: RowNumbers, clients: int, *, seed: int) -> Partition:
    _check_row_count(len(numbers), clients)
    shards = np.array_split(_make_generator("iid", seed).permutation(numbers), clients)
    return Partition(_make_numbered_names(clients), tuple(np.sort(rows) for rows in shards))


def _partition_dirichlet(
    groups: dict[str, RowNumbers], clients: int, alpha: float, *, seed: int
) -> Partition:
    """Assign each label's rows in shares from a Dirichlet distribution (Yurochkin et al., 2019)."""
    _check_row_count(sum(map(len, groups.values())), clients)
    generator = _make_generator("dirichlet", seed)
    parts_by_client: list[list[RowNumbers]] = [[] for _ in range(clients)]
    for label in sort_labels(groups):
        sizes = _round_to_total(_draw_shares(generator, clients, alpha), len(groups[label]))
        cuts = np.split(generator.permutation(groups[label]), np.cumsum(sizes)[:-1])
        for parts, rows in zip(parts_by_client, cuts, strict=True):
            parts.append(rows)
    rows_by_client = [np.concatenate(rows) for rows in parts_by_client]
    _fill_empty_clients(rows_by_client)
    return Partition(_make_numbered_names(clients), tuple(np.sort(rows) for rows in rows_by_client))


def _draw_shares(generator: np.random.Generator, clients: int, alpha: float) -> Shares:
    shares = generator.dirichlet(np.full(clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return shares
    # Limits that the sampler cannot reach: alpha near 0 gives all to one, a huge one equal shares.
    indicator = np.eye(clients)[generator.integers(clients)]
    return indicator if alpha < 1 else np.full(clients, 1 / clients)


def _round_to_total(shares: Shares, total: int) -> RowNumbers:
    """Return integers near these shares of `total` that sum to it (largest remainder method)."""
    exact = shares * total
    sizes = np.floor(exact).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")
    sizes[order[: total - int(sizes.sum())]] += 1
    return sizes


def _fill_empty_clients(rows_by_client: list[RowNumbers]) -> None:
    """Give every client without rows one row of the client that has most."""
    for client, rows in enumerate(rows_by_client):
        if not len(rows):
            largest = max(range(len(rows_by_client)), key=lambda other: len(rows_by_client[other]))
            donor = rows_by_client[largest]
            rows_by_client[client], rows_by_client[largest] = donor[-1:], donor[:-1]


def _check_row_count(rows: int, clients: int) -> None:
    if rows < clients:
        problem = f"{clients:,} clients need at least one row each, but there are {rows:,} rows"
        raise InputError([Fault("federation.clients", problem, f"Use {rows} or less.")])


def _make_generator(purpose: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"partition:{purpose}:{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def _check_client_count(section: FederationSection, partition: Partition) -> Iterator[Fault]:
    if section.clients is not None and section.clients != partition.count:
        source = _describe_source(section)
        problem = (
            f"{section.clients:,} is not the number of clients in {source} ({partition.count:,})"
        )
        yield Fault(
            "federation.clients", problem, "Remove it: the data determine the number of clients."
        )
    if section.clients_per_round > partition.count:
        problem = f"cannot sample {section.clients_per_round:,} of {partition.count:,} clients"
        yield Fault("federation.clients_per_round", problem, f"Use {partition.count} or less.")


def _describe_source(section: FederationSection) -> str:
    return f"the column {section.column!r}" if section.partition == "by" else "data.train"
