"""Committing an adapter: claim a version, blobs, folder, digests read back, manifest last.

The order is the promise: whoever sees a manifest sees a whole adapter. A version is claimed by the
exclusive write of `.claim`, so two runs never write into one folder; whoever loses takes the next.
A claim is never given back. A commit that dies leaves a claimed folder without a manifest, which
nobody lists and nobody fills: its retry takes a new number, because the first may still be alive.
Versions are claimed in order, so a claim that exists before ours has the lower number. Therefore an
attempt that finds no later attempt of its run below itself can't end up above one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from jobs.errors import AlreadyThere, DigestMismatch, NotFound, Replaced
from jobs.store.blobs import store_file
from jobs.store.folder import survey_folder
from jobs.store.listing import read_committed
from jobs.store.manifest import (
    SIGNATURE,
    BadManifest,
    Draft,
    File,
    Manifest,
    manifest_bytes,
    manifest_key,
    time_text,
    version_prefix,
)
from jobs.store.objects import ObjectStore
from jobs.store.versions import committed_versions

CLAIM = ".claim"
LARGEST_CLAIM = 4096
LOOK_BACK = 256
"""Versions, from the newest, among which a retry looks for its own earlier commit and for a later
attempt. Beyond them it would get a twin, and a commit to a name of 10,000 would take a minute."""

_VERSION = re.compile(r"v([1-9][0-9]{0,8})")


def commit(
    store: ObjectStore,
    folder: Path,
    draft: Draft,
    *,
    now: datetime | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> Manifest:
    """Publish `folder` as the next version of its name; the same for the same run asking again.

    `sign` makes the signature of a manifest's bytes; it lies there before the manifest does.
    """
    files = survey_folder(folder)
    if (done := _committed_before(store, draft, files)) is not None:
        return done
    version = _claim(store, draft)
    _check_fence(store, draft, version)
    prefix = version_prefix(draft.name, version)
    for file in files:
        store_file(store, file, folder / file.name, prefix + file.name)
    created = time_text(now or datetime.now(UTC))
    manifest = Manifest(**dict(draft), version=version, created=created, files=files)
    written = manifest_bytes(manifest)
    if sign is not None:
        store.put(prefix + SIGNATURE, sign(written), create_only=True)
    key = manifest_key(draft.name, version)
    store.put(key, written, create_only=True)
    if store.get(key) != written:
        # Spoilt on its way. Nobody can read it, so nobody has: the number is lost, and no more.
        store.delete(key)
        raise DigestMismatch(store.url(key), sha256(written).hexdigest(), "other ones")
    return manifest


def _committed_before(store: ObjectStore, draft: Draft, files: tuple[File, ...]) -> Manifest | None:
    """What this run committed already: a crash after the manifest must not make a twin."""
    for version in reversed(committed_versions(store, draft.name)[-LOOK_BACK:]):
        try:
            manifest = read_committed(store, draft.name, version)
        except BadManifest:
            continue
        if manifest.run == draft.run and manifest.files == files:
            return manifest
    return None


def _claim(store: ObjectStore, draft: Draft) -> int:
    claim = json.dumps({"run": draft.run, "attempt": draft.attempt}).encode()
    version = max(_taken(store, draft.name), default=0) + 1
    while True:
        try:
            store.put(version_prefix(draft.name, version) + CLAIM, claim, create_only=True)
            return version
        except AlreadyThere:
            version += 1


def _taken(store: ObjectStore, name: str) -> set[int]:
    """Every number that was ever begun, committed or not."""
    parts = (key.split("/")[2] for key in store.list(f"adapters/{name}/"))
    return {int(found[1]) for part in parts if (found := _VERSION.fullmatch(part))}


def _check_fence(store: ObjectStore, draft: Draft, version: int) -> None:
    """An old attempt that woke up again may not become the newest version."""
    for other in sorted(_taken(store, draft.name))[-LOOK_BACK:]:
        if other < version and _later_attempt(store, draft, other):
            raise Replaced(
                f"{draft.run}: attempt {draft.attempt} was replaced by a later one, which has "
                f"{draft.name}@v{other}. Nothing is lost: this attempt may end."
            )


def _later_attempt(store: ObjectStore, draft: Draft, version: int) -> bool:
    key = version_prefix(draft.name, version) + CLAIM
    head = store.head(key)
    if head is None or head.size > LARGEST_CLAIM:
        return False
    try:
        claim = json.loads(store.get(key))
        return bool(claim["run"] == draft.run and claim["attempt"] > draft.attempt)
    except (NotFound, ValueError, TypeError, KeyError, RecursionError):
        return False  # what we did not write fences nobody
