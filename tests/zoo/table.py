"""The table of architectures: judged in child processes, shown in 80 columns."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.zoo.cells import ABSENT, COLUMNS, OK, REFUSED, STATUSES, WRONG, Cell, Row, shorten
from tests.zoo.judge_model import judge_alone, judge_sharded
from tests.zoo.load_models import load_groups
from tests.zoo.pool import Crashed, run_group

TIME_LIMIT = 600.0
"""Seconds that a model may take before it counts as hanging."""
NAME_WIDTH = 18
WIDTHS = {column: max(5, len(column)) for column in COLUMNS}


def select_models(
    path: str, names: Collection[str] = (), pattern: str = ""
) -> list[tuple[str, str]]:
    """Return group and name of the module's models that are asked for; all by default."""
    every = [(group, name) for group, makers in load_groups(path).items() for name in makers]
    known = {name for _, name in every} | {group for group, _ in every}
    if unknown := sorted(set(names) - known):
        raise SystemExit(f"no such model: {', '.join(unknown)}. Use names or groups of {path}.")
    return [
        (group, name)
        for group, name in every
        if (not names or name in names or group in names) and pattern in name
    ]


def judge_all(
    path: str,
    selection: Sequence[tuple[str, str]],
    *,
    columns: Collection[str] = tuple(COLUMNS),
    jobs: int = 1,
    limit: float = TIME_LIMIT,
) -> Iterator[Row]:
    """Yield each model's row, in order; a model that crashes or hangs is wrong, and only that."""
    with ThreadPoolExecutor(jobs) as threads:
        yield from threads.map(
            lambda chosen: judge_one(path, *chosen, columns=columns, limit=limit), selection
        )


def judge_one(path: str, group: str, name: str, *, columns: Collection[str], limit: float) -> Row:
    """Return one model's row."""
    with tempfile.TemporaryDirectory(prefix="zoo-model-") as folder:
        try:
            row: Row = run_group(
                judge_alone, 1, path, group, name, folder, tuple(columns), limit=limit
            )[0]
        except Crashed as error:
            return Row(name, group, {"plan": Cell(WRONG, shorten(error))})
        if "shard" in columns and not row.is_refused:
            can_train = row.cells.get("slora", Cell(ABSENT)).status == OK
            row.cells["shard"] = (
                _judge_shards(group, name, folder, limit) if can_train else Cell(ABSENT)
            )
        return row


def _judge_shards(group: str, name: str, folder: str, limit: float) -> Cell:
    try:
        cell: Cell = run_group(judge_sharded, 2, group, name, folder, limit=limit)[0]
    except Crashed as error:
        return Cell(WRONG, shorten(error))
    return cell


def format_legend(columns: Iterable[str]) -> list[str]:
    """Return the meaning of the columns and of the statuses, a line each."""
    return [
        *(f"  {column:7} {COLUMNS[column]}" for column in columns),
        *(f"  {status:7} {meaning}" for status, meaning in STATUSES.items() if status != OK),
        "  no      the same, of one kind of run",
    ]


def format_head(columns: Iterable[str]) -> str:
    return " ".join([f"{'model':{NAME_WIDTH}}", *(f"{name:{WIDTHS[name]}}" for name in columns)])


def format_row(row: Row, columns: Sequence[str]) -> str:
    """Return a row in at most 80 columns; a refused one has its status once."""
    if row.is_refused:
        return f"{row.name:{NAME_WIDTH}} refused"
    cells = [row.cells.get(column, Cell(ABSENT)).status for column in columns]
    texts = [
        f"{_abbreviate(cell):{WIDTHS[column]}}" for column, cell in zip(columns, cells, strict=True)
    ]
    return " ".join([f"{row.name:{NAME_WIDTH}}", *texts]).rstrip()


def _abbreviate(status: str) -> str:
    return "no" if status == REFUSED else status


def format_reasons(rows: Iterable[Row]) -> list[str]:
    """Return the reason of each cell that is not right: a row's refusal once, others by column."""
    lines = []
    for row in rows:
        cells = {"": row.cells["plan"]} if row.is_refused else row.cells
        for column, cell in cells.items():
            if cell.reason:
                label = f"{row.name} {column}".strip()
                lines.append(f"{cell.status:7} {label}: {cell.reason}")
    return lines


def format_totals(rows: Sequence[Row]) -> list[str]:
    """Return how many models of each group train, are refused, or are wrong."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        of_group = [row for row in rows if row.group == group]
        counts = Counter(_classify(row) for row in of_group)
        parts = [f"{counts[kind]} {kind}" for kind in ("train", "refused", "wrong")]
        lines.append(f"{group:9} {len(of_group):4}: {', '.join(parts)}")
    wrong = Counter(
        column for row in rows for column, cell in row.cells.items() if cell.status == WRONG
    )
    lines.append(
        "wrong cells: " + (", ".join(f"{name} {count}" for name, count in wrong.items()) or "none")
    )
    return lines


def _classify(row: Row) -> str:
    return "wrong" if row.is_wrong else "refused" if row.is_refused else "train"


def show_table(
    rows: Iterable[Row], columns: Sequence[str], write: Callable[[str], None]
) -> list[Row]:
    """Print rows as they come, then what is wrong and the totals; return the rows."""
    write(format_head(columns))
    shown = []
    for row in rows:
        write(format_row(row, columns))
        shown.append(row)
    for line in ["", *format_reasons(shown), "", *format_totals(shown)]:
        write(line)
    return shown
