"""`slora adapters`: commands that change the store: promote, rollback, delete, gc, send, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Fault, InputError, StoreError
from jobs.store.adapters.manifest import SIGNATURE, get_manifest_key, parse_manifest
from jobs.store.adapters.operations import (
    collect_garbage,
    delete_version,
    promote,
    rollback,
    split_name,
)
from jobs.store.adapters.outbox import list_outbox, send_entry
from jobs.store.adapters.verify import check_files
from jobs.store.open import open_store
from jobs.store.settings import read_store_settings
from jobs.store.trust.statements import find_project
from orchestrator.cli.adapters_local import get_named_store
from orchestrator.cli.console import format_size, note, print_json, print_line
from orchestrator.cli.options import DEFAULT_STORE, Json, Service, Store
from orchestrator.cli.reproduce import Reproduction

Version = Annotated[str, typer.Argument(metavar="NAME@v2", help="Version of an adapter.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of an adapter.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be removed, without removing it.")
]
OutboxFolder = Annotated[
    Path | None, typer.Option(help="Folder of the outbox. Default: SLORA_OUTBOX.")
]
Grace = Annotated[
    float,
    typer.Option(help="Grace period in hours before unreferenced objects are deleted.", min=2),
]


def add_commands(app: typer.Typer) -> None:
    """Add the commands that change the store."""
    for name, command in (
        ("promote", promote_command),
        ("rollback", rollback_command),
        ("delete", delete_command),
        ("gc", gc_command),
        ("send-pending", send_pending),
        ("sign", sign_command),
    ):
        app.command(name)(command)


def promote_command(
    name: Version, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """Promote a version: NAME without a version refers to it from now on."""
    base_name, version = _parse_version(name)
    if service is not None:
        # A command on a store needs no client, here and below.
        from orchestrator.cli.remote import connect_service

        with connect_service(service) as client:
            moved = client.adapters.promote(base_name, version, store=get_named_store(store))
        _print_pointer(base_name, moved.version, moved.move, json=json)
        return
    pointer = promote(open_store(store), base_name, version)
    _print_pointer(base_name, pointer.version, pointer.moves[-1].number, json=json)


def rollback_command(
    name: Name, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """Undo the last promotion of an adapter."""
    base_name, version = split_name(name)
    if version is not None:
        remedy = f"Use `slora adapters promote {name}` to select a version."
        raise InputError([Fault("NAME", f"{name} includes a version", remedy)])
    if service is not None:
        from orchestrator.cli.remote import connect_service

        with connect_service(service) as client:
            moved = client.adapters.rollback(base_name, store=get_named_store(store))
        _print_pointer(base_name, moved.version, moved.move, json=json)
        return
    pointer = rollback(open_store(store), base_name)
    _print_pointer(base_name, pointer.version, pointer.moves[-1].number, json=json)


def delete_command(name: Version, store: Store = DEFAULT_STORE) -> None:
    """Delete a version that nothing refers to; its number is never reused."""
    base_name, version = _parse_version(name)
    delete_version(open_store(store), base_name, version)
    print_line(f"Deleted {base_name}@v{version}. `slora adapters gc` frees its space after a day.")


def gc_command(
    store: Store = DEFAULT_STORE, grace: Grace = 24, dry_run: DryRun = False, json: Json = False
) -> None:
    """Delete unreferenced blobs, and the leftovers of interrupted writes."""
    swept = collect_garbage(open_store(store), grace=grace * 3600, dry_run=dry_run)
    if json:
        removed = {"removed": swept.keys, "leftovers": swept.leftovers}
        print_json({**removed, "bytes": swept.bytes, "kept": swept.retained})
        return
    for key in (*swept.keys, *swept.leftovers):
        print_line(key)
    verb = "would be removed" if dry_run else "removed"
    summary = f"{len(swept.keys)} blobs and {len(swept.leftovers)} unfinished writes"
    note(f"{summary} {verb}, {format_size(swept.bytes)}; {swept.retained} blobs remain.")


def send_pending(
    store: Annotated[
        str | None,
        typer.Option(help="Store to send to, instead of the intended one.", metavar="URL"),
    ] = None,
    outbox: OutboxFolder = None,
    json: Json = False,
) -> None:
    """Send adapters that wait on this machine because their store was unreachable."""
    entries, faults = list_outbox(outbox or read_store_settings().outbox)
    sent, failed = list[str](), list[StoreError]()
    for entry in entries:
        try:
            manifest = send_entry(entry, open_store(store or entry.store_url))
        except StoreError as error:
            failed.append(error)
            note(f"{entry.folder}: {error}")
            continue
        if manifest is not None:
            sent.append(manifest.label)
            note(f"Sent {manifest.label} of run {manifest.run}.")
    for fault in faults:
        note(str(fault))
    if json:
        print_json({"sent": sent, "pending": len(failed) + len(faults)})
    elif not entries and not faults:
        note("There are no pending adapters.")
    if failed or faults:
        raise typer.Exit(failed[0].exit_code if failed else 1)


def sign_command(
    name: Version,
    key: Annotated[Path, typer.Option(help="Private ed25519 key (PEM).")],
    store: Store = DEFAULT_STORE,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the signature of another key or format.")
    ] = False,
) -> None:
    """Sign a version that was committed without a signature, after a check of its files."""
    # cryptography takes a tenth of a second to import, and most commands need none.
    from jobs.store.trust.signatures import load_signer
    from jobs.store.trust.version_trust import read_manifest_bytes, sign_version

    signer, object_store = load_signer(key, setting="--key"), open_store(store)
    base_name, version = _parse_version(name)
    data = read_manifest_bytes(object_store, base_name, version)
    adapter = parse_manifest(data, get_manifest_key(base_name, version))
    if not replace and object_store.head(adapter.prefix + SIGNATURE) is not None:
        raise StoreError(
            f"{adapter.label} is already signed. To replace its signature, pass --replace."
        )
    if faults := check_files(object_store, adapter):
        raise StoreError(f"{adapter.label} is not signed: {faults[0]}")
    sign_version(object_store, adapter, find_project(object_store.url("")), signer)
    print_line(f"Signed {adapter.label}.")


def show_reproduction(reproduction: Reproduction) -> None:
    """Print the result of a repeated run, file by file."""
    for name in reproduction.equal_files:
        print_line(f"{name}: equal bit for bit")
    for name, difference in reproduction.differences.items():
        print_line(
            f"{name}: differs by {difference:.2g}, the tolerance is {reproduction.tolerance:g}"
        )
    verdict = "was reproduced" if reproduction.is_same else "was NOT reproduced"
    print_line(f"{reproduction.adapter} {verdict}.")
    if len(set(reproduction.code_versions)) > 1:
        note(
            "The original was produced by slora {}, the repetition by {}.".format(
                *reproduction.code_versions
            )
        )


def _parse_version(name: str) -> tuple[str, int]:
    base_name, version = split_name(name)
    if version is None:
        problem = f"{name} does not include a version"
        raise InputError([Fault("NAME@v2", problem, f"Add the version, for example {name}@v1.")])
    return base_name, version


def _print_pointer(name: str, version: int, move: int, *, json: bool) -> None:
    if json:
        print_json({"name": name, "version": version, "move": move})
    else:
        print_line(f"{name} now refers to {name}@v{version} (move {move}).")
