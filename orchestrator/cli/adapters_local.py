"""`slora adapters`: list, show, pull and verify the adapters of a store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.store.adapters.lineage import Ancestor
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import (
    list_all_versions,
    list_ancestors,
    pull,
    read_pointer,
    resolve_adapter,
    scan_adapters,
    verify_adapter,
)
from jobs.store.adapters.serving_options import list_serving_options, read_adapter_config
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.cli.console import (
    CommandGroup,
    LazyProgressBar,
    format_duration,
    format_size,
    note,
    print_json,
    print_line,
    show_pairs,
    show_table,
)
from orchestrator.cli.options import DEFAULT_STORE, AdapterName, Json, Service, Store, TargetFolder
from orchestrator.cli.render.serving_commands import show_serving_options

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, help="Manage adapters in the store.")

MAIN_METRICS = ("eval_loss", "loss", "eval_accuracy", "accuracy")
SECONDS_SUFFIX = "seconds"


@app.command("list")
def list_command(
    store: Store = DEFAULT_STORE,
    brief: Annotated[
        bool, typer.Option("--brief", help="List names only, without reading manifests.")
    ] = False,
    service: Service = None,
    json: Json = False,
) -> None:
    """List the committed adapters of the store, or with --service those of the registry."""
    if service is not None:
        # A command on a store needs no client, here and below.
        from orchestrator.cli.adapters_remote import list_remote_adapters

        list_remote_adapters(service, json=json)
        return
    object_store = open_store(store)
    if brief:
        _list_names(object_store, json=json)
        return
    adapters, broken = scan_adapters(object_store)
    if json:
        rows = [_dump_adapter(adapter) for adapter in adapters]
        print_json({"adapters": rows, "broken": [vars(fault) for fault in broken]})
        return
    if adapters:
        headers = ("adapter", "kind", "size", "evaluation", "when (UTC)", "base")
        show_table([_format_row(adapter) for adapter in adapters], headers=headers, right=("size",))
    elif not broken:
        note(f"No adapters in {object_store.url('')} yet.")
    for fault in broken:
        note(f"unreadable: {fault}")


@app.command("show")
def show_command(
    name: AdapterName, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """Show an adapter: its method, data, lineage, evaluation, cost, and what can serve it."""
    if service is not None:
        from orchestrator.cli.adapters_remote import show_remote_adapter

        show_remote_adapter(service, name, get_named_store(store), json=json)
        return
    object_store = open_store(store)
    adapter = resolve_adapter(object_store, name)
    options = list_serving_options(adapter, read_adapter_config(object_store, adapter))
    if json:
        lineage = [
            {"adapter": ancestor.label, "problem": ancestor.problem}
            for ancestor in list_ancestors(object_store, adapter)
        ]
        served_by = [vars(option) for option in options]
        print_json({**_dump_adapter(adapter), "lineage": lineage, "served_by": served_by})
        return
    pointer = read_pointer(object_store, adapter.name)
    promoted = "yes" if pointer and pointer.version == adapter.version else "no"
    lines = [
        ("lineage", _format_ancestor(ancestor))
        for ancestor in list_ancestors(object_store, adapter)
    ]
    url = object_store.url(adapter.prefix)
    show_pairs([*_format_pairs(adapter), *lines, ("promoted", promoted), ("url", url)])
    print_line("")
    files = [(file.name, format_size(file.size), file.sha256[:12]) for file in adapter.files]
    show_table(files, headers=("file", "size", "sha256"), right=("size",))
    show_serving_options(options)


@app.command("pull")
def pull_command(
    name: AdapterName, to: TargetFolder, store: Store = DEFAULT_STORE, json: Json = False
) -> None:
    """Copy an adapter into a folder and check every digest."""
    object_store = open_store(store)
    adapter = resolve_adapter(object_store, name)
    with closing(LazyProgressBar(f"Pulling {adapter.label}", adapter.size)) as work:
        folder = pull(object_store, adapter, to, on_bytes=work.advance)
    if json:
        print_json({"adapter": adapter.label, "folder": str(folder), "size": adapter.size})
    else:
        print_line(
            f"Pulled {adapter.label} into {folder}: {format_size(adapter.size)}, all digests match."
        )


@app.command("verify")
def verify_command(
    name: AdapterName,
    store: Store = DEFAULT_STORE,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model, to compare its digest.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) to check the signature with.")
    ] = None,
    json: Json = False,
) -> None:
    """Check every byte of an adapter; exit with 1 if there is an error."""
    object_store = open_store(store)
    adapter = resolve_adapter(object_store, name)
    with closing(LazyProgressBar(f"Verifying {adapter.label}", adapter.size)) as work:
        faults = verify_adapter(object_store, adapter, on_bytes=work.advance, base=base, key=key)
    if json:
        problems = [vars(fault) for fault in faults]
        print_json({"adapter": adapter.label, "intact": not faults, "errors": problems})
    elif not faults:
        count = len(adapter.files)
        print_line(f"{adapter.label} is intact: {count} files, {format_size(adapter.size)}.")
    else:
        for fault in faults:
            note(str(fault))
    if faults:
        raise typer.Exit(1)


def get_named_store(store: str) -> str | None:
    """Return the store if it was given: a service has its own default."""
    return None if store == DEFAULT_STORE else store


def format_main_metric(adapter: Manifest) -> str:
    """Format the main metric of an adapter: the last stage's loss, or its first metric."""
    stages = [metrics for metrics in adapter.evaluation.values() if metrics]
    if not stages:
        return "-"
    last = stages[-1]
    name = next((metric for metric in MAIN_METRICS if metric in last), next(iter(last)))
    return f"{name.removeprefix('eval_')} {last[name]:.4g}"


