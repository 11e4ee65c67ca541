"""Check that training can continue from an adapter and report all mismatches at once. No torch.

Only the manifest, the adapter's small JSON files and the headers of its tensors are read. Before
that, `jobs.store.adapters.verify` compares every file with its digest, and so does each worker.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import Fault
from jobs.inspect.base_digest import find_base_change
from jobs.plan.preflight import ValidatedRun
from jobs.spec.tasks import get_label_kind
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.adapters.safetensors_header import BadTensors, read_header
from jobs.store.base import ObjectStore
from slora.formats.peft_keys import read_layer_shapes
from slora.formats.peft_tasks import TASK_TYPES, parse_labels
from slora.layers.shapes import LayerShape

START_KEY = "retrain.start"
SCRATCH_HINT = "Or use retrain.start: scratch."
MAX_JSON_BYTES = 64 << 20
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPARSE_CONFIG, LABELS = "sparse_config.json", "labels.json"
TASKS = {peft_name: task for task, peft_name in TASK_TYPES.items()}
LOW_RANK_KINDS = ("lora", "slora")

Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class _AdapterFacts:
    """Describe an adapter as its files do."""

    task: str
    labels: tuple[str, ...]
    label_kind: str = "one"
    rank: int | None = None
    layers: Shapes | None = None
    """[out, in] by name; None for a full model."""
    is_low_rank: bool = True
    """False if there are sparse values."""
    factor_mask: Mapping[str, Any] | None = None
    """Rule of the masks outside which its factors are zero; None without such masks."""


def find_start_faults(
    store: ObjectStore, manifest: Manifest, validated_run: ValidatedRun, base_digest: str
) -> list[Fault]:
    """Return why the run can't continue from the adapter, or an empty list. Raise StoreError."""
    faults = [*_check_kind(manifest, validated_run)]
    folder = validated_run.model.folder
    if manifest.base.digest != base_digest and (change := find_base_change(manifest.base, folder)):
        problem = f"{manifest.label} was trained on another base than {folder}: {change}"
        faults.append(Fault("model.path", problem, f"Set it to that base. {SCRATCH_HINT}"))
    if faults:
        # Its files can only be read as expected if its kind matches.
        return faults
    try:
        facts = _read_facts(store, manifest)
    except (BadTensors, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"cannot read the files of {manifest.label}: {str(error)[:200]!a}"
        return [Fault(START_KEY, problem, "Use retrain.start: scratch.")]
    return [
        *_check_form(manifest, facts),
        *_check_data(manifest, facts, validated_run),
        *_check_layers(manifest, facts, validated_run),
        *_check_rank(manifest, facts, validated_run),
        *_check_storage(manifest, facts, validated_run),
        *_check_masks(manifest, validated_run),
    ]


def _check_kind(manifest: Manifest, validated_run: ValidatedRun) -> Iterator[Fault]:
    kind = validated_run.spec.method.kind
    low_rank = kind in LOW_RANK_KINDS and manifest.kind in LOW_RANK_KINDS
    if not low_rank and kind != manifest.kind:
        problem = f"{kind} cannot continue from {manifest.label}, whose kind is {manifest.kind}"
        yield Fault("method.kind", problem, f"Use {manifest.kind}. {SCRATCH_HINT}")


def _check_form(manifest: Manifest, facts: _AdapterFacts) -> Iterator[Fault]:
    if manifest.kind in LOW_RANK_KINDS and not facts.is_low_rank:
        problem = (
            f"{manifest.label} is not a plain LoRA: it has sparse values beside its factors "
            "(handoff.residual)"
        )
        remedy = (
            "Training cannot continue from those; `slora adapters export` converts it to a LoRA."
        )
        yield Fault(START_KEY, problem, f"{remedy} {SCRATCH_HINT}")


def _check_data(
    manifest: Manifest, facts: _AdapterFacts, validated_run: ValidatedRun
) -> Iterator[Fault]:
    task, labels = validated_run.spec.model.task, validated_run.plan.labels
    if facts.task != task:
        problem = f"the spec says {task}, but {manifest.label} was trained for {facts.task}"
        yield Fault("model.task", problem, f"Use {facts.task}. {SCRATCH_HINT}")
    elif task == "sequence-classification" and facts.label_kind != (
        kind := validated_run.spec.data.labels
    ):
        problem = f"the spec says {kind}, but {manifest.label} was trained for {facts.label_kind}"
        yield Fault("data.labels", problem, f"Use {facts.label_kind}. {SCRATCH_HINT}")
    elif task == "sequence-classification" and facts.labels != labels:
        new = [label for label in labels if label not in facts.labels]
        removed = [label for label in facts.labels if label not in labels]
        differences = [
            f"{change}: {', '.join(map(repr, names[:8]))}"
            for change, names in (("new", new), ("missing", removed))
            if names
        ]
        problem = f"its labels differ from those of {manifest.label}"
        problem += f" ({'; '.join(differences) or 'in their order'})"
        yield Fault("data.train", problem, "Use retrain.start: scratch, which trains a new head.")


def _check_layers(
    manifest: Manifest, facts: _AdapterFacts, validated_run: ValidatedRun
) -> Iterator[Fault]:
    if facts.layers is None:
        return
    linears = validated_run.model.linears
    targets = {name: linears[name] for name in validated_run.plan.targets if name in linears}
    unmatched = {
        f"adapted only in {manifest.label}": [name for name in facts.layers if name not in targets],
        "adapted only in this spec": [name for name in targets if name not in facts.layers],
    }
    for side, names in unmatched.items():
        if names:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
            remedy = f"Use the targets it was trained on. {SCRATCH_HINT}"
            yield Fault("method.targets", f"{names[0]}{rest}: {side}", remedy)
    for name, shape in facts.layers.items():
        if name in targets and targets[name] != shape:
            problem = (
                f"{name} has shape {targets[name]} in the base, but {shape} in {manifest.label}"
            )
            yield Fault("model.path", problem, SCRATCH_HINT)


def _check_rank(
    manifest: Manifest, facts: _AdapterFacts, validated_run: ValidatedRun
) -> Iterator[Fault]:
    rank = validated_run.spec.method.rank
    if facts.rank is not None and facts.rank != rank:
        problem = (
            f"the spec says {rank}, but the factors of {manifest.label} have rank {facts.rank}"
        )
        yield Fault("method.rank", problem, f"Use {facts.rank}. {SCRATCH_HINT}")


def _check_storage(
    manifest: Manifest, facts: _AdapterFacts, validated_run: ValidatedRun
) -> Iterator[Fault]:
    """Check that compact factors start from factors that are zero outside the same masks."""
    method, seed = validated_run.spec.method, validated_run.spec.train.seed
    rule = {"kind": method.factor_mask, "density": method.factor_density, "seed": seed}
    if method.factor_storage == "compact" and facts.factor_mask != rule:
        problem = f"the factors of {manifest.label} are not zero outside the masks of this spec"
        yield Fault("method.factor_storage", problem, f"Use peft. {SCRATCH_HINT}")


def _check_masks(manifest: Manifest, validated_run: ValidatedRun) -> Iterator[Fault]:
    """Compare the masks: training keeps those of the adapter, so the spec must ask for the same."""
    if validated_run.spec.method.kind != "sparse" or manifest.mask is None:
        return
    method, mask = validated_run.spec.method, manifest.mask
    pairs = [("method.mask", method.mask, mask.strategy),
             ("method.density", method.density, mask.density)]  # fmt: skip
    if mask.strategy == "random":
        pairs.append(("train.seed", validated_run.spec.train.seed, mask.seed))
    for key, requested, recorded in pairs:
        if requested != recorded:
            problem = f"the spec says {requested}, but {manifest.label} has masks of {recorded}"
            yield Fault(key, problem, f"Use {recorded}. {SCRATCH_HINT}")


def _read_facts(store: ObjectStore, manifest: Manifest) -> _AdapterFacts:
    files = {file.name: file for file in manifest.files}
    names, problem_type = parse_labels(
        _read_json(store, manifest, LABELS) if LABELS in files else []
    )
    labels = names, get_label_kind(problem_type)
    if manifest.kind == "full":
        return _read_full_model_facts(_read_json(store, manifest, "config.json"))
    if detect_form(manifest) == "peft":
        config = _read_json(store, manifest, PEFT_CONFIG)
        with store.open(manifest.prefix + PEFT_WEIGHTS) as stream:
            spans = read_header(stream, size=files[PEFT_WEIGHTS].size)
        layers = read_layer_shapes({name: span.shape for name, span in spans.items()}, config)
        return _AdapterFacts(TASKS[config["task_type"]], *labels, int(config["r"]), layers)
    config = _read_json(store, manifest, SPARSE_CONFIG)
    shapes = {
        str(name): LayerShape(int(rows), int(columns), int(experts))
        for name, rows, columns, experts in config["layers"]
    }
    is_low_rank = not config["values"]
    rank = int(config["rank"]) if is_low_rank else None
    task, factor_mask = TASKS[config["task_type"]], config.get("factor_mask")
    return _AdapterFacts(task, *labels, rank, shapes, is_low_rank, factor_mask)


def _read_full_model_facts(config: Mapping[str, Any]) -> _AdapterFacts:
    architectures = map(str, config["architectures"])
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        is_pair = bool(config.get("is_encoder_decoder"))
        return _AdapterFacts("seq2seq" if is_pair else "causal-lm", ())
    labels = {int(number): str(label) for number, label in config["id2label"].items()}
    ordered = tuple(labels[number] for number in sorted(labels))
    kind = get_label_kind(str(config.get("problem_type")))
    return _AdapterFacts("sequence-classification", ordered, kind)


def _read_json(store: ObjectStore, manifest: Manifest, name: str) -> Any:
    file = next(file for file in manifest.files if file.name == name)
    data = store.read(manifest.prefix + name, 0, MAX_JSON_BYTES)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise ValueError(f"{name} does not match its digest in the manifest")
    return json.loads(data)
