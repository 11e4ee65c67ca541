"""Predict what a federation sends, by stage, cause and client, and how long slow links take.

n: numbers that are trained in a stage, the head counted. Pure arithmetic, no torch, no numpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.federation.averaging.upload_size import FLOAT32, POSITION, compute_upload_size
from jobs.inspect.model_files import ModelFiles
from jobs.plan.checks import get_sizing_rank
from jobs.plan.estimate.from_spec import DATA_FREE_SCORES, has_exact_count
from jobs.plan.estimate.output_files import HEADER
from jobs.plan.estimate.traffic import Flow
from jobs.plan.plan import StagePlan
from jobs.spec.schema import MethodSection, RunSpec
from jobs.spec.sections.federation import FederationSection
from slora.handoff.sketch_size import count_sketch_numbers
from slora.layers.shapes import count_experts, count_factor_entries
from slora.masks.sizes import STRUCTURES, compute_block_sides, count_trained_factors

LINK_SPEEDS = (1, 10, 100)
"""Mbit/s of a client's link for which the plan gives the seconds."""


@dataclass(frozen=True)
class StageRounds:
    """The rounds of one stage, and what one client sends and receives in each."""

    name: str
    rounds: int
    trained: int
    """Numbers that are sent, those of the head included."""
    down: int
    up: int

    def estimate_seconds(self, mbits: float) -> float:
        """Return the seconds of one round: its clients send and receive at the same time."""
        return (self.down + self.up) * 8 / (mbits * 1e6)


