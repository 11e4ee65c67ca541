"""The weights that a run starts with, kept until its first step is done.

The base is evaluated and answers its prompts after the first step instead of before it: the user
sees a loss some seconds earlier, and the results are the same to the bit, because a frozen base
with the weights of the start is the model of the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.spec.schema import RunSpec
from jobs.train.engine.engine import CompactEngine, Engine


class StartWeights:
    """A stage's weights at its start, beside those that it has now. On every rank alike."""

    def __init__(self, engine: CompactEngine) -> None:
        self._engine, self._weights = engine, engine.gather_weights()

    @contextmanager
    def revisit(self) -> Iterator[None]:
        """Give the model the weights of the start inside the block, and back those it has."""
        trained = self._engine.gather_weights()
        self._engine.restore_weights(self._weights)
        try:
            yield
        finally:
            self._engine.restore_weights(trained)


def keep_start_weights(spec: RunSpec, engine: Engine) -> StartWeights | None:
    """Return the weights of the stage that begins, or None if they can't be had again.

    Full fine-tuning changes the base itself. Between two exchanges of `cluster.sync_every` steps
    the workers differ, and a gate that is closed after a step stays closed.
    """
    has_gates = spec.method.factor_density < 1 and spec.method.factor_pruning == "gates"
    if not isinstance(engine, CompactEngine) or spec.cluster.sync_every > 1 or has_gates:
        return None
    return StartWeights(engine)
