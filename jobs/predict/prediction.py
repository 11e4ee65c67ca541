"""The prediction: every way of holding the base, which of them is taken, and what the run costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jobs.predict.choice import Way, choose, warnings, ways
from jobs.predict.files import checkpoint_bytes
from jobs.predict.question import Question
from jobs.predict.speed import Speed


@dataclass(frozen=True)
class Prediction:
    """What a run will hold, send, take and cost."""

    workers: int
    nodes: int
    workers_per_node: int
    memory: int | None
    """Bytes that a worker may use; None where nobody knows."""
    ways: tuple[Way, ...]
    sharding: str
    reason: str
    fault: str | None
    """Why the run can't be: by how much it does not fit."""
    warnings: tuple[str, ...]
    steps: int | None
    tokens: int | None
    """Of the whole run, at most; None where only the rows can tell the steps."""
    checkpoint: int
    """Bytes of the largest checkpoint."""
    adapter: int
    seconds: float | None
    """Of its steps, without the start, evaluations and the hand-off."""
    cost: float | None
    speed: Speed | None

    @property
    def way(self) -> Way:
        """The one that is taken."""
        return next(way for way in self.ways if way.sharding == self.sharding)

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what follows from them."""
        plain = dataclasses.asdict(self)
        plain["ways"] = [way.to_json() for way in self.ways]
        return plain


def predict(asked: Question, wanted: str, *, adapter: int, speed: Speed | None) -> Prediction:
    """The answer. `wanted` is the sharding that the spec names, or auto."""
    found = ways(asked)
    chosen = choose(asked, found, wanted)
    way = next(way for way in found if way.sharding == chosen.sharding)
    steps = _steps(asked)
    tokens = _tokens(asked, steps, speed)
    seconds = tokens / speed.tokens_per_second if tokens is not None and speed else None
    return Prediction(
        workers=asked.place.workers,
        nodes=asked.place.nodes,
        workers_per_node=asked.place.per_node,
        memory=asked.place.memory,
        ways=found,
        sharding=chosen.sharding,
        reason=chosen.reason,
        fault=chosen.fault,
        warnings=warnings(asked, way),
        steps=steps,
        tokens=tokens,
        checkpoint=max(checkpoint_bytes(stage) for stage in asked.stages),
        adapter=adapter,
        seconds=seconds,
        cost=_cost(asked, seconds),
        speed=speed,
    )


def _steps(asked: Question) -> int | None:
    counts = [stage.steps for stage in asked.stages]
    return None if None in counts else sum(count or 0 for count in counts)


def _tokens(asked: Question, steps: int | None, speed: Speed | None) -> int | None:
    if steps is None:
        return None
    fill = speed.fill if speed and speed.fill else 1.0
    return round(steps * asked.batching.sequences * asked.batching.length * min(1.0, fill))


def _cost(asked: Question, seconds: float | None) -> float | None:
    price = asked.place.price_per_hour
    return None if seconds is None or price is None else price * asked.place.nodes * seconds / 3600
