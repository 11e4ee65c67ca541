"""What travels, by cause: bytes that the busiest worker sends, and those that leave a machine.

W: workers that take part. A ring all-reduce of N bytes makes each of them send 2 (W - 1) / W x N,
an all-gather or a reduce-scatter half of that; a broadcast passes N on. Workers of one machine are
neighbours in the ring, so what leaves the machine is what one worker sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.predict.memory import group_size
from jobs.predict.question import Question, Stage

TOLD = 3
"""Numbers that travel beside the gradients, and one more for the loss of each step: float32."""
FACTS = 4
"""Numbers that travel beside a layer's factors: what the hand-off kept of it."""
FLOAT32, FLOAT64 = 4, 8
PERSISTENT, REUSED = 100_000, 1_000_000_000
"""DeepSpeed's ZeRO-3, as full fine-tuning uses it, leaves smaller weights whole, and keeps what is
used again within so many numbers."""


@dataclass(frozen=True)
class Flow:
    """One cause in one stage."""

    cause: str
    stage: str
    sent: int
    """Bytes that the busiest worker sends, each time."""
    times: int | None
    """How often in the stage; None where only the run can tell."""
    per_step: float
    """How often in an optimiser step, on average; 0 for what does not belong to one."""
    crosses: bool
    """Whether it leaves the machine."""
    exact: bool = True

    @property
    def total(self) -> int | None:
        return None if self.times is None else self.sent * self.times

    @property
    def out_a_step(self) -> int:
        """Bytes that leave a machine in an optimiser step, on average."""
        return round(self.sent * self.per_step) if self.crosses else 0

    @property
    def out(self) -> int | None:
        """Bytes that leave a machine in the whole stage."""
        return self.total if self.crosses else 0


def all_reduce(size: int, workers: int) -> int:
    """Bytes that each worker of a ring sends for an all-reduce of so many."""
    return 2 * size * (workers - 1) // workers


def all_gather(size: int, workers: int) -> int:
    """The same for an all-gather, or a reduce-scatter, of a whole of so many bytes."""
    return size * (workers - 1) // workers


def predict_wire(asked: Question, sharding: str) -> tuple[Flow, ...]:
    """Every flow of the run; none where there is one worker."""
    if asked.place.workers == 1:
        return ()
    return tuple(_flows(asked, sharding))


def _flows(asked: Question, sharding: str) -> Iterator[Flow]:
    far = asked.place.nodes > 1
    if asked.method.scored:
        yield Flow("calibration", asked.stages[0].name, _scores(asked), 1, 0.0, far)
    for index, stage in enumerate(asked.stages):
        if index or asked.method.broadcast_starts:
            yield Flow("hand-off", stage.name, _hand_off(asked, after=index > 0), 1, 0.0, far)
        yield _gradients(asked, stage, sharding, far=far)
        yield from _bases(asked, stage, sharding)


