"""Load a committed adapter: pull it, check it, and apply it to its base."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from jobs.errors import Fault, InputError
from jobs.spec.tasks import get_label_kind
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.base import ObjectStore
from jobs.tools.adapter_base import find_base
from jobs.train.model.base_model import SavedTask, load_model, read_saved_task
from jobs.train.model.tokenizer import load_tokenizer, save_tokenizer
from slora.formats.merge import attach_adapter, merge_adapter
from slora.formats.peft import LoraAdapter, SparseAdapter, read_adapter


@dataclass(frozen=True)
class AdaptedModel:
    """A model with its adapter applied, in evaluation mode."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    saved: SavedTask
    manifest: Manifest

    @property
    def task(self) -> str:
        """Return the task that the adapter was trained for."""
        return self.saved.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Return a classifier's labels in their order."""
        return self.saved.labels


def load_adapted_model(
    store: ObjectStore, name: str, *, base: str | None = None, merged: bool = False
) -> AdaptedModel:
    """Return the adapter `NAME` or `NAME@v2` on its base, or on the one at `base`.

    Raise NotInStore, DigestMismatch, BadAdapter, and InputError if the base is not the one that the
    adapter was trained on.
    """
    manifest = resolve_adapter(store, name)
    with tempfile.TemporaryDirectory(prefix="slora-pulled-") as scratch:
        folder = pull(store, manifest, Path(scratch) / "adapter")
        if manifest.kind == "full":
            return _load_full_model(folder, manifest)
        adapter = read_adapter(folder)
        base_folder = find_base(manifest, base)
        # An adapter that trains tokens has the tokenizer that knows them.
        tokenizer = load_tokenizer(str(folder if adapter.tokens else base_folder))
    label_kind = get_label_kind(adapter.problem_type)
    model = load_model(
        str(base_folder),
        task=adapter.task,
        dtype="float32",
        labels=adapter.labels,
        label_kind=label_kind,
    )
    (merge_adapter if merged else attach_adapter)(model, adapter)
    saved = SavedTask(adapter.task, adapter.labels, label_kind)
    return AdaptedModel(model, tokenizer, saved, manifest)


def pull_adapter(store: ObjectStore, name: str) -> tuple[LoraAdapter | SparseAdapter, Manifest]:
    """Return the adapter `NAME` or `NAME@v2` itself, without a model.

    Raise NotInStore, DigestMismatch, BadAdapter, and InputError for one of kind full, which is a
    model and not an update.
    """
    manifest = resolve_adapter(store, name)
    if manifest.kind == "full":
        problem = f"{manifest.label} is a full model, not an adapter"
        raise InputError(
            [Fault("--adapter", problem, "Pull the model with `slora adapters pull`.")]
        )
    with tempfile.TemporaryDirectory(prefix="slora-pulled-") as scratch:
        return read_adapter(pull(store, manifest, Path(scratch) / "adapter")), manifest


def copy_tokenizer(store: ObjectStore, name: str, folder: Path) -> None:
    """Save the tokenizer of an adapter that trains tokens into a folder beside its copy."""
    manifest = resolve_adapter(store, name)
    with tempfile.TemporaryDirectory(prefix="slora-pulled-") as scratch:
        pulled = pull(store, manifest, Path(scratch) / "adapter")
        save_tokenizer(load_tokenizer(str(pulled)), folder)


def _load_full_model(folder: Path, manifest: Manifest) -> AdaptedModel:
    """Return the model that full fine-tuning saved; its own folder names its task."""
    saved = read_saved_task(folder)
    model = load_model(
        str(folder),
        task=saved.task,
        dtype="float32",
        labels=saved.labels,
        label_kind=saved.label_kind,
    )
    return AdaptedModel(model, load_tokenizer(str(folder)), saved, manifest)
