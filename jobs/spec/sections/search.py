"""The `search` section: the keys to vary, how trials are compared, and what they may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from jobs.spec.limits import Count, Integer, Positive, PositiveShare, Real, SearchSeed, Tokens
from jobs.spec.metrics import METRICS, Metric
from jobs.spec.strict_model import StrictModel

MAX_SPACE_KEYS = 500
"""More than a spec has keys."""

Values = Annotated[tuple[Any, ...], Field(min_length=1, strict=False)]
Bounds = Annotated[tuple[Real, Real], Field(strict=False)]


class Domain(StrictModel):
    """The values that a key may take: exactly one of these."""

    choice: Values | None = None
    """One value of a list."""
    grid: Values | None = None
    """Every value of a list, crossed with the other grids; other keys are sampled per crossing."""
    uniform: Bounds | None = None
    """A number between two bounds."""
    loguniform: Bounds | None = None
    """A number between two bounds above 0, uniform in its logarithm."""
    randint: Annotated[tuple[Integer, Integer], Field(strict=False)] | None = None
    """An integer from the first to the second, both included."""

    @property
    def kind(self) -> str:
        """Return the name of the key that is set."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def finite(self) -> Sequence[Any] | None:
        """Return all values in order, or None if they cannot be listed."""
        if self.randint is not None:
            low, high = self.randint
            return range(low, high + 1)
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the bounds of a range of real numbers."""
        bounds = self.uniform if self.uniform is not None else self.loguniform
        assert bounds is not None
        return bounds

    def list_ends(self) -> Sequence[Any]:
        """List the values whose validity implies that of all: a whole list, or the two bounds."""
        if self.randint is not None:
            return self.randint
        return self.finite if self.finite is not None else self.bounds


class SearchBudget(StrictModel):
    """Limits that end a search before all samples are done; running trials are stopped."""

    trials: Count | None = None
    tokens: Tokens | None = None
    """Tokens trained on, summed over all trials."""
    seconds: Positive | None = None
    """Seconds since the search started."""
    cost: Positive | None = None
    """Cost in the currency of cluster.machine.price_per_hour."""


class SearchConstraints(StrictModel):
    """Limits on a trial's plan; a trial above one is rejected before it starts."""

    trainable_share: PositiveShare | None = None
    """Share of the model's parameters, in the stage that trains most."""
    node_bytes_per_step: Positive | None = None
    """Bytes that leave a machine per step, in the stage that sends most."""
    adapter_mb: Positive | None = None
    """Size of the adapter's file in MB (10^6 bytes)."""
    memory_gb: Positive | None = None
    """Peak memory of a worker in GB (10^9 bytes)."""


class SearchSection(StrictModel):
    """A hyperparameter search over any keys of the spec."""

    space: Annotated[Mapping[str, Domain], Field(min_length=1, max_length=MAX_SPACE_KEYS)]
    """Domains by key, such as `method.rank: {choice: [4, 8]}`."""
    metric: Metric = "eval_loss"
    mode: Literal["min", "max"] | None = None
    """The better direction; by default that of the metric."""
    also_minimise: Annotated[
        tuple[Literal["trainable_share", "node_bytes", "adapter_bytes", "memory_bytes"], ...],
        Field(strict=False),
    ] = ()
    """Costs that tpe minimises beside the metric (a multi-objective search)."""
    samples: Count | None = None
    """Number of trials; by default 12, or the whole grid."""
    algorithm: Literal["random", "tpe", "grid"] = "random"
    """tpe: Optuna's tree-structured Parzen estimator, which learns from earlier trials."""
    scheduler: Literal["none", "asha", "hyperband", "pbt"] = "asha"
    """Stops weak trials early (asha, hyperband), or lets them copy a better one's state (pbt)."""
    max_concurrent: Count | None = None
    """Trials at once; by default as many as the cluster has room for."""
    budget: SearchBudget = SearchBudget()
    constraints: SearchConstraints = SearchConstraints()
    seed: SearchSeed = 0

    @property
    def direction(self) -> Literal["min", "max"]:
        """Return the direction in which the metric gets better."""
        return self.mode or METRICS[self.metric][1]

    @property
    def evaluation_key(self) -> str:
        """Return the metric's name in an evaluation."""
        return METRICS[self.metric][0]
