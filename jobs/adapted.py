"""A committed adapter as a model that answers: pulled, checked, and put onto its base."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.base_model import load_model, load_tokenizer, saved_task
from jobs.errors import Fault, InputError
from jobs.model_files import model_digest, model_folder
from jobs.store.adapters import pull, resolve
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore
from slora.folder import LoraAdapter, SparseAdapter, read
from slora.merge import attach, merge


@dataclass(frozen=True)
class Adapted:
    """A model with its adapter on, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: str
    labels: tuple[str, ...]
    manifest: Manifest


def load_adapted(
    store: ObjectStore, wanted: str, *, base: str | None = None, merged: bool = False
) -> Adapted:
    """The adapter `NAME` or `NAME@v2` on its base, or on the one at `base`.

    Raises NotFound, DigestMismatch, BadAdapter, and InputError if the base is not the one that the
    adapter was trained on.
    """
    manifest = resolve(store, wanted)
    with tempfile.TemporaryDirectory(prefix="slora-pulled-") as made:
        folder = pull(store, manifest, Path(made) / "adapter")
        if manifest.kind == "full":
            return _whole(folder, manifest)
        adapter = read(folder)
    return _put_on(adapter, manifest, _checked_base(manifest, base or manifest.base.path), merged)


def pulled(store: ObjectStore, wanted: str) -> tuple[LoraAdapter | SparseAdapter, Manifest]:
    """The adapter `NAME` or `NAME@v2` itself, without a model.

    Raises NotFound, DigestMismatch, BadAdapter, and InputError for one of kind full, which is a
    model and no update.
    """
    manifest = resolve(store, wanted)
    if manifest.kind == "full":
        problem = f"{manifest.label} is a whole model, not an update of one"
        raise InputError([Fault("--adapter", problem, "`slora adapters pull` has it as it is.")])
    with tempfile.TemporaryDirectory(prefix="slora-pulled-") as made:
        return read(pull(store, manifest, Path(made) / "adapter")), manifest


def _whole(folder: Path, manifest: Manifest) -> Adapted:
    """The model that full fine-tuning saved: its own folder says what it is for."""
    task, labels = saved_task(folder)
    model = load_model(str(folder), task=task, dtype="float32", labels=labels)
    return Adapted(model, load_tokenizer(str(folder)), task, labels, manifest)


def _put_on(
    adapter: LoraAdapter | SparseAdapter, manifest: Manifest, base: Path, merged: bool
) -> Adapted:
    model = load_model(str(base), task=adapter.task, dtype="float32", labels=adapter.labels)
    (merge if merged else attach)(model, adapter)
    return Adapted(model, load_tokenizer(str(base)), adapter.task, adapter.labels, manifest)


def _checked_base(manifest: Manifest, path: str) -> Path:
    folder = model_folder(path)
    if folder is None:
        problem = f"{path}: the base of {manifest.label} is not there"
        raise InputError([Fault("--base", problem, "Name the folder where it is now.")])
    found = model_digest(folder)
    if found != manifest.base.digest:
        problem = (
            f"{folder} is another model than the base of {manifest.label}: digest "
            f"{found[:12]}, not {manifest.base.digest[:12]}"
        )
        raise InputError([Fault("--base", problem, "Name the folder of the base itself.")])
    return folder
