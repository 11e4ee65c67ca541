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
from orchestrator.cli.commands import registry_quarantine
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
    from orchestrator.registry.rebuild.identity import Identity
    from orchestrator.registry.rebuild.rebuild import RebuildResult, RebuildTally

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Maintain the registry of runs.")
app.add_typer(registry_quarantine.app, name="quarantine")

DAY_S = 86400.0
DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="Database: sqlite:///FILE or postgresql://….", metavar="URL", envvar="SLORA_DATABASE"
    ),
]  # fmt: skip
ProjectOption = Annotated[
    str,
    typer.Option(help="Project of what is at the root of the store; projects/NAME is NAME's."),
]

InstanceOption = Annotated[
    str | None,
    typer.Option(
        help="Take over this id of a lost registry, or keep one's `own`. Default: in a registry "
        "without runs, the id that all runs of the store name.",
        metavar="ID",
    ),
]


@app.command()
def upgrade(database: DatabaseOption = DEFAULT_DATABASE, json: Json = False) -> None:
    """Create the tables, or upgrade them to the schema of this version. Rows are kept."""
    with require_extra("service"):
        from orchestrator.registry.migrate import read_schema
        from orchestrator.registry.migrate import upgrade as migrated
    before, schema = read_schema(database), migrated(database)
    if before.revision != schema.revision:
        _record_command(
            database,
            action="upgrade",
            object=schema.database,
            before={"schema": before.revision},
            after={"schema": schema.revision},
        )
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
    instance: InstanceOption = None,
    json: Json = False,
) -> None:
    """Restore runs, adapters and searches from the store; exit with 1 if some are unreadable."""
    with require_extra("service"):
        from orchestrator.registry.migrate import open_registry, read_schema
        from orchestrator.registry.migrate import upgrade as migrated
        from orchestrator.registry.rebuild.rebuild_projects import rebuild_projects
    object_store = open_store(store)
    if read_schema(database).revision is None:
        migrated(database)
    registry = open_registry(database)
    # Before the rebuild, which is many transactions, so that no crash leaves it unrecorded.
    _record_command(database, action="rebuild", object=object_store.url(""), project=project)
    try:
        with _show_progress() as (on_total, on_progress):
            result = rebuild_projects(
                registry,
                object_store,
                root_project=project,
                instance=instance,
                on_total=on_total,
                on_progress=on_progress,
            )
    finally:
        registry.close()
    if json:
        print_json(_describe_result(result))
    else:
        _show_result(result)
    if result.faults:
        raise typer.Exit(1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file for the backup.")],
    database: DatabaseOption = DEFAULT_DATABASE,
) -> None:
    """Write a backup of the database to a file, while services use it."""
    with require_extra("service"):
        from orchestrator.registry.backup.backup import back_up
    back_up(database, file)
    print_line(f"Wrote {file}. It holds the digests of tokens; keep it as safe as the database.")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of a backup.")],
    database: DatabaseOption = DEFAULT_DATABASE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a database that holds rows.")
    ] = False,
) -> None:
    """Restore a backup into an empty database, while no service runs."""
    with require_extra("service"):
        from orchestrator.registry.backup.backup import restore as restored
    schema = restored(database, file, replace=replace)
    print_line(f"{schema.database} holds the backup, with schema {schema.revision}.")
    note(
        "Next: `slora registry rebuild --store URL` for each store adds what happened since, "
        "before the service starts. Revoke again what was revoked since: `slora tokens list`."
    )


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
        from orchestrator.api.audit_values import record_token
        from orchestrator.registry.migrate import open_registry
        from orchestrator.registry.tenancy.audit_log import make_local_actor
        from orchestrator.registry.tokens import issue
    if file.exists():
        raise InputError([Fault("FILE", f"{file} exists", "Use a new file.")])
    registry = open_registry(database)
    try:
        with registry.write() as session:
            token, secret = issue(session, "from-registry", "admin", seconds=days * DAY_S)
            record_token(session, make_local_actor(), None, token)
            # Before the commit, so that a token that could not be written is not valid.
            write_secret(file, secret)
    finally:
        registry.close()
    print_line(
        f"Wrote token {token.id} to {file} (for SLORA_TOKEN_FILE); it expires in {days:g} days."
    )


def _record_command(database: str, *, project: str | None = None, **values: Any) -> None:
    """Record in the audit log what a user of this machine does to the registry."""
    from orchestrator.registry.database import Database
    from orchestrator.registry.tenancy.audit_log import make_local_actor, record

    registry = Database(database)
    try:
        with registry.write() as session:
            record(session, make_local_actor(), object_kind="registry", project=project, **values)
    finally:
        registry.close()


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
        "instance": result.identity.instance,
        "other_instances": dict(result.identity.others),
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
    _show_identity(result.identity)


def _show_identity(identity: Identity) -> None:
    if identity.instance != identity.previous:
        print_line(
            f"This registry is now {identity.instance}, which accepted the runs of the store. "
            "Restart its services."
        )
    for instance, count in sorted(identity.others.items()):
        note(
            f"Registry {instance} accepted {count:,} runs of the store; the jobs of its runs are "
            f"left alone. If it is lost: `slora registry rebuild --instance {instance}`."
        )


def _format_tally(tally: RebuildTally) -> str:
    return f"{tally.total:,} in the store, {tally.changed:,} new or changed"
