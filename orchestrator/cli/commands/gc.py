"""`slora gc`: list or delete what the service's retention no longer keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError, StoreError
from jobs.store.open import open_store
from jobs.train.job_main import require_extra
from orchestrator.cli.commands.serve import Config, Url
from orchestrator.cli.console import CommandGroup, note, print_json, print_line
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from orchestrator.control.config import ServiceConfig
    from orchestrator.control.retention.retention import Retention, RetentionTally
    from orchestrator.control.retention.unnamed_runs import UnnamedRun
    from orchestrator.registry.database import Database

app = typer.Typer(cls=CommandGroup)

MAX_LISTED = 10_000
Apply = Annotated[bool, typer.Option("--apply", help="Delete what is listed.")]


@app.command()
def gc(
    config: Config = None, database: Url = None, apply: Apply = False, json: Json = False
) -> None:
    """List what is kept too long, and files of runs without a row; --apply deletes them."""
    with require_extra("service"):
        from orchestrator.api.server import make_default_config
        from orchestrator.control.config import load_config
        from orchestrator.control.retention.retention import Retention
        from orchestrator.control.retention.unnamed_runs import delete_unnamed_run
        from orchestrator.registry.migrate import open_registry
        from orchestrator.registry.tenancy.audit_log import make_local_actor
        from orchestrator.registry.tenancy.instances import read_instance
    actor = make_local_actor()
    service_config = (
        load_config(config, database) if config is not None else make_default_config(database)
    )
    registry = open_registry(service_config.database)
    try:
        instance = read_instance(registry)
        retention = Retention(registry, service_config.retention, instance=instance, actor=actor)
        expired = [run.id for run in retention.list_expired_runs(MAX_LISTED)]
        rows = retention.count_expired()
        unnamed = _find_unnamed(registry, service_config, instance)
        if apply:
            expired, rows = [], _apply_all(retention)
            unnamed = [
                item
                for item in unnamed
                if delete_unnamed_run(registry, item, store_opener=open_store, actor=actor)
            ]
    finally:
        registry.close()
    if json:
        print_json(_describe(expired, rows, unnamed, applied=apply))
    else:
        _show(expired, rows, unnamed, applied=apply)


def _find_unnamed(registry: Database, config: ServiceConfig, instance: str) -> list[UnnamedRun]:
    from orchestrator.control.retention.unnamed_runs import find_unnamed_runs, list_store_urls

    unnamed: list[UnnamedRun] = []
    for url in list_store_urls(registry, config.stores):
        try:
            unnamed += find_unnamed_runs(registry, open_store(url), instance=instance)
        except (StoreError, InputError) as error:
            if url in config.stores:
                raise
            # What a project left in its folder does not stop the others.
            note(f"{url} is left out: {error}")
    return unnamed


def _apply_all(retention: Retention) -> RetentionTally:
    """Delete batch after batch until nothing is left that can be deleted."""
    total = batch = retention.apply_batch()
    while batch.total:
        batch = retention.apply_batch()
        total += batch
    return total


def _describe(
    expired: list[str], rows: RetentionTally, unnamed: list[UnnamedRun], *, applied: bool
) -> dict[str, Any]:
    return {
        "applied": applied,
        "expired_runs": rows.runs if applied else expired,
        "firings": rows.firings,
        "tokens": rows.tokens,
        "idempotency_keys": rows.keys,
        "unnamed_runs": [
            {"store": item.store, "run": item.run, "files": len(item.keys)} for item in unnamed
        ],
    }


def _show(
    expired: list[str], rows: RetentionTally, unnamed: list[UnnamedRun], *, applied: bool
) -> None:
    for run in expired:
        print_line(f"run {run}")
    for item in unnamed:
        print_line(f"{item.store}/runs/{item.run}: {len(item.keys)} files without a row")
    verb = "deleted" if applied else "would be deleted (--apply deletes them)"
    note(
        f"{len(expired) + rows.runs:,} expired runs, {rows.firings:,} firings, {rows.tokens:,} "
        f"tokens, {rows.keys:,} idempotency keys and the files of {len(unnamed):,} runs without "
        f"a row {verb}."
    )
