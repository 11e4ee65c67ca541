"""Results that the trials of a search share, so that they are computed once.

The key of a result is the digest of all values that it depends on. A key of the spec that is not
known to be irrelevant counts as relevant: at worst a result is computed twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jobs.errors import AlreadyExists
from jobs.plan.plan import split_steps
from jobs.plan.stage_rates import get_stage_rate
from jobs.spec.schema import STRUCTURES, RunSpec
from jobs.store.runs.run_store import CHECKPOINT_STATE, CHECKPOINT_TENSORS, MASKS, RunStore
from jobs.train.request import AdapterRequest, TrainingRequest

FIRST_EVALUATION, SCORES, SPARSE_STAGE = "first_evaluation", "scores", "sparse_stage"
MAX_SCORE_BYTES = 1 << 30
"""Dense scores up to this size are shared; larger ones are computed again."""
REUSED_STAGE_FILE = "reused_stage.json"
"""File in the folder of a trial: the sparse stage of another trial that it continues from."""
LOW_RANK_KEYS = ("rank", "alpha", "rslora", "init", "handoff", "factor_density", "factor_pruning",
                 "factor_mask", "factor_storage")  # fmt: skip
"""Keys of the method that do not affect the sparse stage."""
NEUTRAL_CLUSTER_KEYS = ("max_failures", "max_crashes", "timeout", "machine", "workers")
"""Keys of the cluster that change no bit. The number of workers does; it has its own entry."""


@dataclass(frozen=True)
class SharingKeys:
    """The keys of the results that a trial shares; None if it shares none of the kind."""

    first_evaluation: str
    scores: str | None
    sparse_stage: str | None


def compute_sharing_keys(request: AdapterRequest) -> SharingKeys:
    """Return the keys of a trial."""
    spec, is_single = request.spec, isinstance(request, TrainingRequest)
    common = {
        "base": request.base_digest,
        "train": request.train_data.sha256,
        "eval": request.eval_data.sha256 if request.eval_data else None,
        "model": spec.model.model_dump(),
        "data": spec.data.model_dump(),
        "workers": spec.workers,
        "sharding": request.plan.sharding,
        # The seed determines the head of a classifier, the held-out rows, and their order.
        "seed": spec.train.seed,
    }
    batch = {"micro": request.plan.micro_batch_size, "batch": request.plan.batch_size}
    return SharingKeys(
        first_evaluation=_digest({**common, "micro": request.plan.micro_batch_size}),
        scores=_digest({**common, **batch, **_select_score_facts(spec)})
        if is_single and _has_scores(spec)
        else None,
        sparse_stage=_digest({**common, **batch, **_select_stage_facts(spec)})
        if is_single and _has_shareable_stage(spec)
        else None,
    )


def _has_scores(spec: RunSpec) -> bool:
    method = spec.method
    score = method.score if method.mask in STRUCTURES else method.mask
    return method.kind in ("slora", "sparse") and score != "random"


def _has_shareable_stage(spec: RunSpec) -> bool:
    return spec.method.kind == "slora" and spec.train.steps is not None


def _select_score_facts(spec: RunSpec) -> dict[str, Any]:
    method = spec.method
    score = method.score if method.mask in STRUCTURES else method.mask
    return {"by": score, "targets": method.targets, "batches": method.calibration_batches}


def _select_stage_facts(spec: RunSpec) -> dict[str, Any]:
    method, train = spec.method.model_dump(), spec.train.model_dump()
    cluster = spec.cluster.model_dump()
    for name in LOW_RANK_KEYS:
        method.pop(name)
    if spec.method.mask in STRUCTURES and spec.method.sizing == "rank":
        method["rank"] = spec.method.rank
    for name in ("learning_rate", "steps"):
        train.pop(name)
    # With sync_every above 1 workers also exchange before an evaluation or a checkpoint.
    if spec.cluster.sync_every == 1:
        del train["eval_every"], train["checkpoint_every"]
    train["sparse_learning_rate"] = get_stage_rate(spec.train, "sparse")
    method.pop("sparse_share")
    for name in NEUTRAL_CLUSTER_KEYS:
        cluster.pop(name)
    steps = split_steps(spec, spec.train.steps or 0)[0]
    return {"method": method, "train": train, "cluster": cluster, "steps": steps}


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def count_reused_tokens(runs: RunStore) -> int:
    """Return the tokens of a trial that another one has trained on."""
    if runs.store.head(runs.key(REUSED_STAGE_FILE)) is None:
        return 0
    return int(runs.read_json(REUSED_STAGE_FILE)["tokens"])


class SharedCache:
    """The shared results of a search, below `runs/<search>/shared/`."""

    def __init__(self, search: RunStore) -> None:
        self._search = search

    def has(self, kind: str, key: str | None) -> bool:
        """Return whether the result exists."""
        return key is not None and self._search.store.head(self._make_key(kind, key)) is not None

    def put(self, kind: str, key: str, value: bytes) -> None:
        """Store a result, unless another trial has stored it."""
        try:
            self._search.store.put(self._make_key(kind, key), value, create_only=True)
        except AlreadyExists:
            return

    def get(self, kind: str, key: str) -> bytes:
        """Return a result. Raise NotInStore."""
        return self._search.store.get(self._make_key(kind, key))

    def put_stage(self, key: str, runs: RunStore, step: int, tokens: int) -> None:
        """Store the checkpoint at the end of a sparse stage, its pointer last."""
        # The parts have the name of the trial, so that those of two trials are never mixed.
        parts_key = f"{key}-{runs.run_id}"
        for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE):
            self.put(
                f"{SPARSE_STAGE}/{name}", parts_key, runs.store.get(runs.checkpoint_key(step, name))
            )
        if runs.store.head(runs.key(MASKS)) is not None:
            self.put(f"{SPARSE_STAGE}/{MASKS}", parts_key, runs.store.get(runs.key(MASKS)))
        pointer = {"parts": parts_key, "step": step, "tokens": tokens}
        self.put(SPARSE_STAGE, key, json.dumps(pointer).encode())

    def restore_stage(self, key: str, runs: RunStore) -> int:
        """Copy the checkpoint into a trial that has none, and return its step."""
        pointer = json.loads(self.get(SPARSE_STAGE, key))
        parts_key, step = str(pointer["parts"]), int(pointer["step"])
        runs.write_json(REUSED_STAGE_FILE, pointer)
        if self.has(f"{SPARSE_STAGE}/{MASKS}", parts_key):
            runs.store.put(runs.key(MASKS), self.get(f"{SPARSE_STAGE}/{MASKS}", parts_key))
        for name in (CHECKPOINT_TENSORS, CHECKPOINT_STATE):
            runs.store.put(
                runs.checkpoint_key(step, name), self.get(f"{SPARSE_STAGE}/{name}", parts_key)
            )
        return step

    def _make_key(self, kind: str, key: str) -> str:
        return self._search.key(f"shared/{kind}/{key}")
