"""What an adapter can be served by, and whether a server takes it: base, form and rank."""

from __future__ import annotations

from jobs.errors import Fault
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.adapters.serving_options import find_obstacle, read_adapter_config
from jobs.store.base import ObjectStore
from orchestrator.deployments.rollout_decision import SPARSE
from orchestrator.deployments.serving_target import TargetState

LORA = "lora"
PEFT_CONFIG, SPARSE_CONFIG = "adapter_config.json", "sparse_config.json"
GENERATING_TASKS = (None, "CAUSAL_LM")


def get_served_form(manifest: Manifest) -> str:
    """Return the form of an adapter at a server: lora, sparse, or another that none serves."""
    form = detect_form(manifest)
    if form == "peft":
        return LORA
    # Values with factors beside them, and compact factors, are compact too.
    names = {file.name for file in manifest.files}
    return SPARSE if manifest.kind == "sparse" and SPARSE_CONFIG in names else form


def find_target_faults(
    store: ObjectStore, manifest: Manifest, target: TargetState, endpoint: str
) -> list[Fault]:
    """Return why this server can't serve this adapter. Nothing is sent to it."""
    return [
        *_check_base(manifest, target, endpoint),
        *_check_form(manifest, target, endpoint),
        *_check_config(store, manifest, target, endpoint),
    ]


def _check_base(manifest: Manifest, target: TargetState, endpoint: str) -> list[Fault]:
    key = f"{manifest.label}.base"
    if target.base_digest is None:
        problem = f"the endpoint {endpoint} does not tell the digest of its base model"
        remedy = (
            "Install slora in the server's environment, or set serving.NAME.base_digest to that "
            "of the model that it serves."
        )
        return [Fault(key, problem, remedy)]
    if target.base_digest == manifest.base.digest:
        return []
    problem = (
        f"it was trained on {manifest.base.path[:200]} ({manifest.base.digest[:12]}), but the "
        f"endpoint {endpoint} serves the base {target.base_digest[:12]}"
    )
    remedy = "Deploy it to a server of its base, or train it on the base that is served."
    return [Fault(key, problem, remedy)]


def _check_form(manifest: Manifest, target: TargetState, endpoint: str) -> list[Fault]:
    form = get_served_form(manifest)
    if form in target.forms:
        return []
    served = ", ".join(sorted(target.forms)) or "no adapters"
    if form == "model":
        problem = "it is a whole model, which no server loads as an adapter"
        remedy = "Start a server of its own on the merged model: slora adapters merge."
    else:
        problem = f"its form is {form}, but the endpoint {endpoint} serves {served}"
        remedy = f"Export it to a LoRA: slora adapters export {manifest.label} FOLDER --as peft."
    if form == SPARSE:
        remedy += " Or install slora in the server's environment, which serves sparse adapters."
    return [Fault(f"{manifest.label}.form", problem, remedy)]


def _check_config(
    store: ObjectStore, manifest: Manifest, target: TargetState, endpoint: str
) -> list[Fault]:
    if get_served_form(manifest) != LORA:
        return []
    config = read_adapter_config(store, manifest)
    task, rank = config.get("task_type"), config.get("r")
    if task not in GENERATING_TASKS:
        problem = f"its task is {task!a}, and inference servers generate text"
        remedy = "Use it with transformers and peft, as docs/concepts/adapters.md shows."
        return [Fault(f"{manifest.label}.task", problem, remedy)]
    if (obstacle := find_obstacle(config)) is not None:
        problem = f"{obstacle}, which inference servers do not read in a LoRA"
        remedy = f"Serve it merged, on a server of its own: slora adapters merge {manifest.label}."
        return [Fault(f"{manifest.label}.form", problem, remedy)]
    if target.max_rank is not None and isinstance(rank, int) and rank > target.max_rank:
        problem = f"its rank is {rank}, but the endpoint {endpoint} serves up to {target.max_rank}"
        remedy = f"Restart the server with --max-lora-rank {rank}, or export a smaller rank."
        return [Fault(f"{manifest.label}.rank", problem, remedy)]
    return []
