"""`slora registry`: upgrade and inspect the registry, rebuild it, and create an admin token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import Fault, InputError
from jobs.store.open import open_store
from jobs.train.job_main import require_extra
from orchestrator.cli.console import (
    CommandGroup,
    LazyProgressBar,
    note,
    print_json,
    print_line,
    show_pairs,
)
from orchestrator.cli.options import DEFAULT_STORE, Json, Store
from orchestrator.secret_file import write_secret

if TYPE_CHECKING:
    from orchestrator.registry.migrate import SchemaState
    from orchestrator.registry.rebuild.rebuild import RebuildResult, RebuildTally

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Maintain the registry of runs.")

DAY_S = 86400.0
DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="Database: sqlite:///FILE or postgresql://….", metavar="URL", envvar="SLORA_DATABASE"
    ),
]  # fmt: skip
ProjectOption = Annotated[
    str, typer.Option(help="Project for runs that have no request file, and for their adapters.")
]


@app.command()
def upgrade(database: DatabaseOption = DEFAULT_DATABASE, json: Json = False) -> None:
    """Create the tables, or upgrade them to the schema of this version. Rows are kept."""
    with require_extra("service"):
        from orchestrator.registry.migrate import read_schema
        from orchestrator.registry.migrate import upgrade as migrated
    before, schema = read_schema(database), migrated(database)
    if json:
        print_json({**_describe_schema(schema), "before": before.revision})
    elif before.revision == schema.revision:
        print_line(f"{schema.database} already has schema {schema.revision}.")
    else:
        print_line(f"{schema.database} now has schema {schema.revision}.")


@app.command("status")
def show_status(database: DatabaseOption = DEFAULT_DATABASE, json: Json = False) -> None:
    """Show the schema and the number of rows; exit with 2 if an upgrade is needed."""
    with require_extra("service"):
        from orchestrator.registry.migrate import read_schema
    schema = read_schema(database)
    counts = _read_counts(database) if schema.is_current else {}
    if json:
        print_json({**_describe_schema(schema), "rows": counts})
    else:
        tables = schema.revision or "none"
        show_pairs([("database", schema.database), ("schema", tables), *_format_pairs(counts)])
    if not schema.is_current:
        note(f"This slora needs schema {schema.newest}. Run `slora registry upgrade`.")
        raise typer.Exit(2)


@app.command()
def rebuild(
    store: Store = DEFAULT_STORE,
    database: DatabaseOption = DEFAULT_DATABASE,
    project: ProjectOption = "default",
    json: Json = False,
) -> None:
    """Restore runs, adapters and searches from the store; exit with 1 if some are unreadable."""
    with require_extra("service"):
        from orchestrator.registry.migrate import open_registry, read_schema
        from orchestrator.registry.migrate import upgrade as migrated
        from orchestrator.registry.rebuild.rebuild import rebuild as restored
    object_store = open_store(store)
    if read_schema(database).revision is None:
        migrated(database)
    registry = open_registry(database)
    try:
        with _show_progress() as (on_total, on_progress):
            result = restored(
                registry, object_store, project=project, on_total=on_total, on_progress=on_progress
            )
    finally:
        registry.close()
    if json:
        print_json(_describe_result(result))
    else:
        _show_result(result)
    if result.faults:
        raise typer.Exit(1)


@app.command("token")
def create_token(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="File to write the token to."),
    ],
    database: DatabaseOption = DEFAULT_DATABASE,
    days: Annotated[float, typer.Option(help="Days until it expires.", min=0.001)] = 7.0,
) -> None:
    """Create an admin token by writing to the database, if no other admin token is left."""
    with require_extra("service"):
        from orchestrator.registry.migrate import open_registry
        from orchestrator.registry.tokens import issue
    if file.exists():
        raise InputError([Fault("FILE", f"{file} exists", "Use a new file.")])
    registry = open_registry(database)
    try:
        with registry.write() as session:
            token, secret = issue(session, "from-registry", "admin", seconds=days * DAY_S)
            # Before the commit, so that a token that could not be written is not valid.
            write_secret(file, secret)
    finally:
        registry.close()
    print_line(
        f"Wrote token {token.id} to {file} (for SLORA_TOKEN_FILE); it expires in {days:g} days."
    )


@contextmanager
def _show_progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show a progress bar once the total is known."""
    work: list[LazyProgressBar] = []
    try:
        yield (
            lambda total: work.append(
                LazyProgressBar("Reading the store", total, counts="objects")
            ),
            lambda count: work[0].advance(count),
        )
    finally:
        for bar in work:
            bar.close()


def _read_counts(database: str) -> dict[str, int]:
    from orchestrator.registry.counts import count_rows
    from orchestrator.registry.database import Database

    registry = Database(database)
    try:
        with registry.read() as session:
            return count_rows(session)
    finally:
        registry.close()


def _describe_schema(schema: SchemaState) -> dict[str, Any]:
    state = {"database": schema.database, "revision": schema.revision, "newest": schema.newest}
    return {**state, "current": schema.is_current}


def _format_pairs(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts.items()]


def _describe_result(result: RebuildResult) -> dict[str, Any]:
    return {
        "runs": vars(result.runs),
        "adapters": vars(result.adapters),
        "searches": vars(result.searches),
        "events": result.events,
        "removed": result.removed,
        "unreadable": [vars(fault) for fault in result.faults],
    }


def _show_result(result: RebuildResult) -> None:
    for name, tally in (
        ("runs", result.runs),
        ("adapters", result.adapters),
        ("searches", result.searches),
    ):
        print_line(f"{name:9} {_format_tally(tally)}")
    print_line(f"events    {result.events:,} new")
    for label in result.removed:
        print_line(f"{label} no longer exists in the store; removed it from the registry.")
    for fault in result.faults:
        note(f"unreadable: {fault}")


def _format_tally(tally: RebuildTally) -> str:
    return f"{tally.total:,} in the store, {tally.changed:,} new or changed"
