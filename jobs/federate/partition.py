"""Which rows are whose: at random, by label shares, by a column, or a client for each file.

numpy, no torch. A row is named by its number over all files of data.train, in their order, those
that are held out counted too: they belong to nobody.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jobs.data.files import Row, read_rows
from jobs.data.formats import Labelled, read_example
from jobs.data.heldout import is_held_out
from jobs.data.survey import sort_labels
from jobs.errors import Fault, InputError
from jobs.federate.section import FederationSection
from jobs.federate.sense import DEALT, no_labels

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
Shares = np.ndarray[tuple[int], np.dtype[np.float64]]

MOST_FAULTS = 20
"""More than this is one mistake made many times."""
LONGEST_NAME = 200
"""Characters. A longer value of a column is a text, and nobody's name."""


@dataclass(frozen=True, eq=False)
class Partition:
    """Who has which rows."""

    names: tuple[str, ...]
    rows: tuple[Numbers, ...]
    """Of each client, ascending."""

    @property
    def count(self) -> int:
        """How many clients there are."""
        return len(self.names)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many rows each client has: what it weighs in a mean."""
        return tuple(len(rows) for rows in self.rows)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names and rows: equal partitions, equal digests."""
        hashed = hashlib.sha256()
        for name, rows in zip(self.names, self.rows, strict=True):
            hashed.update(f"{name!r}:{len(rows)}:".encode())
            hashed.update(rows.astype("<i8").tobytes())
        return hashed.hexdigest()


def make_partition(
    files: Sequence[Path],
    section: FederationSection,
    *,
    fmt: str,
    task: str,
    eval_fraction: float | None,
    seed: int,
) -> Partition:
    """The same for the same files, section and seed. Raises InputError with its faults.

    `eval_fraction` and `seed` are the spec's: they also say which rows are held out.
    """
    clients = section.clients or 0
    assert clients or section.partition not in DEALT, "the door asks for it"
    look = _Look(files, section, fmt, task, eval_fraction, seed)
    if section.partition == "by":
        made = _by_key(look.keys())
    elif section.partition == "files":
        made = _by_file(look)
    elif section.partition == "iid":
        made = _iid(look.numbers(), clients, seed=seed)
    elif task != "sequence-classification":
        raise InputError([no_labels(task)])
    else:
        made = _dirichlet(look.keys(), clients, section.dirichlet_alpha, seed=seed)
    if faults := [*_count_faults(section, made)]:
        raise InputError(faults)
    return made


@dataclass(frozen=True)
class _Look:
    """One pass over the rows that are trained on."""

    files: Sequence[Path]
    section: FederationSection
    fmt: str
    task: str
    eval_fraction: float | None
    seed: int

    def rows(self) -> Iterator[tuple[int, int, Row]]:
        """The number of each row, its file's index, and the row."""
        number = 0
        for file, path in enumerate(self.files):
            for place, row in enumerate(read_rows(path)):
                if not self._held_out(file, place):
                    yield number, file, row
                number += 1

    def numbers(self) -> Numbers:
        return np.fromiter((number for number, _, _ in self.rows()), np.int64)

    def keys(self) -> dict[str, Numbers]:
        """Row numbers by what decides whose they are: the label, or the column's value."""
        found, faults = dict[str, list[int]](), list[Fault]()
        for number, _, row in self.rows():
            try:
                key = self._key(row)
            except InputError as wrong:
                faults += wrong.faults
                if len(faults) >= MOST_FAULTS:
                    break
            else:
                found.setdefault(key, []).append(number)
        if faults:
            raise InputError(faults)
        return {key: np.array(numbers, np.int64) for key, numbers in found.items()}

    def _held_out(self, file: int, place: int) -> bool:
        fraction = self.eval_fraction
        return fraction is not None and is_held_out(file, place, fraction=fraction, seed=self.seed)

    def _key(self, row: Row) -> str:
        if self.section.partition == "by":
            assert self.section.column is not None
            return _name_in(row, self.section.column)
        example = read_example(row, self.fmt, task=self.task)
        assert isinstance(example, Labelled)
        return example.label


