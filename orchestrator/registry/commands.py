"""`slora registry`: bring its tables up to date, look at it, restore it, get back into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.ended import not_installed
from jobs.errors import Fault, InputError
from jobs.store.objects import open_store
from orchestrator.commands.options import DEFAULT_STORE, Json, Store
from orchestrator.console import (
    Commands,
    LongWork,
    note,
    print_json,
    say,
    show_pairs,
)
from orchestrator.secret_file import write_secret

if TYPE_CHECKING:
    from orchestrator.registry.migrate import Schema
    from orchestrator.registry.rebuild import Rebuilt, Tally

app = typer.Typer(cls=Commands, no_args_is_help=True, help="The registry of runs and adapters.")

DAY_S = 86400.0
DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
Url = Annotated[
    str,
    typer.Option(
        help="sqlite:///FILE or postgresql://….", metavar="URL", envvar="SLORA_DATABASE"
    ),
]  # fmt: skip
Project = Annotated[str, typer.Option(help="Of runs and adapters that are new to the registry.")]


@app.command()
def upgrade(database: Url = DEFAULT_DATABASE, json: Json = False) -> None:
    """Make the tables, or bring them to this version; what is in them stays."""
    with _installed():
        from orchestrator.registry.migrate import schema_of
        from orchestrator.registry.migrate import upgrade as migrated
    before, schema = schema_of(database), migrated(database)
    if json:
        print_json({**_schema(schema), "before": before.found})
    elif before.found == schema.found:
        say(f"{schema.database} is at {schema.found} already.")
    else:
        say(f"{schema.database} is at {schema.found} now.")


@app.command()
def status(database: Url = DEFAULT_DATABASE, json: Json = False) -> None:
    """Where its tables are, and how much is in them; exit code 2 where it has to be upgraded."""
    with _installed():
        from orchestrator.registry.migrate import schema_of
    schema = schema_of(database)
    counts = _counts(database) if schema.current else {}
    if json:
        print_json({**_schema(schema), "rows": counts})
    else:
        tables = schema.found or "none"
        show_pairs([("database", schema.database), ("tables", tables), *_pairs(counts)])
    if not schema.current:
        note(f"This slora needs {schema.newest}: run `slora registry upgrade`.")
        raise typer.Exit(2)


@app.command()
def rebuild(
    store: Store = DEFAULT_STORE,
    database: Url = DEFAULT_DATABASE,
    project: Project = "default",
    json: Json = False,
) -> None:
    """Restore runs, adapters and searches from the store; exit code 1 where some can't be read."""
    with _installed():
        from orchestrator.registry.migrate import open_registry, schema_of
        from orchestrator.registry.migrate import upgrade as migrated
        from orchestrator.registry.rebuild import rebuild as restored
    opened = open_store(store)
    if schema_of(database).found is None:
        migrated(database)
    registry = open_registry(database)
    try:
        with _progress() as (started, seen):
            done = restored(registry, opened, project=project, started=started, seen=seen)
    finally:
        registry.close()
    if json:
        print_json(_described(done))
    else:
        _show(done)
    if done.faults:
        raise typer.Exit(1)


@app.command()
def token(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where it goes; only you read it.")],
    database: Url = DEFAULT_DATABASE,
    days: Annotated[float, typer.Option(help="Until it expires.", min=0.001)] = 7.0,
) -> None:
    """A new administrator's token, by the right to write the database: for when none is left."""
    with _installed():
        from orchestrator.registry.migrate import open_registry
        from orchestrator.registry.tokens import issue
    if file.exists():
        raise InputError([Fault("FILE", f"{file} is there already", "Name a new file.")])
    registry = open_registry(database)
    try:
        with registry.write() as session:
            made, words = issue(session, "from-registry", "admin", seconds=days * DAY_S)
            # Before it counts: a token that could not be written opens nothing.
            write_secret(file, words)
    finally:
        registry.close()
    say(f"token {made.id} is in {file}, for SLORA_TOKEN_FILE; it expires in {days:g} days.")


@contextmanager
def _installed() -> Iterator[None]:
    """The imports are inside the commands: SQLAlchemy's tenth of a second is for these alone, and
    who runs jobs without a service need not install it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise not_installed(missing, extra="service") from missing


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar once the number of papers is known."""
    work: list[LongWork] = []
    try:
        yield (
            lambda total: work.append(LongWork("Reading the store", total, counts="papers")),
            lambda count: work[0].advance(count),
        )
    finally:
        for bar in work:
            bar.__exit__(None, None, None)


def _counts(database: str) -> dict[str, int]:
    from orchestrator.registry.counts import row_counts
    from orchestrator.registry.database import Database

    registry = Database(database)
    try:
        with registry.read() as session:
            return row_counts(session)
    finally:
        registry.close()


def _schema(schema: Schema) -> dict[str, Any]:
    where = {"database": schema.database, "found": schema.found, "newest": schema.newest}
    return {**where, "current": schema.current}


def _pairs(counts: dict[str, int]) -> list[tuple[str, str]]:
    return [(name, f"{count:,}") for name, count in counts.items()]


def _described(done: Rebuilt) -> dict[str, Any]:
    faults = [{"key": one.key, "problem": one.problem, "remedy": one.remedy} for one in done.faults]
    return {
        "runs": vars(done.runs),
        "adapters": vars(done.adapters),
        "searches": vars(done.searches),
        "events": done.events,
        "forgotten": done.forgotten,
        "unreadable": faults,
    }


def _show(done: Rebuilt) -> None:
    for name, tally in (
        ("runs", done.runs),
        ("adapters", done.adapters),
        ("searches", done.searches),
    ):
        say(f"{name:9} {_tally(tally)}")
    say(f"events    {done.events:,} new")
    for label in done.forgotten:
        say(f"{label} is in the store no more, and in the registry neither now.")
    for fault in done.faults:
        note(f"unreadable: {fault}")


def _tally(tally: Tally) -> str:
    return f"{tally.found:,} in the store, {tally.changed:,} new or changed"
