"""`slora registry quarantine`: the items that the loops of a service skip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from jobs.train.job_main import require_extra
from orchestrator.cli.console import CommandGroup, print_json, print_line, show_table
from orchestrator.cli.options import Json
from orchestrator.cli.render.run_table import format_time

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from orchestrator.registry.database import Database
    from orchestrator.registry.tenancy.quarantine import ItemKind, QuarantinedItem

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Manage the items that the service skips, because looking at them ended its process.",
)

DEFAULT_DATABASE = "sqlite:///.cache/registry.db"
DEFAULT_REASON = "added by an operator"
DatabaseOption = Annotated[
    str,
    typer.Option(
        help="Database: sqlite:///FILE or postgresql://….", metavar="URL", envvar="SLORA_DATABASE"
    ),
]  # fmt: skip
KindArgument = Annotated[
    str, typer.Argument(metavar="KIND", help="Kind of the item: run, schedule or job.")
]
ItemArgument = Annotated[
    str,
    typer.Argument(
        metavar="ITEM", help="Id of the run, PROJECT/NAME of the schedule, or id of the job."
    ),
]


@app.command("list")
def list_command(database: DatabaseOption = DEFAULT_DATABASE, json: Json = False) -> None:
    """List the items in quarantine with their reasons, newest first."""
    with _open_database(database) as registry, registry.read() as session:
        from orchestrator.registry.tenancy.quarantine import list_items

        items = list_items(session)
    if json:
        print_json({"items": [vars(item) for item in items]})
    elif not items:
        print_line("Nothing is in quarantine.")
    else:
        rows = [(item.kind, item.item, format_time(item.created_at), item.reason) for item in items]
        show_table(rows, headers=("kind", "item", "since", "reason"), folded=("item",))


@app.command("add")
def add_command(
    kind: KindArgument,
    item: ItemArgument,
    reason: Annotated[
        str, typer.Option(help="Reason, which a run shows as its detail.", metavar="TEXT")
    ] = DEFAULT_REASON,
    database: DatabaseOption = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Put an item in quarantine: a run fails, a schedule does not fire, a job is left alone."""
    with _open_database(database) as registry, registry.write() as session:
        from orchestrator.registry.tenancy import quarantine
        from orchestrator.registry.tenancy.audit_log import make_local_actor

        quarantine.check_item(kind, item)
        added = quarantine.add(
            session,
            cast("ItemKind", kind),
            item,
            reason=reason,
            project=_find_project(session, kind, item),
            actor=make_local_actor(),
        )
    _show_change(added, "is in quarantine", json=json)


@app.command("release")
def release_command(
    kind: KindArgument,
    item: ItemArgument,
    database: DatabaseOption = DEFAULT_DATABASE,
    json: Json = False,
) -> None:
    """Take an item out of quarantine. A schedule fires again; a run that failed stays failed."""
    with _open_database(database) as registry, registry.write() as session:
        from orchestrator.registry.tenancy import quarantine
        from orchestrator.registry.tenancy.audit_log import make_local_actor

        quarantine.check_item(kind, item)
        actor = make_local_actor()
        released = quarantine.release(session, cast("ItemKind", kind), item, actor=actor)
    _show_change(released, "is out of quarantine", json=json)


@contextmanager
def _open_database(url: str) -> Iterator[Database]:
    with require_extra("service"):
        from orchestrator.registry.migrate import open_registry
    registry = open_registry(url)
    try:
        yield registry
    finally:
        registry.close()


def _find_project(session: Session, kind: str, item: str) -> str | None:
    """Return the project of an item; None for a job, and for a run that the registry lacks."""
    if kind == "schedule":
        return item.partition("/")[0]
    from orchestrator.registry import runs
    from orchestrator.registry.errors import UnknownItem

    try:
        return runs.get(session, item).project if kind == "run" else None
    except UnknownItem:
        return None


def _show_change(item: QuarantinedItem, state: str, *, json: bool) -> None:
    if json:
        values: dict[str, Any] = vars(item)
        print_json(values)
    else:
        print_line(f"The {item.kind} {item.item} {state}.")
