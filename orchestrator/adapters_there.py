"""`slora adapters` of a service: what its registry knows, and the same moves through its door."""

from __future__ import annotations

from dataclasses import asdict

from jobs.store.adapters import split_name
from orchestrator.client.values import Adapter, Pointer
from orchestrator.commands.remote import asking
from orchestrator.console import note, print_json, show_pairs, show_table, size_text
from orchestrator.run_table import moment_text


def list_there(service: str, *, json: bool) -> None:
    """Every committed version that the token sees."""
    with asking(service) as client:
        found = list(client.adapters.list())
    if json:
        print_json({"adapters": [_plain(one) for one in found]})
    elif found:
        rows = [
            (one.label, one.kind, size_text(one.size), one.project, _when(one), one.store)
            for one in found
        ]
        headers = ("adapter", "kind", "size", "project", "when (UTC)", "store")
        show_table(rows, headers=headers, right=("size",))
    else:
        note("No adapters yet.")


def show_there(service: str, name: str, store: str | None, *, json: bool) -> None:
    """One version, with its manifest for programs."""
    plain, version = split_name(name)
    with asking(service) as client:
        named = client.adapters.named(plain, store=store)
        if version is None:
            # As in the store: the promoted one, or the newest where none was promoted.
            version = named.current.version if named.current else named.versions[-1].version
        found = client.adapters.get(plain, version, store=named.store)
    promoted = named.current is not None and named.current.version == version
    if json:
        print_json({**asdict(found), "promoted": promoted})
    else:
        show_pairs([*_pairs(found), ("promoted", "yes" if promoted else "no")])


def promote_there(service: str, name: str, version: int, store: str | None) -> Pointer:
    """What the bare name means now."""
    with asking(service) as client:
        return client.adapters.promote(name, version, store=store)


def rollback_there(service: str, name: str, store: str | None) -> Pointer:
    """What the bare name means again."""
    with asking(service) as client:
        return client.adapters.rollback(name, store=store)


def _plain(one: Adapter) -> dict[str, object]:
    found = asdict(one)
    del found["manifest"]
    return found


def _pairs(one: Adapter) -> list[tuple[str, str]]:
    return [
        ("adapter", one.label),
        ("kind", one.kind),
        ("project", one.project),
        ("created", f"{moment_text(one.committed_at)} UTC"),
        ("run", f"{one.run}, attempt {one.attempt}"),
        ("base", one.base_digest[:12]),
        ("parent", one.parent or "-"),
        ("size", size_text(one.size)),
        ("store", one.store),
    ]


def _when(one: Adapter) -> str:
    return moment_text(one.committed_at)[:16]