def _list_names(object_store: ObjectStore, *, json: bool) -> None:
    labels = [f"{name}@v{version}" for name, version in list_all_versions(object_store)]
    if json:
        print_json({"adapters": labels})
        return
    for label in labels:
        print_line(label)


def _format_ancestor(ancestor: Ancestor) -> str:
    if ancestor.manifest is None:
        return f"{ancestor.label} ({ancestor.problem})"
    manifest = ancestor.manifest
    return f"{ancestor.label}, from run {manifest.run}, spec {manifest.spec_sha256[:12]}"


def _format_row(adapter: Manifest) -> tuple[str, ...]:
    return (
        adapter.label,
        adapter.kind,
        format_size(adapter.size),
        format_main_metric(adapter),
        _format_created(adapter),
        _get_base_name(adapter),
    )


def _format_pairs(adapter: Manifest) -> list[tuple[str, str]]:
    data, mask = adapter.data, adapter.mask
    pairs = [
        ("adapter", adapter.label),
        ("kind", adapter.kind),
        ("created", f"{_format_created(adapter)} UTC"),
        ("run", f"{adapter.run}, attempt {adapter.attempt}, {adapter.world_size} workers"),
        ("base", f"{adapter.base} ({adapter.base.digest[:12]})"),
        ("data", f"{data.rows} rows ({data.train_sha256[:12]}), {data.row_order}"),
        ("mask", f"{mask.strategy}, density {mask.density:g}, seed {mask.seed}" if mask else "-"),
        ("parent", adapter.parent or "-"),
        *_format_federation(adapter),
        ("spec", adapter.spec_sha256[:12]),
        ("code", adapter.code_version),
    ]
    for stage, metrics in adapter.evaluation.items():
        pairs.append((stage, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())))
    return pairs + [
        (name, _format_ledger_value(name, value)) for name, value in adapter.ledger.items()
    ]


def _format_federation(adapter: Manifest) -> list[tuple[str, str]]:
    """Return the federation's settings if the adapter was trained by clients."""
    if (settings := adapter.federation) is None:
        return []
    clients, rounds, steps, rows = (
        settings.get(key, "?")
        for key in ("clients_per_round", "rounds", "local_steps", "partition")
    )
    return [
        ("federation", f"{clients} clients per round, {rounds} rounds of {steps} steps, {rows}")
    ]


def _format_ledger_value(name: str, value: float) -> str:
    if SECONDS_SUFFIX in name:
        return format_duration(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _format_created(adapter: Manifest) -> str:
    return adapter.created[:16].replace("T", " ")


def _get_base_name(adapter: Manifest) -> str:
    return adapter.base.path.rstrip("/").rpartition("/")[2] or adapter.base.path


def _dump_adapter(adapter: Manifest) -> dict[str, Any]:
    return {**adapter.model_dump(mode="json"), "label": adapter.label, "size": adapter.size}