def _gradients(asked: Question, stage: Stage, sharding: str, *, far: bool) -> Flow:
    every = 1 if asked.full else asked.local.every
    if asked.full:
        sent = _full_gradients(asked, stage, sharding)
    else:
        sent = _bucket(asked, stage) + _products(asked, stage)
    # What is left of a stage's last steps is exchanged at its end.
    times = None if stage.steps is None else -(-stage.steps // every)
    exact = stage.exact and not asked.full
    return Flow("gradients", stage.name, sent, times, 1 / every, far, exact)


def _bucket(asked: Question, stage: Stage) -> int:
    """One exchange of what is trained, and of what the workers tell one another."""
    told, workers = FLOAT32 * (TOLD + asked.local.every), asked.place.workers
    if asked.exchange_bytes == FLOAT32:
        return all_reduce(FLOAT32 * stage.trained + told, workers)
    return all_reduce(asked.exchange_bytes * stage.trained, workers) + all_reduce(told, workers)


def _products(asked: Question, stage: Stage) -> int:
    """Factors sent to the worker that averages their product, of all layers but the own ones."""
    if asked.local.every == 1 or not asked.local.products or stage.name != "low-rank":
        return 0
    sizes = list(asked.method.targets.values())
    others = [size for place, size in enumerate(sizes) if place % asked.place.workers]
    return FLOAT32 * asked.method.rank * sum(map(sum, others))


def _full_gradients(asked: Question, stage: Stage, sharding: str) -> int:
    size, workers = stage.trained * asked.dtype_bytes, asked.place.workers
    if sharding == "replicate":
        return all_reduce(size, workers)
    # ZeRO-3 deals the gradients out in every micro-batch; gloo reduces all of them everywhere.
    dealt = all_reduce(size, workers) if asked.place.cpu else all_gather(size, workers)
    return asked.batching.accumulation * dealt


def _bases(asked: Question, stage: Stage, sharding: str) -> Iterator[Flow]:
    """Gathers of the sharded base: in every micro-batch, and in every evaluation."""
    group = group_size(asked, sharding)
    if asked.full:
        yield _full_base(asked, stage, sharding)
    if group == 1:
        return
    far = asked.place.nodes > 1 and (sharding == "cluster" or asked.full)
    size, accumulation = asked.dtype_bytes, asked.batching.accumulation
    forward = _gathered(asked.base.forward(), group, size)
    if not asked.full:
        both = forward + _gathered(asked.base.backward(), group, size)
        times = None if stage.steps is None else stage.steps * accumulation
        yield Flow("base", stage.name, both, times, accumulation, far)
    if asked.batching.evaluates:
        looks, micros = _evaluations(asked, stage), asked.batching.eval_micros
        times = None if looks is None or micros is None else looks * micros
        yield Flow("evaluation", stage.name, forward, times, 0.0, far, exact=False)


def _full_base(asked: Question, stage: Stage, sharding: str) -> Flow:
    """DeepSpeed's own: ZeRO-1 sends the new weights after a step, ZeRO-3 gathers those it cuts."""
    workers, far = asked.place.workers, asked.place.nodes > 1
    if sharding == "replicate":
        sent = all_gather(stage.trained * asked.dtype_bytes, workers)
        return Flow("base", stage.name, sent, stage.steps, 1.0, far)
    cut = [size for size in asked.base.sizes.values() if size >= PERSISTENT]
    # Near enough to the backward, what the forward gathered is kept for it.
    passes = 1 if asked.base.parameters < REUSED else 2
    sent = passes * _gathered(cut, workers, asked.dtype_bytes)
    times = None if stage.steps is None else stage.steps * asked.batching.accumulation
    return Flow("base", stage.name, sent, times, asked.batching.accumulation, far, exact=False)


def _gathered(sizes: Iterable[int], workers: int, size: int) -> int:
    """Bytes that each worker sends so that all have every one of these weights."""
    return sum((workers - 1) * -(-count // workers) * size for count in sizes)


def _evaluations(asked: Question, stage: Stage) -> int | None:
    """Before the stage (at the start of the run, or after the hand-off), inside it, at its end."""
    if stage.steps is None:
        return None
    every = asked.batching.eval_every
    return 2 + (max(0, stage.steps - 1) // every if every else 0)


def _hand_off(asked: Question, *, after: bool) -> int:
    """Each layer's factors from the rank that made them to all others; `after` a sparse stage."""
    method, facts = asked.method, FACTS if after else 0
    residual = method.mask_entries if after and method.keeps_residual else {}
    return FLOAT32 * sum(
        method.rank * sum(size) + facts + residual.get(name, 0)
        for name, size in method.targets.items()
    )


def _scores(asked: Question) -> int:
    sizes = (rows * columns for rows, columns in asked.method.targets.values())
    return sum(all_reduce(FLOAT64 * size, asked.place.workers) for size in sizes)
