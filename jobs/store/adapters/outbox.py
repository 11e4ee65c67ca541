"""The spool: a folder on this machine where adapters wait that could not be sent to the store."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from jobs.errors import Fault, StoreError
from jobs.store.adapters.commit import commit
from jobs.store.adapters.manifest import Manifest, ManifestDraft
from jobs.store.base import ObjectStore
from jobs.store.settings import read_store_settings

DRAFT, ADAPTER = "draft.json", "adapter"
UNFINISHED_PREFIX = ".new-"


@dataclass(frozen=True)
class OutboxEntry:
    """An adapter that waits, and the store that it was meant for."""

    folder: Path
    store_url: str
    draft: ManifestDraft


def add_to_outbox(outbox: Path, store_url: str, folder: Path, draft: ManifestDraft) -> Path:
    """Copy an adapter's folder and its draft into the spool: whole, or not there."""
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
        problem = f"{outbox} can't be written: {error.strerror or error}"
        raise StoreError(f"{problem}. Name another folder as SLORA_SPOOL.") from error
    return final


def list_outbox(outbox: Path) -> tuple[list[OutboxEntry], list[Fault]]:
    """What waits, the oldest name first, and what lies there and can't be read."""
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
            faults.append(Fault(str(folder), f"no adapter that waits ({reason})", "Look into it."))
    return entries, faults


def send_entry(entry: OutboxEntry, store: ObjectStore) -> Manifest | None:
    """Commit what waits and take it out of the spool; None where another process has done so."""
    with _lock_entry(entry.folder) as is_ours:
        if not is_ours:
            return None
        manifest = commit(store, entry.folder / ADAPTER, entry.draft, sign=load_configured_signer())
        shutil.rmtree(entry.folder)
        return manifest


def load_configured_signer() -> Callable[[bytes], bytes] | None:
    """What signs every commit of this process; None where no key is named."""
    key = read_store_settings().signing_key
    if key is None:
        return None
    # Here, because cryptography is heavy and few sign.
    from jobs.store.adapters.signing import load_signer

    return load_signer(key)


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
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever waited for the lock may have waited until nothing was left to send.
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
