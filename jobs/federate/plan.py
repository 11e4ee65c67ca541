"""What a federation will send: by stage, cause and client, and the seconds it takes on slow links.

n: numbers that are trained in a stage, the head counted. Pure arithmetic, no torch, no numpy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.federate.section import FederationSection
from jobs.model_files import DECODER_HEADS_WITHOUT_BIAS, DECODERS, HEADS_OF_TWO_LAYERS, ModelFiles
from jobs.plan import StagePlan, sized_by_rank
from jobs.predict.files import HEADER
from jobs.predict.from_spec import NEEDS_NO_DATA, counted_exactly
from jobs.predict.wire import FLOAT32, Flow
from jobs.spec import MethodSection, Spec
from slora.names import entries
from slora.sizes import STRUCTURES, block_sides

PLACE = 4
"""Bytes of a position: int32."""
SPEEDS = (1, 10, 100)
"""Mbit/s of a client's link that a plan tells the seconds of."""


@dataclass(frozen=True)
class StageRounds:
    """The rounds of one stage, and what one client moves in one of them."""

    name: str
    rounds: int
    trained: int
    """Numbers that travel, the head counted."""
    down: int
    up: int

    def seconds(self, mbits: float) -> float:
        """What one round takes of a link: its clients move their bytes at the same time."""
        return (self.down + self.up) * 8 / (mbits * 1e6)


