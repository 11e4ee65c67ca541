"""Whether a training can go on from an adapter: all that does not fit, told together. No torch.

Read are the manifest, the adapter's small JSON files and the headers of its tensors; the bytes of
all are compared with their digests by `jobs.store.verify` before, and by each worker again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault
from jobs.preflight import Checked
from jobs.store.manifest import Manifest, form
from jobs.store.objects import ObjectStore
from jobs.store.tensors import BadTensors, read_header

START = "retrain.start"
SCRATCH = "Or use retrain.start: scratch."
LARGEST_JSON = 64 << 20
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPARSE_CONFIG, LABELS = "sparse_config.json", "labels.json"
TASKS = {"CAUSAL_LM": "causal-lm", "SEQ_CLS": "sequence-classification"}
A_RI, B_OR = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."
LOW_RANK = ("lora", "slora")

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class _Said:
    """What an adapter's files say it is."""

    task: str
    labels: tuple[str, ...]
    rank: int | None = None
    layers: Shapes | None = None
    """[out, in] by name; None for a whole model."""


def start_faults(
    store: ObjectStore, manifest: Manifest, checked: Checked, base_digest: str
) -> list[Fault]:
    """Why `checked` can't go on from the adapter; nothing where it can. Raises StoreError."""
    faults = [*_kind_faults(manifest, checked)]
    if manifest.base.digest != base_digest:
        problem = (
            f"{manifest.label} was trained on another base: digest {manifest.base.digest[:12]}, "
            f"{checked.model.folder} has {base_digest[:12]}"
        )
        faults.append(Fault("model.path", problem, f"Name that base. {SCRATCH}"))
    if faults:
        # What is in its files is told only where they are of the kind that is looked for.
        return faults
    try:
        said = _said(store, manifest)
    except (BadTensors, ValueError, KeyError, TypeError, AttributeError) as wrong:
        problem = f"the files of {manifest.label} can't be read: {str(wrong)[:200]!a}"
        return [Fault(START, problem, SCRATCH)]
    return [
        *_data_faults(manifest, said, checked),
        *_layer_faults(manifest, said, checked),
        *_rank_faults(manifest, said, checked),
        *_mask_faults(manifest, checked),
    ]


def _kind_faults(manifest: Manifest, checked: Checked) -> Iterator[Fault]:
    kind = checked.spec.method.kind
    low_rank = kind in LOW_RANK and manifest.kind in LOW_RANK
    if not low_rank and kind != manifest.kind:
        problem = f"{kind} can't go on from {manifest.label}, which is of kind {manifest.kind}"
        yield Fault("method.kind", problem, f"Use {manifest.kind}. {SCRATCH}")
    elif low_rank and form(manifest) != "peft":
        problem = (
            f"{manifest.label} is no plain LoRA: it has values beside its factors "
            "(handoff.residual), or factors with zeros of their own (factor_density)"
        )
        remedy = "Those can't be gone on from: `slora adapters export` makes a LoRA to look at."
        yield Fault(START, problem, f"{remedy} {SCRATCH}")


def _data_faults(manifest: Manifest, said: _Said, checked: Checked) -> Iterator[Fault]:
    task, labels = checked.spec.model.task, checked.train.labels
    if said.task != task:
        problem = f"{task}, while {manifest.label} was trained for {said.task}"
        yield Fault("model.task", problem, f"Use that. {SCRATCH}")
    elif task == "sequence-classification" and said.labels != labels:
        new = [label for label in labels if label not in said.labels]
        gone = [label for label in said.labels if label not in labels]
        differ = [f"{', '.join(map(repr, names[:8]))} {what}"
                  for names, what in ((new, "are new"), (gone, "are gone")) if names]  # fmt: skip
        problem = f"other labels than {manifest.label} knows: {'; '.join(differ) or 'their order'}"
        yield Fault("data.train", problem, "Use retrain.start: scratch: its head has no place.")


def _layer_faults(manifest: Manifest, said: _Said, checked: Checked) -> Iterator[Fault]:
    if said.layers is None:
        return
    linears = checked.model.linears
    wanted = {name: linears[name] for name in checked.plan.targets if name in linears}
    only = {
        f"only in {manifest.label}": [name for name in said.layers if name not in wanted],
        "only among the targets": [name for name in wanted if name not in said.layers],
    }
    for where, names in only.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            problem = f"{names[0]}{more}: {where}"
            yield Fault("method.targets", problem, f"Use the targets it was trained on. {SCRATCH}")
    for name, shape in said.layers.items():
        if name in wanted and wanted[name] != shape:
            problem = f"{name} is {wanted[name]} in the base, {shape} in {manifest.label}"
            yield Fault("model.path", problem, SCRATCH)


def _rank_faults(manifest: Manifest, said: _Said, checked: Checked) -> Iterator[Fault]:
    asked = checked.spec.method.rank
    if said.rank is not None and said.rank != asked:
        problem = f"{asked}, while the factors of {manifest.label} have {said.rank}"
        yield Fault("method.rank", problem, f"Use {said.rank}. {SCRATCH}")


def _mask_faults(manifest: Manifest, checked: Checked) -> Iterator[Fault]:
    """Values lie on masks: those of the adapter are taken, and the spec must not say others."""
    if checked.spec.method.kind != "sparse" or manifest.mask is None:
        return
    method, mask = checked.spec.method, manifest.mask
    pairs = [("method.mask", method.mask, mask.strategy),
             ("method.density", method.density, mask.density)]  # fmt: skip
    if mask.strategy == "random":
        pairs.append(("train.seed", checked.spec.train.seed, mask.seed))
    for key, asked, found in pairs:
        if asked != found:
            problem = f"{asked}, while the masks of {manifest.label} were made with {found}"
            yield Fault(key, problem, f"Use {found}. {SCRATCH}")


def _said(store: ObjectStore, manifest: Manifest) -> _Said:
    files = {file.name: file for file in manifest.files}
    labels = tuple(map(str, _json(store, manifest, LABELS))) if LABELS in files else ()
    if manifest.kind == "full":
        return _whole(_json(store, manifest, "config.json"))
    if form(manifest) == "peft":
        config = _json(store, manifest, PEFT_CONFIG)
        with store.open(manifest.prefix + PEFT_WEIGHTS) as stream:
            spans = read_header(stream, size=files[PEFT_WEIGHTS].size)
        layers = _lora_layers({name: span.shape for name, span in spans.items()})
        return _Said(TASKS[config["task_type"]], labels, int(config["r"]), layers)
    config = _json(store, manifest, SPARSE_CONFIG)
    shapes = {str(n): (int(s[0]), int(s[1])) for n, s in config["shapes"].items()}
    return _Said(TASKS[config["task_type"]], labels, None, shapes)


def _whole(config: Mapping[str, Any]) -> _Said:
    if any(str(n).endswith("ForSequenceClassification") for n in config["architectures"]):
        named = {int(number): str(label) for number, label in config["id2label"].items()}
        return _Said("sequence-classification", tuple(named[number] for number in sorted(named)))
    return _Said("causal-lm", ())


def _lora_layers(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    found: Shapes = {}
    for key, shape in shapes.items():
        if key.endswith(A_RI):
            other = shapes[key.removesuffix(A_RI) + B_OR]
            found[key.removeprefix(PREFIX).removesuffix(A_RI)] = (other[0], shape[1])
    return found


def _json(store: ObjectStore, manifest: Manifest, name: str) -> Any:
    file = next(file for file in manifest.files if file.name == name)
    data = store.read(manifest.prefix + name, 0, LARGEST_JSON)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ValueError(f"{name} has not the digest that the manifest names")
    return json.loads(data)
