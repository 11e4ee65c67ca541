"""What is compared: the arms of each candidate, the first one as the product does it. Plain values.

All arms but those of `weighting` train MiniLM and a new head on the newsgroups, in steps of 16
texts of 32 tokens, as many numbers as a LoRA of rank 4 has, the head at HEAD_RATE.

    lift       a mask of the largest entries of the rank-reduced weight: 120 steps of the product's
               loop
    joint      sparse values and factors trained together for 80 steps, half of the numbers each
               (RoSA), beside 40 steps of each, the values kept (`residual: keep`), and 80 steps of
               values alone
    penalty    a pull of the sparse values towards what the rank can hold: 40 steps, the hand-off to
               rank 4, and 40 low-rank steps
    ranks      the same without a pull; as many numbers as rank 4 has in every layer, but spread by
               the energy of the outputs
    weighting  the weights of clients in the mean of a federation

The candidates have the larger grids, so a candidate that loses has not lost by its rate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tests.benchmarks.paper.plan import SIZES, Part
from tests.benchmarks.quality.corpora import CORPORA, RANK, Corpus

Point = Mapping[str, float]
"""What a grid varies: `adapter` (the rate of the values or the factors), `sparse`, `pull`."""
STEPS, SPARSE_STEPS, LOW_RANK_STEPS = 120, 40, 40
CORPUS = replace(
    CORPORA["newsgroups"], steps=STEPS, eval_every=STEPS, batch_size=16, max_length=32,
    validation_rows=400, test_rows=1000,
)  # fmt: skip
TWO_STAGES = replace(CORPUS, steps=SPARSE_STEPS + LOW_RANK_STEPS)
PART = replace(SIZES["small"]["newsgroups"], eval_every=12, dtype="bfloat16")
"""20 clients of a Dirichlet split at 0.1, 5 a round, 24 rounds of 4 steps of 8 x 32 tokens."""
HEAD_RATE = 1e-2
"""The product's, for a new head of this width."""
SPARSE_RATE = 2e-2
"""Of the sparse stage before a hand-off: the best of the first readings."""
SCALE = 2.0
"""alpha / rank."""
Trainer = Literal["engine", "stages", "federation"]
DATA: Mapping[Trainer, Corpus | Part] = {
    "engine": CORPUS, "stages": TWO_STAGES, "federation": PART,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way to train, and the points at which it is tried on the first seed."""

    name: str
    trainer: Trainer
    """engine: the product's loop; stages: a plain loop around its layers; federation: its own."""
    options: Mapping[str, Any]
    points: tuple[Point, ...] = ()
    like: str | None = None
    """Run at the best point of that arm instead."""

    def make_key(self, point: Point, seed: int) -> str:
        """Return a digest of what a training's result depends on."""
        facts = {
            "data": asdict(DATA[self.trainer]),
            "trainer": self.trainer, "options": dict(self.options), "point": dict(point),
            "seed": seed,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Candidate:
    """The arms that are compared; the first are the product's, the others it lacks."""

    name: str
    product: tuple[str, ...]
    others: tuple[str, ...] = field(default=())

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the names of all arms."""
        return (*self.product, *self.others)


def _make_grid(axis: str, *rates: float, **fixed: float) -> tuple[Point, ...]:
    return tuple({axis: rate, **fixed} for rate in rates)


HANDOFF, JOINT = "hand-off r4", "joint r2 + half"
ARMS = {
    arm.name: arm
    for arm in (
        Arm(HANDOFF, "stages", {"residual": "drop"}, _make_grid("adapter", 2e-3, 5e-3)),
        Arm("random", "engine", {"mask": "random"}, _make_grid("adapter", 2e-2)),
        Arm("magnitude", "engine", {"mask": "magnitude"}, _make_grid("adapter", 1e-2)),
        Arm("lift", "engine", {"mask": "lift"}, _make_grid("adapter", 5e-3, 1e-2, 2e-2)),
        Arm("keep afterwards", "stages", {"residual": "keep"}, like=HANDOFF),
        Arm("values alone", "stages", {"joint": False}, _make_grid("sparse", 2e-2)),
        Arm(JOINT, "stages", {"joint": True},
            (*_make_grid("adapter", 2e-3, 5e-3, sparse=2e-2), {"adapter": 2e-3, "sparse": 5e-2})),
        Arm("pull to the rank", "stages", {"residual": "drop", "pulled": True},
            _make_grid("pull", 2e-2, 1e-1, adapter=2e-3)),
        Arm("ranks by outputs", "stages", {"residual": "drop", "ranks": "outputs"}, like=HANDOFF),
        Arm("ranks by loss", "stages", {"residual": "drop", "ranks": "loss"}, like=HANDOFF),
        Arm("by rows", "federation", {"weighting": "rows"}, _make_grid("adapter", 4e-2)),
        Arm("uniform", "federation", {"weighting": "uniform"}, like="by rows"),
        Arm("by tokens", "federation", {"weighting": "tokens"}, like="by rows"),
    )
}  # fmt: skip
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate("joint", ("keep afterwards", "values alone"), (JOINT,)),
        Candidate("penalty", (HANDOFF,), ("pull to the rank",)),
        Candidate("ranks", (HANDOFF,), ("ranks by outputs", "ranks by loss")),
        Candidate("lift", ("random", "magnitude"), ("lift",)),
        Candidate("weighting", ("by rows",), ("uniform", "by tokens")),
    )
}
JOINT_RANK = RANK // 2
