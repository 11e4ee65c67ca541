"""Keep adapters that could not be sent to their store in a local folder, and send them later."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from jobs.errors import Fault, StoreError
from jobs.store.adapters.commit import commit
from jobs.store.adapters.manifest import Manifest, ManifestDraft
from jobs.store.base import ObjectStore
from jobs.store.file_lock import take_lock
from jobs.store.trust.trust_policy import load_configured_signer

DRAFT, ADAPTER = "draft.json", "adapter"
UNFINISHED_PREFIX = ".new-"
SEND_TIMEOUT_S = 3600.0
"""Seconds that a process waits while another one sends the same adapter."""


@dataclass(frozen=True)
class OutboxEntry:
    """A pending adapter and its store."""

    folder: Path
    store_url: str
    draft: ManifestDraft


def add_to_outbox(outbox: Path, store_url: str, folder: Path, draft: ManifestDraft) -> Path:
    """Copy the folder and the draft of an adapter into the outbox, completely or not at all."""
    name = f"{draft.run}-{draft.attempt}-{secrets.token_hex(3)}"
    temporary, final = outbox / f"{UNFINISHED_PREFIX}{name}", outbox / name
    try:
        temporary.mkdir(parents=True, mode=0o700)
        shutil.copytree(folder, temporary / ADAPTER)
        document = {"store": store_url, "draft": draft.model_dump(mode="json")}
        (temporary / DRAFT).write_text(json.dumps(document, indent=2))
        _sync_tree(temporary)
        temporary.rename(final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        problem = f"{outbox} cannot be written: {error.strerror or error}"
        raise StoreError(f"{problem}. Set SLORA_OUTBOX to another folder.") from error
    return final


def list_outbox(outbox: Path) -> tuple[list[OutboxEntry], list[Fault]]:
    """Return the entries in the order of their names, and a fault for each unreadable one."""
    if not outbox.is_dir():
        return [], []
    entries, faults = list[OutboxEntry](), list[Fault]()
    for folder in sorted(outbox.iterdir()):
        if folder.name.startswith(UNFINISHED_PREFIX) or not folder.is_dir():
            continue
        try:
            entries.append(_read_entry(folder))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = type(error).__name__ if isinstance(error, ValidationError) else error
            problem = f"not an entry of the outbox ({reason})"
            faults.append(Fault(str(folder), problem, "Inspect the folder, then delete it."))
    return entries, faults


def send_entry(entry: OutboxEntry, store: ObjectStore) -> Manifest | None:
    """Commit an entry and remove it. Return None if another process has sent it already."""
    with _lock_entry(entry.folder) as is_ours:
        if not is_ours:
            return None
        manifest = commit(store, entry.folder / ADAPTER, entry.draft, sign=load_configured_signer())
        shutil.rmtree(entry.folder)
        return manifest


def _read_entry(folder: Path) -> OutboxEntry:
    document = json.loads((folder / DRAFT).read_text(encoding="utf-8"))
    return OutboxEntry(
        folder,
        str(document["store"]),
        ManifestDraft.model_validate_json(json.dumps(document["draft"])),
    )


@contextmanager
def _lock_entry(folder: Path) -> Iterator[bool]:
    try:
        with (folder / DRAFT).open("rb") as lock:
            take_lock(lock, purpose="it sends this adapter", timeout_s=SEND_TIMEOUT_S)
            # The process that held the lock before may have sent and removed the entry.
            yield (folder / DRAFT).exists()
    except FileNotFoundError as error:
        if error.filename != str(folder / DRAFT):
            raise
        yield False


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
