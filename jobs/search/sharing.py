"""What trials of a search have in common, so that it is done once: keys, and where it lies.

A key is the digest of all that the thing depends on. A key of the spec that nobody thought of
counts as one that matters: at worst a thing is done twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from jobs.errors import AlreadyThere
from jobs.plan import split_steps
from jobs.request import Request
from jobs.spec import STRUCTURES, Spec
from jobs.store.runs import MASKS, STATE, TENSORS, RunStore

FIRST, SCORES, STAGE = "first evaluation", "scores", "sparse stage"
MOST_SCORES = 1 << 30
"""Bytes of dense scores that are kept for other trials; above it they are computed again."""
TAKEN = "taken.json"
"""In a trial's folder: which sparse stage of another one it goes on from."""
AFTER = ("rank", "alpha", "rslora", "init", "handoff", "factor_density", "factor_pruning")
"""Keys of the method that the sparse stage knows nothing of."""
ELSEWHERE = ("max_failures", "max_crashes", "timeout", "machine", "workers")
"""Keys of the cluster that change no bit; the workers do, and are counted apart."""


@dataclass(frozen=True)
class Keys:
    """Under what a trial finds what it shares; None where it shares nothing of the kind."""

    first: str
    scores: str | None
    stage: str | None


def keys_of(request: Request) -> Keys:
    """A trial's keys."""
    spec, alone = request.spec, request.federation is None
    common = {
        "base": request.base_digest,
        "train": request.train.sha256,
        "eval": request.evaluation.sha256 if request.evaluation else None,
        "model": spec.model.model_dump(),
        "data": spec.data.model_dump(),
        "workers": spec.workers,
        "sharding": request.plan.sharding,
        # It draws a classifier's head, the rows that are held out, and their order.
        "seed": spec.train.seed,
    }
    batch = {"micro": request.plan.micro_batch_size, "batch": request.plan.batch_size}
    return Keys(
        first=_digest({**common, "micro": request.plan.micro_batch_size}),
        scores=_digest({**common, **batch, **_calibration(spec)})
        if alone and _scored(spec)
        else None,
        stage=_digest({**common, **batch, **_sparse_stage(spec)})
        if alone and _staged(spec)
        else None,
    )


def _scored(spec: Spec) -> bool:
    method = spec.method
    by = method.score if method.mask in STRUCTURES else method.mask
    return method.kind in ("slora", "sparse") and by != "random"


def _staged(spec: Spec) -> bool:
    return spec.method.kind == "slora" and spec.train.steps is not None


def _calibration(spec: Spec) -> dict[str, Any]:
    method = spec.method
    by = method.score if method.mask in STRUCTURES else method.mask
    return {"by": by, "targets": method.targets, "batches": method.calibration_batches}


def _sparse_stage(spec: Spec) -> dict[str, Any]:
    method, train = spec.method.model_dump(), spec.train.model_dump()
    cluster = spec.cluster.model_dump()
    for name in AFTER:
        method.pop(name)
    if spec.method.mask in STRUCTURES and spec.method.sizing == "rank":
        method["rank"] = spec.method.rank
    for name in ("learning_rate", "steps"):
        train.pop(name)
    # Workers that step alone exchange where they are measured or saved, too.
    if spec.cluster.sync_every == 1:
        del train["eval_every"], train["checkpoint_every"]
    train["sparse_learning_rate"] = spec.train.sparse_learning_rate or spec.train.learning_rate
    method.pop("sparse_share")
    for name in ELSEWHERE:
        cluster.pop(name)
    steps = split_steps(spec, spec.train.steps or 0)[0]
    return {"method": method, "train": train, "cluster": cluster, "steps": steps}


def _digest(facts: Any) -> str:
    plain = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(plain.encode()).hexdigest()[:24]


def tokens_taken(runs: RunStore) -> int:
    """Of a trial's tokens, those that it did not train on itself."""
    if runs.store.head(runs.key(TAKEN)) is None:
        return 0
    return int(runs.read_json(TAKEN)["tokens"])


class Shelf:
    """Where a search keeps what its trials share: below `runs/<search>/shared/`."""

    def __init__(self, search: RunStore) -> None:
        self._search = search

    def has(self, kind: str, key: str | None) -> bool:
        """Whether it is there, whole."""
        return key is not None and self._search.store.head(self._key(kind, key)) is not None

    def put(self, kind: str, key: str, value: bytes) -> None:
        """Keeps it, if nobody did so first."""
        try:
            self._search.store.put(self._key(kind, key), value, create_only=True)
        except AlreadyThere:
            return

    def get(self, kind: str, key: str) -> bytes:
        """What was kept. Raises NotFound."""
        return self._search.store.get(self._key(kind, key))

    def put_stage(self, key: str, runs: RunStore, step: int, tokens: int) -> None:
        """Keeps the checkpoint at the end of a trial's sparse stage; what names it, last."""
        # Under the trial's name: of two that end at once, no parts of both.
        own = f"{key}-{runs.run_id}"
        for name in (TENSORS, STATE):
            self.put(f"{STAGE}/{name}", own, runs.store.get(runs.checkpoint_key(step, name)))
        if runs.store.head(runs.key(MASKS)) is not None:
            self.put(f"{STAGE}/{MASKS}", own, runs.store.get(runs.key(MASKS)))
        named = {"parts": own, "step": step, "tokens": tokens}
        self.put(STAGE, key, json.dumps(named).encode())

    def take_stage(self, key: str, runs: RunStore) -> int:
        """Gives the checkpoint to a trial that has none of its own. Returns its step."""
        named = json.loads(self.get(STAGE, key))
        own, step = str(named["parts"]), int(named["step"])
        runs.write_json(TAKEN, named)
        if self.has(f"{STAGE}/{MASKS}", own):
            runs.store.put(runs.key(MASKS), self.get(f"{STAGE}/{MASKS}", own))
        for name in (TENSORS, STATE):
            runs.store.put(runs.checkpoint_key(step, name), self.get(f"{STAGE}/{name}", own))
        return step

    def _key(self, kind: str, key: str) -> str:
        return self._search.key(f"shared/{kind.replace(' ', '-')}/{key}")
