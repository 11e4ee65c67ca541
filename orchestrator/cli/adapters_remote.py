"""`slora adapters --service`: the adapters of the service's registry."""

from __future__ import annotations

from jobs.store.adapters.operations import split_name
from orchestrator.cli.console import format_size, note, print_json, show_pairs, show_table
from orchestrator.cli.remote import connect_service
from orchestrator.cli.render.run_table import format_time
from orchestrator.cli.render.serving_commands import show_serving_options
from orchestrator.schemas.adapters import AdapterResponse


def list_remote_adapters(service: str, *, json: bool) -> None:
    """Print all committed versions visible to the token."""
    with connect_service(service) as client:
        adapters = list(client.adapters.list())
    if json:
        print_json({"adapters": [adapter.model_dump(exclude={"manifest"}) for adapter in adapters]})
    elif adapters:
        rows = [
            (
                adapter.label,
                adapter.kind,
                format_size(adapter.size),
                adapter.project,
                format_time(adapter.committed_at)[:16],
                adapter.store,
            )
            for adapter in adapters
        ]
        headers = ("adapter", "kind", "size", "project", "when (UTC)", "store")
        show_table(rows, headers=headers, right=("size",))
    else:
        note("No adapters yet.")


def show_remote_adapter(service: str, name: str, store: str | None, *, json: bool) -> None:
    """Print one version; as JSON with its manifest."""
    base_name, version = split_name(name)
    with connect_service(service) as client:
        versions = client.adapters.resolve(base_name, store=store)
        if version is None:
            # As in a store: the promoted version, or the newest one if none was promoted.
            version = (
                versions.current.version if versions.current else versions.versions[-1].version
            )
        adapter = client.adapters.get(base_name, version, store=versions.store)
    promoted = versions.current is not None and versions.current.version == version
    if json:
        print_json({**adapter.model_dump(), "promoted": promoted})
    else:
        show_pairs([*_format_pairs(adapter), ("promoted", "yes" if promoted else "no")])
        if adapter.served_by is None:
            note("What can serve it is not known: the service could not read it from the store.")
        show_serving_options(adapter.served_by or ())


def _format_pairs(adapter: AdapterResponse) -> list[tuple[str, str]]:
    return [
        ("adapter", adapter.label),
        ("kind", adapter.kind),
        ("project", adapter.project),
        ("created", f"{format_time(adapter.committed_at)} UTC"),
        ("run", f"{adapter.run}, attempt {adapter.attempt}"),
        ("base", adapter.base_digest[:12]),
        ("parent", adapter.parent or "-"),
        ("size", format_size(adapter.size)),
        ("store", adapter.store),
    ]
