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
from jobs.store.commit import commit
from jobs.store.manifest import Draft, Manifest
from jobs.store.objects import ObjectStore
from jobs.store.settings import store_settings

DRAFT, ADAPTER = "draft.json", "adapter"
UNFINISHED = ".new-"


@dataclass(frozen=True)
class Waiting:
    """An adapter that waits, and the store that it was meant for."""

    folder: Path
    store: str
    draft: Draft


def keep(spool: Path, store_url: str, folder: Path, draft: Draft) -> Path:
    """Copy an adapter's folder and its draft into the spool: whole, or not there."""
    name = f"{draft.run}-{draft.attempt}-{secrets.token_hex(3)}"
    made, final = spool / f"{UNFINISHED}{name}", spool / name
    try:
        made.mkdir(parents=True, mode=0o700)
        shutil.copytree(folder, made / ADAPTER)
        told = {"store": store_url, "draft": draft.model_dump(mode="json")}
        (made / DRAFT).write_text(json.dumps(told, indent=2))
        _sync(made)
        made.rename(final)
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        wrong = f"{spool} can't be written: {error.strerror or error}"
        raise StoreError(f"{wrong}. Name another folder as SLORA_SPOOL.") from error
    return final


def waiting(spool: Path) -> tuple[list[Waiting], list[Fault]]:
    """What waits, the oldest name first, and what lies there and can't be read."""
    if not spool.is_dir():
        return [], []
    entries, faults = list[Waiting](), list[Fault]()
    for folder in sorted(spool.iterdir()):
        if folder.name.startswith(UNFINISHED) or not folder.is_dir():
            continue
        try:
            entries.append(_read(folder))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as wrong:
            said = type(wrong).__name__ if isinstance(wrong, ValidationError) else wrong
            faults.append(Fault(str(folder), f"no adapter that waits ({said})", "Look into it."))
    return entries, faults


def send(entry: Waiting, store: ObjectStore) -> Manifest | None:
    """Commit what waits and take it out of the spool; None where another process has done so."""
    with _locked(entry.folder) as ours:
        if not ours:
            return None
        manifest = commit(store, entry.folder / ADAPTER, entry.draft, sign=signing())
        shutil.rmtree(entry.folder)
        return manifest


def signing() -> Callable[[bytes], bytes] | None:
    """What signs every commit of this process; None where no key is named."""
    key = store_settings().signing_key
    if key is None:
        return None
    # Here, because cryptography is heavy and few sign.
    from jobs.store.signing import signer

    return signer(key)


def _read(folder: Path) -> Waiting:
    told = json.loads((folder / DRAFT).read_text(encoding="utf-8"))
    return Waiting(folder, str(told["store"]), Draft.model_validate_json(json.dumps(told["draft"])))


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    try:
        with (folder / DRAFT).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever waited for the lock may have waited until nothing was left to send.
            yield (folder / DRAFT).exists()
    except FileNotFoundError as gone:
        if gone.filename != str(folder / DRAFT):
            raise
        yield False


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
