"""Small estimate inputs whose results can be counted by hand, and ways to change them."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.plan.estimate.base_tensors import BaseFacts, Widths
from jobs.plan.estimate.inputs import (
    Batching,
    EstimateInput,
    LocalStepFacts,
    MethodFacts,
    Resources,
    StageFacts,
)

SIZES = {
    "model.embed_tokens.weight": 400,
    "model.layers.0.q_proj.weight": 64,
    "model.layers.0.up_proj.weight": 128,
    "model.norm.weight": 9,
    "lm_head.weight": 400,
}
"""1,001 numbers: no number of workers but 7, 11 and 13 divides them."""
WIDTHS = Widths(
    hidden=8, layers=1, inner=16, heads_width=8, head_count=2, vocab=50, gated=True, rms=True
)
TARGETS = {"model.layers.0.q_proj": (8, 8), "model.layers.0.up_proj": (16, 8)}
MASKS = {"model.layers.0.q_proj": 6, "model.layers.0.up_proj": 13}
SPARSE, LOW_RANK = 19, 2 * (16 + 24)


def make_base(**changes: Any) -> BaseFacts:
    base_facts = BaseFacts(SIZES, frozenset({"model.embed_tokens.weight"}), False, WIDTHS, 4004)
    return dataclasses.replace(base_facts, **changes)


def make_inputs(
    *, workers: int = 4, per_node: int = 2, kind: str = "slora", **changes: Any
) -> EstimateInput:
    """4 workers on 2 machines, on CPUs; every field can be changed by its name."""
    inputs = EstimateInput(
        base=make_base(),
        method=MethodFacts(
            kind=kind,
            targets=TARGETS if kind != "full" else {},
            mask_entries=MASKS if kind in ("slora", "sparse") else {},
            rank=2,
            keeps_inputs=True,
            keeps_residual=False,
            scored=False,
            broadcast_starts=False,
        ),
        stages=STAGES[kind],
        resources=Resources(
            workers, per_node, cpu=True, memory=10**12, memory_source="of the test"
        ),
        batching=Batching(sequences=8, micro=1, accumulation=2, length=10),
        dtype_bytes=4,
        exchange_bytes=4,
        local=LocalStepFacts(),
        classifies=False,
        holds_masks=True,
    )
    fields: dict[str, Any] = {
        name: dataclasses.replace(getattr(inputs, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in changes.items()
    }
    return dataclasses.replace(inputs, **fields)


STAGES = {
    "slora": (StageFacts("sparse", 6, SPARSE), StageFacts("low-rank", 14, LOW_RANK)),
    "sparse": (StageFacts("sparse", 20, SPARSE),),
    "lora": (StageFacts("low-rank", 20, LOW_RANK),),
    "full": (StageFacts("full", 20, 1001),),
}
