"""Commit an adapter: claim a version, write blobs and files, verify them, write the manifest last.

The order is the promise: an adapter with a manifest is complete. A version is claimed by a
create-only write of `.claim`, so two runs never write into one folder; the loser takes the next
number. The first number to try follows the newest committed version: a claim or a folder far above
it, which anybody may have written, moves no number. A claim is never released. A commit that dies
leaves a claimed folder without a manifest, which no reader lists and no writer fills: its retry
takes a new number, because the first may still be alive. Versions are claimed in order, so an
existing claim has the lower number. Therefore an attempt that meets no later attempt of its run
below itself cannot end up above one.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import AlreadyExists, DigestMismatch, NotInStore, SupersededAttempt
from jobs.store.adapters.adapter_dir import scan_adapter_folder
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.manifest import (
    SIGNATURE,
    AdapterFile,
    Manifest,
    ManifestDraft,
    encode_manifest,
    format_time,
    get_manifest_key,
    get_version_prefix,
)
from jobs.store.adapters.versions import find_last_version, list_versions
from jobs.store.base import ObjectStore
from jobs.store.blobs import store_file
from jobs.store.trust.statements import find_project

if TYPE_CHECKING:
    from jobs.store.trust.signatures import Signer

CLAIM = ".claim"
MAX_CLAIM_BYTES = 4096
LOOK_BACK = 256
"""The number of newest versions that a retry searches for its own earlier commit and for a later
attempt. An older commit is repeated as a twin; a search of 10,000 versions would take a minute."""

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


def commit(
    store: ObjectStore,
    folder: Path,
    draft: ManifestDraft,
    *,
    now: datetime | None = None,
    sign: Signer | None = None,
) -> Manifest:
    """Publish `folder` as the next version of its name. A repeated commit of a run is no new one.

    With a signer, the signature is written before the manifest.
    """
    files = scan_adapter_folder(folder)
    if (earlier := _find_earlier_commit(store, draft, files)) is not None:
        return earlier
    version = _claim_version(store, draft)
    _check_fence(store, draft, version)
    prefix = get_version_prefix(draft.name, version)
    for file in files:
        store_file(store, file, folder / file.name, prefix + file.name)
    created = format_time(now or datetime.now(UTC))
    manifest = Manifest(**dict(draft), version=version, created=created, files=files)
    data = encode_manifest(manifest)
    if sign is not None:
        # Imported here because cryptography is slow to import and few installations sign.
        from jobs.store.trust.version_trust import make_signature

        signature = make_signature(manifest, data, find_project(store.url("")), sign)
        store.put(prefix + SIGNATURE, signature, create_only=True)
    key = get_manifest_key(draft.name, version)
    store.put(key, data, create_only=True)
    if store.get(key) != data:
        # Corrupted in transit. No reader can have read it: only the number is lost.
        store.delete(key)
        raise DigestMismatch(store.url(key), sha256(data).hexdigest(), "different")
    return manifest


def _find_earlier_commit(
    store: ObjectStore, draft: ManifestDraft, files: tuple[AdapterFile, ...]
) -> Manifest | None:
    """Return what this run has committed: a crash after the manifest must not make a twin."""
    return find_newest(
        store,
        draft.name,
        list_versions(store, draft.name)[-LOOK_BACK:],
        lambda manifest: manifest.run == draft.run and manifest.files == files,
        trusts_all=True,
    )


def _claim_version(store: ObjectStore, draft: ManifestDraft) -> int:
    claim = json.dumps({"run": draft.run, "attempt": draft.attempt}).encode()
    claimed = _list_claimed(store, draft.name)
    version = find_last_version(list_versions(store, draft.name)) + 1
    while True:
        if version in claimed:
            # Also a folder without a claim, which somebody else has written.
            version += 1
            continue
        try:
            store.put(get_version_prefix(draft.name, version) + CLAIM, claim, create_only=True)
            return version
        except AlreadyExists:
            version += 1


def _list_claimed(store: ObjectStore, name: str) -> set[int]:
    """Return every claimed version, committed or not."""
    parts = (key.split("/")[2] for key in store.list(f"adapters/{name}/"))
    return {int(match[1]) for part in parts if (match := _VERSION.fullmatch(part))}


def _check_fence(store: ObjectStore, draft: ManifestDraft, version: int) -> None:
    """Raise SupersededAttempt if a later attempt of the run has claimed a lower version."""
    lower = sorted(claimed for claimed in _list_claimed(store, draft.name) if claimed < version)
    for claimed in lower[-LOOK_BACK:]:
        if _is_later_attempt(store, draft, claimed):
            raise SupersededAttempt(
                f"{draft.run}: a later attempt than {draft.attempt} has claimed "
                f"{draft.name}@v{claimed}. Let this attempt end: nothing is lost."
            )


def _is_later_attempt(store: ObjectStore, draft: ManifestDraft, version: int) -> bool:
    key = get_version_prefix(draft.name, version) + CLAIM
    info = store.head(key)
    if info is None or info.size > MAX_CLAIM_BYTES:
        return False
    try:
        claim = json.loads(store.get(key))
        return bool(claim["run"] == draft.run and claim["attempt"] > draft.attempt)
    except (NotInStore, ValueError, TypeError, KeyError, RecursionError):
        return False  # a claim in another format does not fence