def _name_in(row: Row, column: str) -> str:
    """The client that a row names itself."""
    if column not in row.values:
        named = ", ".join(map(repr, list(row.values)[:12])) or "none"
        problem = f"no field {column!r}; the row's fields are {named}"
        raise _row_fault(row, problem, "Change federation.column.")
    value = row.values[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    shown = repr(value)[:60]
    if not isinstance(value, str):
        problem = f"{column} is {shown}"
        raise _row_fault(row, problem, "It should be a text or a whole number: a client's name.")
    if not value.strip():
        raise _row_fault(row, f"{column} is empty", "Fill it, or remove the row.")
    # JSON may spell half a surrogate pair, which no paper of the run could hold.
    if len(value) > LONGEST_NAME or not value.isprintable():
        problem = f"{column} is {shown}, which can't be a client's name"
        raise _row_fault(row, problem, f"Use one line of at most {LONGEST_NAME} characters.")
    return value


def _row_fault(row: Row, problem: str, remedy: str) -> InputError:
    return InputError([Fault(row.where, problem, remedy)])


def _by_key(found: dict[str, Numbers]) -> Partition:
    names = sort_labels(found)
    return Partition(names, tuple(found[name] for name in names))


def _by_file(look: _Look) -> Partition:
    found: list[list[int]] = [[] for _ in look.files]
    for number, file, _ in look.rows():
        found[file].append(number)
    faults = [
        Fault(str(path), "a client without a row to train on", "Leave the file out, or fill it.")
        for path, rows in zip(look.files, found, strict=True)
        if not rows
    ]
    if faults:
        raise InputError(faults[:MOST_FAULTS])
    rows = tuple(np.array(numbers, np.int64) for numbers in found)
    return Partition(_short_names(look.files), rows)


def _short_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Each file's name, with as many folders before it as tell it from all others."""

    def tail(path: Path, parts: int) -> str:
        return "/".join(path.parts[-parts:])

    deepest = max(len(path.parts) for path in files)
    counts = {n: Counter(tail(path, n) for path in files) for n in range(1, deepest + 1)}
    return tuple(
        next((name for n in counts if counts[n][name := tail(path, n)] == 1), str(path))
        for path in files
    )


def _numbered(count: int) -> tuple[str, ...]:
    width = len(str(count - 1))
    return tuple(f"{number:0{width}}" for number in range(count))


def _iid(numbers: Numbers, clients: int, *, seed: int) -> Partition:
    _enough(len(numbers), clients)
    dealt = np.array_split(_generator("iid", seed).permutation(numbers), clients)
    return Partition(_numbered(clients), tuple(np.sort(rows) for rows in dealt))


def _dirichlet(found: dict[str, Numbers], clients: int, alpha: float, *, seed: int) -> Partition:
    """Each label's rows in shares drawn from a Dirichlet (Yurochkin et al., 2019)."""
    _enough(sum(map(len, found.values())), clients)
    draw = _generator("dirichlet", seed)
    dealt: list[list[Numbers]] = [[] for _ in range(clients)]
    for label in sort_labels(found):
        sizes = _largest_remainder(_shares(draw, clients, alpha), len(found[label]))
        cuts = np.split(draw.permutation(found[label]), np.cumsum(sizes)[:-1])
        for mine, rows in zip(dealt, cuts, strict=True):
            mine.append(rows)
    whole = [np.concatenate(rows) for rows in dealt]
    _nobody_empty(whole)
    return Partition(_numbered(clients), tuple(np.sort(rows) for rows in whole))


def _shares(draw: np.random.Generator, clients: int, alpha: float) -> Shares:
    shares = draw.dirichlet(np.full(clients, alpha))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return shares
    # The sampler's limits: of no concentration all goes to one, of endless all get the same.
    one = np.eye(clients)[draw.integers(clients)]
    return one if alpha < 1 else np.full(clients, 1 / clients)


def _largest_remainder(shares: Shares, whole: int) -> Numbers:
    """Whole numbers in these shares that sum up: the largest remainders are rounded up."""
    wanted = shares * whole
    sizes = np.floor(wanted).astype(np.int64)
    order = np.argsort(sizes - wanted, kind="stable")
    sizes[order[: whole - int(sizes.sum())]] += 1
    return sizes


def _nobody_empty(dealt: list[Numbers]) -> None:
    """Whoever got nothing gets a row of who has most: a client without rows is none."""
    for client, rows in enumerate(dealt):
        if not len(rows):
            most = max(range(len(dealt)), key=lambda other: len(dealt[other]))
            dealt[client], dealt[most] = dealt[most][-1:], dealt[most][:-1]


def _enough(rows: int, clients: int) -> None:
    if rows < clients:
        problem = f"{clients:,}, while there are {rows:,} rows to train on"
        raise InputError([Fault("federation.clients", problem, "Every client needs one.")])


def _generator(purpose: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"partition:{purpose}:{seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def _count_faults(section: FederationSection, made: Partition) -> Iterator[Fault]:
    if section.clients is not None and section.clients != made.count:
        problem = f"{section.clients:,}, while {_found(section)} makes {made.count:,} clients"
        yield Fault("federation.clients", problem, "Leave it out: the data tell.")
    if section.clients_per_round > made.count:
        problem = f"{section.clients_per_round:,} of {made.count:,} clients can't be drawn"
        yield Fault("federation.clients_per_round", problem, f"Use {made.count} or less.")


def _found(section: FederationSection) -> str:
    return f"the column {section.column!r}" if section.partition == "by" else "data.train"