@dataclass(frozen=True)
class FederationPlan:
    """The predicted traffic of a federation and its duration."""

    clients: int | None
    """None if only a full scan of the rows can tell."""
    clients_per_round: int
    rounds: int
    local_steps: int
    sites: int
    stages: tuple[StageRounds, ...]
    flows: tuple[Flow, ...]

    @property
    def down(self) -> int:
        """Return the bytes of weights to clients in the whole run, without setup."""
        return self._sum_cause("down")

    @property
    def up(self) -> int:
        """Return the bytes of updates from clients in the whole run, without calibration."""
        return self._sum_cause("up")

    def estimate_seconds(self, mbits: float) -> float:
        """Return the seconds of all rounds."""
        return sum(stage.rounds * stage.estimate_seconds(mbits) for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain values, with sums and seconds."""
        values = dataclasses.asdict(self)
        for stage, stage_values in zip(self.stages, values["stages"], strict=True):
            stage_values["seconds_per_round"] = {
                str(speed): stage.estimate_seconds(speed) for speed in LINK_SPEEDS
            }
        # They are part of the estimate, as in any run.
        del values["flows"]
        seconds = {str(speed): self.estimate_seconds(speed) for speed in LINK_SPEEDS}
        return {**values, "down": self.down, "up": self.up, "seconds": seconds}

    def _sum_cause(self, cause: str) -> int:
        return sum(flow.total or 0 for flow in self.flows if flow.cause == cause)


def plan_federation(
    spec: RunSpec,
    section: FederationSection,
    stages: Sequence[tuple[StagePlan, int]],
    model: ModelFiles,
    *,
    targets: Mapping[str, tuple[int, int]],
    head: int,
    clients: int | None,
) -> FederationPlan:
    """Predict the traffic of stages given with their rounds. `head`: the numbers of the head."""
    head_tensors = model.description.count_head_tensors()
    stage_rounds = []
    for stage, rounds in stages:
        # Full fine-tuning counts the head among what it trains.
        adapter = stage.trainable - (head if stage.name == "full" else 0)
        trained = adapter + head
        tensor_count = _count_tensors(stage.name, section, targets, model) + head_tensors
        up = compute_upload_size(section.compress, (adapter, head), tensor_count, section.topk)
        stage_rounds.append(StageRounds(stage.name, rounds, trained, FLOAT32 * trained, up))
    flows = _FlowBuilder(spec, section, tuple(stage_rounds), targets, head, clients)
    return FederationPlan(
        clients=clients,
        clients_per_round=section.clients_per_round,
        rounds=section.rounds,
        local_steps=section.local_steps,
        sites=spec.workers,
        stages=tuple(stage_rounds),
        flows=tuple(flow for flow in flows.build_all() if flow.times != 0),
    )


def count_b_entries(method: MethodSection, targets: Mapping[str, tuple[int, int]]) -> int:
    """Count the numbers of the factors B, which are trained alone if A is frozen."""
    return sum(_count_b_of_layer(method, shape) for shape in targets.values())


def _count_b_of_layer(method: MethodSection, shape: tuple[int, int]) -> int:
    if not method.has_factor_masks:
        return shape[0] * method.rank
    kind, density = method.factor_mask, method.factor_density
    return count_trained_factors(kind, shape, rank=method.rank, density=density)[1]


def _count_tensors(
    stage: str,
    section: FederationSection,
    targets: Mapping[str, tuple[int, int]],
    model: ModelFiles,
) -> int:
    if stage == "full":
        return len(model.shapes)
    return len(targets) * (2 if stage == "low-rank" and not section.freeze_a else 1)


@dataclass(frozen=True)
class _FlowBuilder:
    """Build the flows of a federation, cause by cause."""

    spec: RunSpec
    section: FederationSection
    stages: tuple[StageRounds, ...]
    targets: Mapping[str, tuple[int, int]]
    head: int
    clients: int | None

    def build_all(self) -> Iterator[Flow]:
        if self._needs_scores:
            per_round = self.section.clients_per_round
            yield self._make_flow(
                "calibration", self.stages[0], self._count_score_bytes(), per_round
            )
        for stage in self.stages:
            yield from self._build_setup_flows(stage)
            yield from self._build_round_flows(stage)
            yield from self._build_other_flows(stage)

    def _build_round_flows(self, stage: StageRounds) -> Iterator[Flow]:
        per_round, drop_out = self.section.clients_per_round, self.section.drop_out
        counted = stage.name != "sparse" or has_exact_count(self.spec.method)
        exact = counted and stage.name != "full"
        # A client that drops out has received the weights and returns nothing.
        answers = per_round * (1 - drop_out)
        yield Flow("down", stage.name, stage.down, stage.rounds * per_round, per_round, True, exact)
        times = round(stage.rounds * answers)
        yield Flow("up", stage.name, stage.up, times, answers, True, exact and not drop_out)

    def _build_setup_flows(self, stage: StageRounds) -> Iterator[Flow]:
        """Yield what clients get with their first task in a stage, and the first site before."""
        method, mask_entries = self.spec.method, self._mask_entries
        keeps_residual = method.handoff.residual != "drop"
        clients = self._estimate_clients(stage)
        times = None if clients is None else 1 + clients
        if self._needs_scores and (stage.name == "sparse" or keeps_residual):
            size = POSITION * self._count_positions() + HEADER * len(self.targets)
            yield self._make_flow("masks", stage, size, times)
        needs_start = keeps_residual or self.section.freeze_a or method.has_factor_masks
        if stage.name == "low-rank" and mask_entries and needs_start:
            shapes = self.targets.values()
            factors = sum(count_factor_entries(shape, method.rank) for shape in shapes)
            size = FLOAT32 * (factors + (mask_entries if keeps_residual else 0))
            yield self._make_flow("hand-off", stage, size, times)
        has_update = bool(mask_entries and self.stages[0].rounds)
        if stage.name == "low-rank" and has_update and method.handoff.norm != "weights":
            # The next round's clients get the sparse stage's weights, and return sketches.
            size = self.stages[0].down + self._count_sketch_bytes()
            yield self._make_flow("hand-off", stage, size, self.section.clients_per_round)

    def _build_other_flows(self, stage: StageRounds) -> Iterator[Flow]:
        """Yield the weights of a stage's start, of the commit and of evaluations at every site."""
        is_last = stage == self.stages[-1]
        yield self._make_flow("install", stage, stage.down, 2 if is_last else 1)
        if self.section.has_client_state:
            yield from self._build_checkpoint_flows(stage)
        data, every = self.spec.data, self.spec.train.eval_every
        if data.eval is None and data.eval_fraction is None:
            return
        evaluations = 1 + bool(stage.rounds or is_last) + self._count_multiples(stage, every)
        yield self._make_flow("evaluation", stage, stage.down, evaluations * self.spec.workers)

    def _build_checkpoint_flows(self, stage: StageRounds) -> Iterator[Flow]:
        """Yield the residuals of error feedback, fetched from the clients for each checkpoint."""
        every, clients = self.spec.train.checkpoint_every, self._estimate_clients(stage)
        if every and stage.rounds:
            saves = 1 + self._count_multiples(stage, every)
            times = None if clients is None else saves * clients
            yield self._make_flow("checkpoint", stage, stage.down, times)

    def _count_multiples(self, stage: StageRounds, every: int | None) -> int:
        """Count the rounds of a stage before its last that are multiples of `every`.

        Rounds are counted over both stages.
        """
        if not every or not stage.rounds:
            return 0
        before = sum(earlier.rounds for earlier in self.stages[: self.stages.index(stage)])
        return (before + stage.rounds - 1) // every - before // every

    def _make_flow(self, cause: str, stage: StageRounds, size: int, times: int | None) -> Flow:
        return Flow(cause, stage.name, size, times, 0.0, True, exact=False)

    def _estimate_clients(self, stage: StageRounds) -> int | None:
        """Return the expected number of clients that are sampled at least once in a stage."""
        if self.clients is None:
            return None
        missed = (1 - self.section.clients_per_round / self.clients) ** stage.rounds
        return round(self.clients * (1 - missed))

    @property
    def _mask_entries(self) -> int:
        """Return the entries of all masks; 0 without a sparse stage."""
        sparse = self.spec.method.kind in ("slora", "sparse")
        return self.stages[0].trained - self.head if sparse else 0

    @property
    def _needs_scores(self) -> bool:
        """Return whether the masks are chosen by scores of the first round's clients."""
        method = self.spec.method
        scorer = method.score if method.mask in STRUCTURES else method.mask
        return bool(self._mask_entries) and scorer not in DATA_FREE_SCORES

    def _count_positions(self) -> int:
        """Count the positions that encode the masks: entries, or rows and columns if not all."""
        method = self.spec.method
        if method.mask not in STRUCTURES:
            return self._mask_entries
        rank, count = get_sizing_rank(self.spec), 0
        for shape in self.targets.values():
            sides = compute_block_sides(method.mask, shape, density=method.density, rank=rank)
            count += sum(side for side, length in zip(sides, shape, strict=True) if side < length)
        return count

    def _count_sketch_bytes(self) -> int:
        """Return the bytes of one client's sketches for the hand-off."""
        method = self.spec.method
        gradients = method.handoff.norm == "loss"
        return FLOAT32 * sum(
            count_sketch_numbers(shape, method.rank, gradients=gradients)
            for shape in self.targets.values()
            if count_experts(shape) == 1
        )

    def _count_score_bytes(self) -> int:
        """Return the bytes of one client's scores: of every entry, or summed by row or column."""
        shapes = self.targets.values()
        if self.spec.method.mask == "rows":
            return FLOAT32 * sum(rows for rows, _ in shapes)
        if self.spec.method.mask == "columns":
            return FLOAT32 * sum(columns for _, columns in shapes)
        return FLOAT32 * sum(rows * columns for rows, columns in shapes)
