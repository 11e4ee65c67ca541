"""`slora adapters`: what is in the store, whether it is whole, and how to get it out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import Fault
from jobs.store.adapters import (
    all_versions,
    ancestors,
    pull,
    read_pointer,
    resolve,
    survey,
    verify,
)
from jobs.store.lineage import Ancestor
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore, open_store
from orchestrator.commands.options import DEFAULT_STORE, Json, Service, Store, To, Wanted
from orchestrator.console import (
    Commands,
    LongWork,
    duration_text,
    note,
    print_json,
    say,
    show_pairs,
    show_table,
    size_text,
)

app = typer.Typer(cls=Commands, no_args_is_help=True, help="Adapters in the store.")

MAIN_METRICS = ("eval_loss", "loss", "eval_accuracy", "accuracy")
SECONDS = "seconds"


@app.command("list")
def list_command(
    store: Store = DEFAULT_STORE,
    brief: Annotated[
        bool, typer.Option("--brief", help="Names only: no manifest is read.")
    ] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """Every committed adapter; with --service those that it knows."""
    if service is not None:
        # Here and below, because who looks into a store needs no client.
        from orchestrator.adapters_there import list_there

        list_there(service, json=json)
        return
    opened = open_store(store)
    if brief:
        _list_names(opened, json=json)
        return
    adapters, broken = survey(opened)
    if json:
        rows = [_described(adapter) for adapter in adapters]
        print_json({"adapters": rows, "broken": [_fault(fault) for fault in broken]})
        return
    if adapters:
        headers = ("adapter", "kind", "size", "evaluation", "when (UTC)", "base")
        show_table([_row(adapter) for adapter in adapters], headers=headers, right=("size",))
    elif not broken:
        note(f"No adapters in {opened.url('')} yet.")
    for fault in broken:
        note(f"unreadable: {fault}")


@app.command()
def show(
    name: Wanted, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """One adapter: what it is, where it comes from, what it cost."""
    if service is not None:
        from orchestrator.adapters_there import show_there

        show_there(service, name, named_store(store), json=json)
        return
    opened = open_store(store)
    adapter = resolve(opened, name)
    if json:
        lineage = [{"adapter": one.label, "lost": one.why} for one in ancestors(opened, adapter)]
        print_json({**_described(adapter), "lineage": lineage})
        return
    pointer = read_pointer(opened, adapter.name)
    promoted = "yes" if pointer and pointer.version == adapter.version else "no"
    lines = [("lineage", _ancestor(one)) for one in ancestors(opened, adapter)]
    url = opened.url(adapter.prefix)
    show_pairs([*_pairs(adapter), *lines, ("promoted", promoted), ("url", url)])
    say("")
    files = [(file.name, size_text(file.size), file.sha256[:12]) for file in adapter.files]
    show_table(files, headers=("file", "size", "sha256"), right=("size",))


@app.command("pull")
def pull_command(name: Wanted, to: To, store: Store = DEFAULT_STORE, json: Json = False) -> None:
    """Copy an adapter into a folder, every digest checked."""
    opened = open_store(store)
    adapter = resolve(opened, name)
    with LongWork(f"Pulling {adapter.label}", adapter.size) as work:
        folder = pull(opened, adapter, to, seen=work.advance)
    if json:
        print_json({"adapter": adapter.label, "folder": str(folder), "size": adapter.size})
    else:
        say(f"{adapter.label}: {size_text(adapter.size)} in {folder}, every digest checked.")


@app.command("verify")
def verify_command(
    name: Wanted,
    store: Store = DEFAULT_STORE,
    base: Annotated[Path | None, typer.Option(help="Where the base model is now.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="A public key (PEM) that has to have signed it.")
    ] = None,
    json: Json = False,
) -> None:
    """Check every byte of an adapter; exit code 1 when something is wrong."""
    opened = open_store(store)
    adapter = resolve(opened, name)
    with LongWork(f"Verifying {adapter.label}", adapter.size) as work:
        faults = verify(opened, adapter, seen=work.advance, base=base, key=key)
    if json:
        found = [_fault(fault) for fault in faults]
        print_json({"adapter": adapter.label, "whole": not faults, "faults": found})
    elif not faults:
        count = len(adapter.files)
        say(f"{adapter.label} is whole: {count} files, {size_text(adapter.size)}.")
    else:
        for fault in faults:
            note(str(fault))
    if faults:
        raise typer.Exit(1)


def named_store(store: str) -> str | None:
    """The store that was named; a service has a default of its own."""
    return None if store == DEFAULT_STORE else store


def main_figure(adapter: Manifest) -> str:
    """The one figure that stands for an adapter: the last stage's loss, or what comes first."""
    stages = [metrics for metrics in adapter.evaluation.values() if metrics]
    if not stages:
        return "-"
    last = stages[-1]
    name = next((metric for metric in MAIN_METRICS if metric in last), next(iter(last)))
    return f"{name.removeprefix('eval_')} {last[name]:.4g}"


