"""Which way of holding the base is taken and why; what does not fit, what deserves a warning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.predict.memory import CONTEXT, Memory, predict_memory
from jobs.predict.question import Place, Question
from jobs.predict.wire import Flow, predict_wire

SHARDINGS = ("replicate", "node", "cluster")
"""In the order in which they are tried: what sends least comes first."""
FREE = 0.1
"""Share of a worker's memory that a prediction leaves free, since it is none to the byte."""


@dataclass(frozen=True)
class Way:
    """One way of holding the base: what it takes."""

    sharding: str
    memory: Memory
    flows: tuple[Flow, ...]
    needed: int
    """Bytes of memory that a worker must have for it, with what is left free."""
    fits: bool | None
    """None where the memory is not known."""
    even: bool
    """Whether the workers can be dealt to their machines alike."""

    def out_a_step(self, stage: str) -> int:
        """Bytes that leave a machine in an optimiser step of a stage, on average."""
        return sum(flow.out_a_step for flow in self.flows if flow.stage == stage)

    @property
    def out(self) -> int | None:
        """Bytes that leave a machine in the whole run; None where only the run can tell.

        Evaluations count where their rows have been counted.
        """
        found = [
            flow.out for flow in self.flows if flow.cause != "evaluation" or flow.out is not None
        ]
        return None if None in found else sum(out or 0 for out in found)

    def to_json(self) -> dict[str, Any]:
        """As plain values, sums included."""
        phases = [
            {"name": phase.name, "total": phase.total, "lines": dict(phase.lines)}
            for phase in self.memory.phases
        ]
        flows = [
            dataclasses.asdict(flow)
            | {"total": flow.total, "out_a_step": flow.out_a_step, "out": flow.out}
            for flow in self.flows
        ]
        return {
            "sharding": self.sharding,
            "peak": self.memory.peak,
            "needed": self.needed,
            "fits": self.fits,
            "out": self.out,
            "memory": phases,
            "wire": flows,
        }


@dataclass(frozen=True)
class Choice:
    """The sharding that is taken, in words why, and what forbids it."""

    sharding: str
    reason: str
    fault: str | None = None


def ways(asked: Question) -> tuple[Way, ...]:
    """All of them."""
    return tuple(_way(asked, sharding) for sharding in SHARDINGS)


def choose(asked: Question, found: Sequence[Way], wanted: str) -> Choice:
    """The one that the spec names, or for `auto` the first that fits."""
    place = asked.place
    if wanted != "auto":
        way = next(way for way in found if way.sharding == wanted)
        return Choice(wanted, "as the spec says", _why_not(place, way, found))
    if place.memory is None:
        reason = "auto: a GPU's memory is not known, see cluster.machine.memory_gb"
        return Choice(SHARDINGS[0], reason)
    # On one machine `node` and `cluster` are the same, and with one worker a machine `node` is
    # `replicate`.
    tried = [way for way in found if way.even and (way.sharding != "node" or _deals(place))]
    fitting = next((way for way in tried if way.fits), None)
    if fitting is None:
        least = min(tried, key=lambda way: way.needed)
        return Choice(least.sharding, "auto: nothing fits", _too_large(place, least))
    first = fitting is tried[0]
    words = "it fits" if first else f"the first that fits, {tried[0].sharding} does not"
    return Choice(fitting.sharding, f"auto: {words}")


def warnings(asked: Question, way: Way) -> tuple[str, ...]:
    """What a user should know of the wire before."""
    said = []
    base = sum(flow.out_a_step for flow in way.flows if flow.cause == "base")
    rest = sum(flow.out_a_step for flow in way.flows if flow.cause == "gradients")
    if not asked.full and base > rest:
        times = f"{base / rest:,.0f} times" if rest else "more than"
        said.append(
            f"the base dominates the wire: {times} what the adapter's gradients send leaves each "
            "machine, since it is sharded over all of them. More memory a worker, or more workers "
            "a machine, would keep it at home"
        )
    if asked.place.memory is not None and way.sharding == "replicate" and not way.fits:
        said.append("the base does not fit whole into a worker's memory")
    return tuple(said)


def _way(asked: Question, sharding: str) -> Way:
    memory, place = predict_memory(asked, sharding), asked.place
    held = memory.peak + (0 if place.cpu else CONTEXT)
    needed = round(held / (1 - FREE))
    fits = None if place.memory is None else needed <= place.memory
    even = sharding != "node" or place.workers % place.per_node == 0
    return Way(sharding, memory, predict_wire(asked, sharding), needed, fits, even)


def _deals(place: Place) -> bool:
    return place.nodes > 1 and place.per_node > 1


def _why_not(place: Place, way: Way, found: Sequence[Way]) -> str | None:
    if not way.even:
        return (
            f"{place.workers} workers can't be dealt to machines of {place.per_node} alike, "
            "as `node` needs"
        )
    if way.fits is not False:
        return None
    other = next((one for one in found if one.fits and one.even), None)
    return _too_large(place, way) + (f"; {other.sharding} would fit" if other else "")


def _too_large(place: Place, way: Way) -> str:
    assert place.memory is not None
    over = way.needed - place.memory
    return (
        f"{way.sharding} needs {_gb(way.needed)} a worker, {_gb(over)} more than the "
        f"{_gb(place.memory)} {place.memory_from}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
