"""From a spec, and what was learnt of its model and machines, to the question and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.predict.base import Base
from jobs.predict.files import adapter_bytes
from jobs.predict.machine import place_of
from jobs.predict.prediction import Prediction, predict
from jobs.predict.question import Batching, Local, Method, Question, Stage
from jobs.predict.speed import Speed
from jobs.spec import MethodSection, Spec
from slora.sizes import STRUCTURES

BYTES = {"float32": 4, "bfloat16": 2}
NEEDS_NO_DATA = ("random", "magnitude")
"""Scores that no calibration batch is run for."""
NARROW = ("columns", "blocks")
"""Masks whose layers keep a few columns of their input for the backward, and not all of it."""
Targets = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Outlook:
    """What the check learnt that a prediction needs beside the spec."""

    base: Base
    head: int
    eval_rows: int | None = None
    """Held-out rows, where they have been counted."""
    speed: Speed | None = None
    memory_here: int | None = None
    """Bytes of this machine; looked up where not given."""


def foresee(
    spec: Spec,
    outlook: Outlook,
    *,
    targets: Targets,
    entries: Mapping[str, int],
    stages: tuple[Stage, ...],
    micro: int,
    accumulation: int,
) -> Prediction:
    """The prediction for this spec. `entries` are those of the masks, by target."""
    asked = Question(
        base=outlook.base,
        method=_method(spec.method, targets, entries, head=outlook.head),
        stages=stages,
        place=place_of(spec, here=outlook.memory_here),
        batching=_batching(spec, outlook.eval_rows, micro, accumulation),
        dtype_bytes=BYTES[spec.model.dtype],
        exchange_bytes=BYTES[spec.cluster.exchange_dtype],
        local=Local(
            every=spec.cluster.sync_every,
            momentum=spec.cluster.outer == "nesterov",
            products=spec.cluster.average == "product",
        ),
        classifies=spec.model.task == "sequence-classification",
    )
    adapter = adapter_bytes(
        spec.method,
        targets,
        entries,
        head=outlook.head,
        whole=(outlook.base.parameters + outlook.head) * asked.dtype_bytes,
    )
    return predict(asked, spec.cluster.sharding, adapter=adapter, speed=outlook.speed)


def counted_exactly(method: MethodSection) -> bool:
    """Whether the entries of the masks are known before their scores are."""
    return method.allocation == "uniform" or method.mask not in STRUCTURES


def _method(
    method: MethodSection, targets: Targets, entries: Mapping[str, int], *, head: int
) -> Method:
    by = method.score if method.mask in STRUCTURES else method.mask
    scored = bool(entries) and by not in NEEDS_NO_DATA
    starts = method.kind == "lora" and method.init != "zero"
    return Method(
        kind=method.kind,
        targets=targets,
        mask_entries=entries,
        rank=method.rank,
        inputs=method.mask not in NARROW,
        keeps_residual=method.handoff.residual != "drop",
        scored=scored or (starts and method.init == "lora-ga"),
        broadcast_starts=starts,
        head=head,
    )


def _batching(spec: Spec, eval_rows: int | None, micro: int, accumulation: int) -> Batching:
    train, workers = spec.train, spec.workers
    return Batching(
        sequences=train.batch_size,
        micro=micro,
        accumulation=accumulation,
        length=spec.data.max_length,
        evaluates=spec.data.eval is not None or spec.data.eval_fraction is not None,
        eval_micros=None if eval_rows is None else -(-eval_rows // (micro * workers)),
        eval_every=train.eval_every,
        checkpoint_every=train.checkpoint_every,
    )