def _list_names(opened: ObjectStore, *, json: bool) -> None:
    labels = [f"{name}@v{version}" for name, version in all_versions(opened)]
    if json:
        print_json({"adapters": labels})
        return
    for label in labels:
        say(label)


def _ancestor(one: Ancestor) -> str:
    if one.manifest is None:
        return f"{one.label} ({one.why})"
    return f"{one.label}, of run {one.manifest.run}, spec {one.manifest.spec_sha256[:12]}"


def _row(adapter: Manifest) -> tuple[str, ...]:
    return (
        adapter.label,
        adapter.kind,
        size_text(adapter.size),
        main_figure(adapter),
        _when(adapter),
        _base_name(adapter),
    )


def _pairs(adapter: Manifest) -> list[tuple[str, str]]:
    data, mask = adapter.data, adapter.mask
    pairs = [
        ("adapter", adapter.label),
        ("kind", adapter.kind),
        ("created", f"{_when(adapter)} UTC"),
        ("run", f"{adapter.run}, attempt {adapter.attempt}, {adapter.world_size} workers"),
        ("base", f"{adapter.base.path} ({adapter.base.digest[:12]})"),
        ("data", f"{data.rows} rows ({data.train_sha256[:12]}), {data.row_order}"),
        ("mask", f"{mask.strategy}, density {mask.density:g}, seed {mask.seed}" if mask else "-"),
        ("parent", adapter.parent or "-"),
        *_federation(adapter),
        ("spec", adapter.spec_sha256[:12]),
        ("code", adapter.code_version),
    ]
    for stage, metrics in adapter.evaluation.items():
        pairs.append((stage, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())))
    return pairs + [(name, _ledger_text(name, value)) for name, value in adapter.ledger.items()]


def _federation(adapter: Manifest) -> list[tuple[str, str]]:
    """Of an adapter that many clients made: how."""
    if (told := adapter.federation) is None:
        return []
    drawn, rounds, steps, rows = (
        told.get(key, "?") for key in ("clients_per_round", "rounds", "local_steps", "partition")
    )
    return [("federation", f"{drawn} clients a round, {rounds} rounds of {steps} steps, {rows}")]


def _ledger_text(name: str, value: float) -> str:
    if SECONDS in name:
        return duration_text(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _when(adapter: Manifest) -> str:
    return adapter.created[:16].replace("T", " ")


def _base_name(adapter: Manifest) -> str:
    return adapter.base.path.rstrip("/").rpartition("/")[2] or adapter.base.path


def _described(adapter: Manifest) -> dict[str, Any]:
    return {**adapter.model_dump(mode="json"), "label": adapter.label, "size": adapter.size}


def _fault(fault: Fault) -> dict[str, str]:
    return {"key": fault.key, "problem": fault.problem, "remedy": fault.remedy}
