"""The `search:` section of a spec: what is varied, how it is judged, and how much it may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.spec.metrics import METRICS, Metric
from jobs.spec.schema import StrictModel

Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False)]
Bounds = Annotated[tuple[float, float], Field(strict=False)]


class Domain(StrictModel):
    """The values of one key: exactly one of these."""

    choice: Values | None = None
    """One of a list."""
    grid: Values | None = None
    """Each of a list, crossed with the other grids; the rest is drawn anew for each crossing."""
    uniform: Bounds | None = None
    """Between two numbers."""
    loguniform: Bounds | None = None
    """Between two numbers above 0, every factor as likely."""
    randint: Annotated[tuple[int, int], Field(strict=False)] | None = None
    """A whole number from the first to the second, both included."""

    @property
    def kind(self) -> str:
        """Which of them it is."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def finite(self) -> Sequence[Any] | None:
        """All values in order, where they can be listed."""
        if self.randint is not None:
            low, high = self.randint
            return range(low, high + 1)
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a range of real numbers."""
        bounds = self.uniform if self.uniform is not None else self.loguniform
        assert bounds is not None
        return bounds

    def list_ends(self) -> Sequence[Any]:
        """The values that tell whether all are allowed: each of a list, or the two outermost."""
        if self.randint is not None:
            return self.randint
        return self.finite if self.finite is not None else self.bounds


class SearchBudget(StrictModel):
    """Where the search ends before its samples do. What runs then is stopped."""

    trials: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)
    """Trained on, over all trials."""
    seconds: float | None = Field(default=None, gt=0)
    """From the search's start."""
    cost: float | None = Field(default=None, gt=0)
    """In the currency of cluster.machine.price_per_hour."""


class SearchConstraints(StrictModel):
    """What no trial may exceed, by its plan; one that would is rejected before it starts."""

    trainable_share: float | None = Field(default=None, gt=0, le=1)
    """Of the model's parameters, in the stage that trains most."""
    node_bytes_per_step: float | None = Field(default=None, gt=0)
    """Out of a node, in the stage that sends most."""
    adapter_mb: float | None = Field(default=None, gt=0)
    """Of the adapter's file, in MB of 10^6 bytes."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Peak of a worker, in GB of 10^9 bytes."""


class SearchSection(StrictModel):
    """A search over any keys of the spec beside it."""

    space: Annotated[Mapping[str, Domain], Field(min_length=1)]
    """Domains by key, as `method.rank: {choice: [4, 8]}`."""
    metric: Metric = "eval_loss"
    mode: Literal["min", "max"] | None = None
    """Which way is better; by the metric where it is not given."""
    also_minimise: Annotated[
        tuple[Literal["trainable_share", "node_bytes", "adapter_bytes", "memory_bytes"], ...],
        Field(strict=False),
    ] = ()
    """Costs that tpe weighs beside the metric (a search with several objectives)."""
    samples: int | None = Field(default=None, ge=1)
    """Trials to propose, 12 where it is not given; for a grid all of it."""
    algorithm: Literal["random", "tpe", "grid"] = "random"
    """tpe: Optuna's tree-structured Parzen estimator, which learns from the trials before."""
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = "asha"
    """Which trials are stopped early (asha, hyperband), or take over another's state (pbt)."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Trials at once; as many as the cluster has room for where it is not given."""
    budget: SearchBudget = SearchBudget()
    constraints: SearchConstraints = SearchConstraints()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def direction(self) -> Literal["min", "max"]:
        """Which way the metric is better."""
        return self.mode or METRICS[self.metric][1]

    @property
    def evaluation_key(self) -> str:
        """What an evaluation calls the metric."""
        return METRICS[self.metric][0]
