"""The update of a fully fine-tuned model: its linear layers beside those of its base."""

from __future__ import annotations

from torch import Tensor

from jobs.spec.tasks import PROBLEM_TYPES
from jobs.store.base import ObjectStore
from jobs.tools.adapter_base import find_base
from jobs.tools.load_adapter import AdaptedModel, load_adapted_model
from jobs.train.model.base_model import find_head, is_within, list_towers, load_model
from slora.formats.full_update import FullUpdate
from slora.layers.base_layers import get_features, get_layer, get_weight_matrix
from slora.layers.targets import find_targets


def load_full_update(
    store: ObjectStore, name: str, *, base: str | None
) -> tuple[FullUpdate, AdaptedModel]:
    """Return the update of a full model `NAME` or `NAME@v2`, and the model. Both it and its base
    are held in float32.

    Raise NotInStore, DigestMismatch, and InputError if the base is not the one of the training.
    """
    tuned = load_adapted_model(store, name)
    model, saved, manifest = tuned.model, tuned.saved, tuned.manifest
    original = load_model(
        str(find_base(manifest, base)),
        task=saved.task,
        dtype="float32",
        labels=saved.labels,
        label_kind=saved.label_kind,
    )
    # All that a classifier has beside its base was trained whole, poolers too.
    head = find_head(model, saved.task, [key for key, _ in model.named_parameters()])
    modules = [original.get_submodule(module) for module in head]
    targets = find_targets(original, "all-linear", head=modules, towers=list_towers(original))

    def compute_layer(layer: str) -> Tensor:
        after, before = (get_weight_matrix(get_layer(m, layer)) for m in (model, original))
        return after.detach().float() - before.detach().float()

    weights, before = dict(model.named_parameters()), dict(original.named_parameters())
    held = {f"{layer}.weight" for layer in targets} | {*targets}
    unheld = tuple(
        key
        for key, weight in weights.items()
        if key not in held and not is_within(key, head) and not weight.equal(before[key])
    )
    update = FullUpdate(
        shapes={layer: get_features(module) for layer, module in targets.items()},
        compute_layer=compute_layer,
        base=manifest.base.path,
        revision=manifest.base.revision,
        task=saved.task,
        head={key: weight.detach() for key, weight in weights.items() if is_within(key, head)},
        labels=saved.labels,
        problem_type=PROBLEM_TYPES[saved.label_kind],
        unheld=unheld,
    )
    return update, tuned