@dataclass(frozen=True)
class FederationPlan:
    """What travels, and how long that takes."""

    clients: int | None
    """None where only a whole look at the rows can tell."""
    clients_per_round: int
    rounds: int
    local_steps: int
    sites: int
    stages: tuple[StageRounds, ...]
    flows: tuple[Flow, ...]

    @property
    def down(self) -> int:
        """Bytes to clients in the whole run, without what a client is told once."""
        return self._all("down")

    @property
    def up(self) -> int:
        """Bytes from clients in the whole run, without calibration."""
        return self._all("up")

    def seconds(self, mbits: float) -> float:
        """What all rounds take of the links."""
        return sum(stage.rounds * stage.seconds(mbits) for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """As plain values, sums and seconds included."""
        plain = dataclasses.asdict(self)
        for stage, told in zip(self.stages, plain["stages"], strict=True):
            told["seconds_a_round"] = {str(speed): stage.seconds(speed) for speed in SPEEDS}
        # They stand in the prediction's way, where every run has them.
        del plain["flows"]
        seconds = {str(speed): self.seconds(speed) for speed in SPEEDS}
        return {**plain, "down": self.down, "up": self.up, "seconds": seconds}

    def _all(self, cause: str) -> int:
        return sum(flow.total or 0 for flow in self.flows if flow.cause == cause)


def foresee_federation(
    spec: Spec,
    section: FederationSection,
    stages: Sequence[tuple[StagePlan, int]],
    model: ModelFiles,
    *,
    targets: Mapping[str, tuple[int, int]],
    head: int,
    clients: int | None,
) -> FederationPlan:
    """`stages` come with their rounds; `head` are its numbers, 0 where it is not trained apart."""
    tensors = _head_tensors(model) if spec.model.task == "sequence-classification" else 0
    told = []
    for stage, rounds in stages:
        trained = stage.trainable + head
        slots = _slots(stage.name, section, targets, model) + tensors
        sent = up_bytes(section, trained, slots)
        told.append(StageRounds(stage.name, rounds, trained, FLOAT32 * trained, sent))
    flows = _Flows(spec, section, tuple(told), targets, head, clients)
    return FederationPlan(
        clients=clients,
        clients_per_round=section.clients_per_round,
        rounds=section.rounds,
        local_steps=section.local_steps,
        sites=spec.workers,
        stages=tuple(told),
        flows=tuple(flow for flow in flows.all() if flow.times != 0),
    )


def up_bytes(section: FederationSection, trained: int, slots: int) -> int:
    """What one client sends back in a round; `slots` are the tensors that `trained` fill."""
    return {
        "none": FLOAT32 * trained,
        "bf16": 2 * trained,
        "int8": trained + FLOAT32 * slots,
        "topk": (PLACE + FLOAT32) * math.ceil(section.topk * trained),
    }[section.compress]


def only_b(method: MethodSection, targets: Mapping[str, tuple[int, int]]) -> int:
    """Numbers of the factors B alone: what is trained where A is frozen."""
    return sum(entries((out, method.rank), method.factor_density) for out, _ in targets.values())


def _slots(
    stage: str,
    section: FederationSection,
    targets: Mapping[str, tuple[int, int]],
    model: ModelFiles,
) -> int:
    if stage == "full":
        return len(model.shapes)
    return len(targets) * (2 if stage == "low-rank" and not section.freeze_a else 1)


def _head_tensors(model: ModelFiles) -> int:
    """Tensors of the head that sequence classification trains."""
    dense = 2 if model.model_type in HEADS_OF_TWO_LAYERS else 0
    decoder = model.architecture.endswith(DECODERS)
    return dense + (1 if decoder or model.model_type in DECODER_HEADS_WITHOUT_BIAS else 2)


@dataclass(frozen=True)
class _Flows:
    """Everything that travels, cause by cause."""

    spec: Spec
    section: FederationSection
    stages: tuple[StageRounds, ...]
    targets: Mapping[str, tuple[int, int]]
    head: int
    clients: int | None

    def all(self) -> Iterator[Flow]:
        if self._scored:
            each = self.section.clients_per_round
            yield self._flow("calibration", self.stages[0], self._scores(), each)
        for stage in self.stages:
            yield from self._once(stage)
            yield from self._rounds(stage)
            yield from self._beside(stage)

    def _rounds(self, stage: StageRounds) -> Iterator[Flow]:
        each, drop_out = self.section.clients_per_round, self.section.drop_out
        counted = stage.name != "sparse" or counted_exactly(self.spec.method)
        exact = counted and stage.name != "full"
        # Who drops out has got the weights, and does not answer.
        answers = each * (1 - drop_out)
        yield Flow("down", stage.name, stage.down, stage.rounds * each, each, True, exact)
        times = round(stage.rounds * answers)
        yield Flow("up", stage.name, stage.up, times, answers, True, exact and not drop_out)

    def _once(self, stage: StageRounds) -> Iterator[Flow]:
        """What a client is told before its first task in a stage, and a site before all."""
        method, values = self.spec.method, self._mask_entries
        keeps = method.handoff.residual != "drop"
        clients = self._drawn(stage)
        times = None if clients is None else 1 + clients
        if self._scored and (stage.name == "sparse" or keeps):
            sent = PLACE * self._places() + HEADER * len(self.targets)
            yield self._flow("masks", stage, sent, times)
        if stage.name == "low-rank" and values and (keeps or self.section.freeze_a):
            factors = method.rank * sum(map(sum, self.targets.values()))
            sent = FLOAT32 * (factors + (values if keeps else 0))
            yield self._flow("hand-off", stage, sent, times)

    def _beside(self, stage: StageRounds) -> Iterator[Flow]:
        """Weights at a stage's start and at the commit, and to every site for an evaluation."""
        last = stage == self.stages[-1]
        yield self._flow("install", stage, stage.down, 2 if last else 1)
        if self.section.sticky:
            yield from self._kept(stage)
        data, every = self.spec.data, self.spec.train.eval_every
        if data.eval is None and data.eval_fraction is None:
            return
        looks = 1 + bool(stage.rounds or last) + self._within(stage, every)
        yield self._flow("evaluation", stage, stage.down, looks * self.spec.workers)

    def _kept(self, stage: StageRounds) -> Iterator[Flow]:
        """What waits with clients, fetched for each checkpoint: of all that had a task by then."""
        every, clients = self.spec.train.checkpoint_every, self._drawn(stage)
        if every and stage.rounds:
            saves = 1 + self._within(stage, every)
            times = None if clients is None else saves * clients
            yield self._flow("checkpoint", stage, stage.down, times)

    def _within(self, stage: StageRounds, every: int | None) -> int:
        """How often a stage, before its end, comes to a round that `every` divides.

        Rounds are counted over both stages.
        """
        if not every or not stage.rounds:
            return 0
        before = sum(one.rounds for one in self.stages[: self.stages.index(stage)])
        return (before + stage.rounds - 1) // every - before // every

    def _flow(self, cause: str, stage: StageRounds, sent: int, times: int | None) -> Flow:
        return Flow(cause, stage.name, sent, times, 0.0, True, exact=False)

    def _drawn(self, stage: StageRounds) -> int | None:
        """Clients that are drawn in a stage at least once, as it is to be expected."""
        if self.clients is None:
            return None
        missed = (1 - self.section.clients_per_round / self.clients) ** stage.rounds
        return round(self.clients * (1 - missed))

    @property
    def _mask_entries(self) -> int:
        """0 where there is no sparse stage."""
        sparse = self.spec.method.kind in ("slora", "sparse")
        return self.stages[0].trained - self.head if sparse else 0

    @property
    def _scored(self) -> bool:
        """Whether the masks come from the rows of the first round's clients."""
        method = self.spec.method
        by = method.score if method.mask in STRUCTURES else method.mask
        return bool(self._mask_entries) and by not in NEEDS_NO_DATA

    def _places(self) -> int:
        """Positions that tell the masks: of entries, or of rows and columns that are not all."""
        method = self.spec.method
        if method.mask not in STRUCTURES:
            return self._mask_entries
        rank, told = sized_by_rank(self.spec), 0
        for shape in self.targets.values():
            sides = block_sides(method.mask, shape, density=method.density, rank=rank)
            told += sum(side for side, whole in zip(sides, shape, strict=True) if side < whole)
        return told

    def _scores(self) -> int:
        """Bytes of one client's scores: of every entry, or of whole rows or columns."""
        sizes = self.targets.values()
        if self.spec.method.mask == "rows":
            return FLOAT32 * sum(out for out, _ in sizes)
        if self.spec.method.mask == "columns":
            return FLOAT32 * sum(wide for _, wide in sizes)
        return FLOAT32 * sum(out * wide for out, wide in sizes)
