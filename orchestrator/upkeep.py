"""`slora adapters`, what changes the store: promote, rollback, delete, gc, recover, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import AlreadyThere, Fault, InputError, StoreError
from jobs.store.adapters import delete, gc, promote, resolve, rollback, split_name
from jobs.store.manifest import SIGNATURE, manifest_key
from jobs.store.objects import open_store
from jobs.store.settings import store_settings
from jobs.store.spool import send, waiting
from orchestrator.adapters import named_store
from orchestrator.commands.options import DEFAULT_STORE, Json, Service, Store
from orchestrator.console import note, print_json, say, size_text
from orchestrator.reproduce import Reproduced

Version = Annotated[str, typer.Argument(metavar="NAME@v2", help="One version.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="An adapter's name.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")]
Spool = Annotated[Path | None, typer.Option(help="Instead of SLORA_SPOOL's folder.")]
Grace = Annotated[float, typer.Option(help="Hours that what nobody names stays.", min=2)]


def add_to(app: typer.Typer) -> None:
    """Puts the commands beside those that only read."""
    for name, command in (
        ("promote", promote_command),
        ("rollback", rollback_command),
        ("delete", delete_command),
        ("gc", gc_command),
        ("recover", recover_command),
        ("sign", sign_command),
    ):
        app.command(name)(command)


def promote_command(
    name: Version, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """Let the bare NAME mean this version."""
    plain, version = _version(name)
    if service is not None:
        # Here and below, because who works on a store needs no client.
        from orchestrator.adapters_there import promote_there

        there = promote_there(service, plain, version, named_store(store))
        _say_pointer(plain, there.version, there.move, json=json)
        return
    pointer = promote(open_store(store), plain, version)
    _say_pointer(plain, pointer.version, pointer.moves[-1].number, json=json)


def rollback_command(
    name: Name, store: Store = DEFAULT_STORE, service: Service = None, json: Json = False
) -> None:
    """Let NAME mean again what it meant before its last promotion."""
    plain, version = split_name(name)
    if version is not None:
        remedy = f"Use `slora adapters promote {name}` to go to a version by its number."
        raise InputError([Fault("NAME", f"{name} names a version", remedy)])
    if service is not None:
        from orchestrator.adapters_there import rollback_there

        there = rollback_there(service, plain, named_store(store))
        _say_pointer(plain, there.version, there.move, json=json)
        return
    pointer = rollback(open_store(store), plain)
    _say_pointer(plain, pointer.version, pointer.moves[-1].number, json=json)


def delete_command(name: Version, store: Store = DEFAULT_STORE) -> None:
    """Remove one version that nothing points to; its number is never used again."""
    plain, version = _version(name)
    delete(open_store(store), plain, version)
    say(f"{plain}@v{version} is removed. `slora adapters gc` frees its bytes after a day.")


def gc_command(
    store: Store = DEFAULT_STORE, grace: Grace = 24, dry_run: DryRun = False, json: Json = False
) -> None:
    """Remove the blobs that no adapter names any more, and what writers left that died."""
    swept = gc(open_store(store), grace=grace * 3600, dry_run=dry_run)
    if json:
        removed = {"removed": swept.keys, "leftovers": swept.leftovers}
        print_json({**removed, "bytes": swept.bytes, "kept": swept.kept})
        return
    for key in (*swept.keys, *swept.leftovers):
        say(key)
    done = "would be removed" if dry_run else "removed"
    gone = f"{len(swept.keys)} blobs and {len(swept.leftovers)} unfinished writes"
    note(f"{gone} {done}, {size_text(swept.bytes)}; {swept.kept} blobs stay.")


def recover_command(
    store: Annotated[
        str | None, typer.Option(help="Instead of the one it was meant for.", metavar="URL")
    ] = None,
    spool: Spool = None,
    json: Json = False,
) -> None:
    """Send the adapters that wait on this machine because their store was not to be reached."""
    entries, faults = waiting(spool or store_settings().spool)
    sent, failed = list[str](), list[StoreError]()
    for entry in entries:
        try:
            manifest = send(entry, open_store(store or entry.store))
        except StoreError as error:
            failed.append(error)
            note(f"{entry.folder}: {error}")
            continue
        if manifest is not None:
            sent.append(manifest.label)
            note(f"{manifest.label} is sent, of run {manifest.run}")
    for fault in faults:
        note(str(fault))
    if json:
        print_json({"sent": sent, "waiting": len(failed) + len(faults)})
    elif not entries and not faults:
        note("Nothing waits.")
    if failed or faults:
        raise typer.Exit(failed[0].exit_code if failed else 1)


def sign_command(
    name: Version,
    key: Annotated[Path, typer.Option(help="A private ed25519 key (PEM).")],
    store: Store = DEFAULT_STORE,
) -> None:
    """Sign a version that was committed without a signature."""
    # Here, because cryptography takes a tenth of a second that other commands need not wait for.
    from jobs.store.signing import signer

    sign = signer(key)
    opened = open_store(store)
    adapter = resolve(opened, name)
    written = opened.get(manifest_key(adapter.name, adapter.version))
    try:
        opened.put(adapter.prefix + SIGNATURE, sign(written), create_only=True)
    except AlreadyThere as error:
        raise StoreError(f"{adapter.label} is signed already. A signature stays.") from error
    say(f"{adapter.label} is signed.")


def show_reproduced(found: Reproduced) -> None:
    """What running it again came to, file by file."""
    for name in found.equal:
        say(f"{name}: equal, bit for bit")
    for name, apart in found.different.items():
        say(f"{name}: differs by {apart:.2g}, {found.tolerance:g} is allowed")
    done = "is reproduced" if found.same else "is NOT reproduced"
    say(f"{found.adapter} {done}.")
    if len(set(found.code)) > 1:
        note("It was made by slora {}, and now by {}.".format(*found.code))


def _version(name: str) -> tuple[str, int]:
    plain, version = split_name(name)
    if version is None:
        problem = f"{name} names no version"
        raise InputError([Fault("NAME@v2", problem, f"Name one, as in {name}@v1.")])
    return plain, version


def _say_pointer(name: str, version: int, number: int, *, json: bool) -> None:
    if json:
        print_json({"name": name, "version": version, "move": number})
    else:
        say(f"{name} means {name}@v{version} now (move {number}).")
