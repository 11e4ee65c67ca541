"""Sign a version, and check the signature of one: `manifest.sig` beside the manifest.

Format 2 signs a statement that names project, run, name and version with the manifest's digest.
Format 1, of earlier releases, signed the bare manifest, which does not name the project: it is
accepted in the operator's own project only.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from jobs.errors import AlreadyExists, Fault, NotInStore, Untrusted, WriteConflict
from jobs.spec.strict_model import StrictModel
from jobs.store.adapters.manifest import (
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    Manifest,
    get_manifest_key,
    get_version_prefix,
    parse_manifest,
)
from jobs.store.base import ObjectStore
from jobs.store.strict_json import load_strictly
from jobs.store.trust.signatures import Signer, find_signer_key, format_public_key
from jobs.store.trust.statements import (
    OPERATOR_PROJECT,
    Statement,
    describe_version,
    encode_statement,
    find_project,
)
from jobs.store.trust.trust_policy import TrustPolicy

MAX_SIGNATURE_BYTES = 4096
SIGN_REMEDY = "Sign it with `slora adapters sign`, or use a version that is signed."
DISTRUST_REMEDY = "Do not use this version, unless you trust the key that signed it."

Text = Annotated[str, Field(max_length=1024)]


class VersionSignature(StrictModel):
    """The content of `manifest.sig`."""

    format: Literal[1, 2]
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Text
    statement: dict[Text, Text | int] | None = None
    """What was signed, for people; a reader builds it anew. None in format 1."""
    signature: Text


def make_signature(manifest: Manifest, data: bytes, project: str, signer: Signer) -> bytes:
    """Return the content of `manifest.sig` for a manifest and its bytes."""
    statement = _describe(manifest, data, project)
    document = VersionSignature(
        format=2,
        public_key=format_public_key(signer.public_key),
        statement=statement,
        signature=signer.sign(encode_statement(statement)),
    )
    return document.model_dump_json(indent=2).encode() + b"\n"


def sign_version(store: ObjectStore, manifest: Manifest, project: str, signer: Signer) -> None:
    """Write the signature of a committed version, unless it has this signer's already.

    Another signature is replaced: anybody who writes to the store can leave one. Raise NotInStore,
    or Untrusted if the manifest is no longer the one that was read.
    """
    data = read_manifest_bytes(store, manifest.name, manifest.version)
    if parse_manifest(data, get_manifest_key(manifest.name, manifest.version)) != manifest:
        problem = "its manifest was replaced after it was read"
        raise Untrusted(manifest.label, problem, "Publish the run again.")
    key = manifest.prefix + SIGNATURE
    info = store.head(key)
    own = TrustPolicy((signer.public_key,))
    if info is not None and not find_version_fault(
        store, manifest, data, own, project, accepts_bare=False
    ):
        return
    signature = make_signature(manifest, data, project, signer)
    try:
        store.put(key, signature, create_only=info is None, if_match=info.etag if info else None)
    except (AlreadyExists, WriteConflict):
        # Another service signed it meanwhile, or somebody interferes: the next attempt tells.
        if find_version_fault(store, manifest, data, own, project, accepts_bare=False):
            raise


def is_signed(store: ObjectStore, manifest: Manifest, project: str, signer: Signer) -> bool:
    """Return whether a version has this signer's signature already, of the newest format."""
    data = read_manifest_bytes(store, manifest.name, manifest.version)
    own = TrustPolicy((signer.public_key,))
    return not find_version_fault(store, manifest, data, own, project, accepts_bare=False)


def check_version(store: ObjectStore, manifest: Manifest, data: bytes, policy: TrustPolicy) -> None:
    """Raise Untrusted if no trusted key has signed the version, whose manifest has these bytes."""
    fault = find_version_fault(store, manifest, data, policy, find_project(store.url("")))
    if fault is not None:
        raise Untrusted(manifest.label, fault.problem, fault.remedy)


def check_version_in_store(
    store: ObjectStore, name: str, version: int, policy: TrustPolicy
) -> Manifest:
    """Read a version and return its manifest; raise as `check_version` does, and BadManifest."""
    data = read_manifest_bytes(store, name, version)
    manifest = parse_manifest(data, get_manifest_key(name, version))
    check_version(store, manifest, data, policy)
    return manifest


def read_manifest_bytes(store: ObjectStore, name: str, version: int) -> bytes:
    """Return the bytes of a manifest, cut where it would exceed its limit. Raise NotInStore."""
    return store.read(get_manifest_key(name, version), 0, MAX_MANIFEST_BYTES + 1)


def find_version_fault(
    store: ObjectStore,
    manifest: Manifest,
    data: bytes,
    policy: TrustPolicy,
    project: str,
    *,
    accepts_bare: bool = True,
) -> Fault | None:
    """Return the fault of a version's signature under a policy, or None.

    With `accepts_bare`, a signature of format 1 suffices in the operator's own project.
    """
    key = get_version_prefix(manifest.name, manifest.version) + SIGNATURE
    try:
        document = _read_document(store, key)
    except NotInStore:
        return Fault(key, "it is not signed", SIGN_REMEDY)
    if document is None:
        return Fault(key, "its signature cannot be read", DISTRUST_REMEDY)
    if document.format == 1 and not (accepts_bare and project == OPERATOR_PROJECT):
        problem = "its signature is of format 1, which does not name the project"
        return Fault(key, problem, "Sign it again with `slora adapters sign --replace`.")
    if document.format == 1 and find_signer_key(policy.keys, data, document.signature):
        return None
    statement = _describe(manifest, data, project)
    signed = encode_statement(statement)
    if document.format == 2 and find_signer_key(policy.keys, signed, document.signature):
        return None
    if difference := _find_difference(document.statement, statement):
        return Fault(key, f"its signature is for {difference}", DISTRUST_REMEDY)
    problem = f"the trusted keys did not sign this manifest; {_name_key(document)}"
    return Fault(key, problem, DISTRUST_REMEDY)


def _describe(manifest: Manifest, data: bytes, project: str) -> Statement:
    return describe_version(
        project=project,
        run=manifest.run,
        name=manifest.name,
        version=manifest.version,
        manifest=data,
    )


def _read_document(store: ObjectStore, key: str) -> VersionSignature | None:
    """Return the document, or None if it is no signature. Raise NotInStore."""
    data = store.read(key, 0, MAX_SIGNATURE_BYTES + 1)
    if len(data) > MAX_SIGNATURE_BYTES:
        return None
    try:
        load_strictly(data)
        return VersionSignature.model_validate_json(data)
    except (ValidationError, ValueError):
        return None


def _find_difference(claimed: Statement | None, expected: Statement) -> str:
    """Return the first field in which the document differs from what is expected, or nothing."""
    for name, value in expected.items():
        other = (claimed or {}).get(name)
        if other is not None and other != value:
            return f"{name} {json.dumps(other)[:100]}, not {json.dumps(value)[:100]}"
    return ""


def _name_key(document: VersionSignature) -> str:
    return f"its signature names the key {document.public_key[:60]!a}"
