"""An adapter's folder as a server takes it: copied, checked, and told apart by its digest.

The folder is hostile until it has been checked. Only JSON and safetensors are read; what the server
uses afterwards is its own copy, so nobody can change it after the check.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slora.errors import BadAdapter
from slora.formats.base_files import digest_file, digest_files
from slora.formats.peft import (
    PEFT_CONFIG,
    PEFT_WEIGHTS,
    SPARSE_CONFIG,
    SPARSE_WEIGHTS,
    LoraAdapter,
    SparseAdapter,
    read_adapter,
)
from slora.serving.base_weights import BaseWeights
from slora.serving.refusals import ServingRefused

Form = Literal["lora", "sparse"]
FILES: dict[Form, tuple[str, str]] = {
    "sparse": (SPARSE_CONFIG, SPARSE_WEIGHTS),
    "lora": (PEFT_CONFIG, PEFT_WEIGHTS),
}
MANIFEST = "manifest.json"
MAX_JSON_BYTES = 16 << 20
OUTSIDE_LAYERS = ("lm_head", "embed_tokens")
"""Layers of which the plug-in takes no LoRA: on CPUs it leaves LoRA out of the logits."""


@dataclass(frozen=True)
class AdapterFolder:
    """A private copy of an adapter. `digest`: over the names, sizes and bytes of its two files.

    `base_digest`: that of the base in its manifest, if it has one.
    """

    path: Path
    form: Form
    digest: str
    base_digest: str | None


def copy_adapter(source: Path, target: Path) -> AdapterFolder:
    """Copy the files of an adapter into a new folder, and return it. Raise ServingRefused.

    Files that the manifest names must have its digests.
    """
    form = _detect_form(source)
    target.mkdir(parents=True)
    for name in FILES[form]:
        _copy_file(source / name, target / name, is_json=name.endswith(".json"))
    base_digest = None
    if (source / MANIFEST).exists():
        _copy_file(source / MANIFEST, target / MANIFEST, is_json=True)
        base_digest = _check_manifest(target, form)
    digest = digest_files(target, [target / name for name in FILES[form]])
    return AdapterFolder(target, form, digest, base_digest)


def read_checked(folder: AdapterFolder) -> LoraAdapter | SparseAdapter:
    """Return the validated adapter: names, shapes, types, finite values, positions in range.

    Raise ServingRefused.
    """
    try:
        return read_adapter(folder.path)
    except BadAdapter as error:
        raise ServingRefused(400, f"not a usable adapter: {error.reason}") from None


def check_lora(adapter: LoraAdapter, base: BaseWeights, max_rank: int) -> None:
    """Check a LoRA's rank and its layers' shapes against the base. Raise ServingRefused."""
    if adapter.rank > max_rank:
        raise ServingRefused(
            400,
            f"its rank {adapter.rank} exceeds this server's {max_rank}. Start the server with "
            f"--max-lora-rank {adapter.rank} or more",
        )
    if adapter.tokens or adapter.head:
        first = min([*adapter.tokens, *adapter.head])
        raise ServingRefused(
            400, f"it trains {first} beside its layers. Serve it merged: `slora adapters merge`"
        )
    for layer, (a, b) in adapter.factors.items():
        if layer.rpartition(".")[2] in OUTSIDE_LAYERS:
            raise ServingRefused(
                400, f"it changes {layer}, and this server takes LoRAs of the layers inside alone. "
                "Serve it merged: `slora adapters merge`"
            )  # fmt: skip
        shape, expected = (b.shape[0], a.shape[1]), base.get_shape(layer)
        if expected is not None and expected not in (shape, shape[::-1]):
            raise ServingRefused(
                400, f"{layer} is {shape} in the adapter, {expected} in the base"
            )  # fmt: skip


def _detect_form(source: Path) -> Form:
    for form, (config, weights) in FILES.items():
        if (source / config).is_file() and (source / weights).is_file():
            return form
    names = " or ".join(config for config, _ in FILES.values())
    raise ServingRefused(
        400, f"{str(source)[:200]!a} on the server's machine is not an adapter's folder: it has no "
        f"{names} with its safetensors file"
    )  # fmt: skip


def _copy_file(source: Path, target: Path, *, is_json: bool) -> None:
    try:
        if source.is_symlink():
            raise ServingRefused(400, f"{source.name} is a symbolic link. Use the files themselves")
        if is_json and source.stat().st_size > MAX_JSON_BYTES:
            raise ServingRefused(400, f"{source.name} exceeds {MAX_JSON_BYTES} bytes")
        shutil.copyfile(source, target, follow_symlinks=False)
    except OSError as error:
        raise ServingRefused(400, f"{source.name} can't be read: {error.strerror}") from None


def _check_manifest(folder: Path, form: Form) -> str:
    """Compare the files with the manifest, and return the digest of the base."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_bytes())
        digests = {str(file["name"]): file["sha256"] for file in manifest["files"]}
        base = manifest["base"]
        digest = base["digest"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServingRefused(400, f"{MANIFEST} is no manifest: {error!r}") from None
    for name in FILES[form]:
        if digests.get(name) != digest_file(folder / name):
            raise ServingRefused(400, f"{name} is not the file that {MANIFEST} names")
    if not isinstance(digest, str) or not isinstance(base, Mapping):
        raise ServingRefused(400, f"{MANIFEST} names no base")
    if base.get("files") is None:
        raise ServingRefused(
            400, f"{MANIFEST} is of a release before the digest of all files. Train it again"
        )
    return digest
