"""The learning rates of a run: what its spec sets, and what the rule gives. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from jobs.plan.rate_rule import (
    Family,
    RateSubject,
    compute_head_rate,
    compute_rule_rate,
    find_mask_factor,
)
from jobs.spec.schema import MethodSection, RunSpec
from jobs.spec.sections.training import AUTO_RATE, RATE_KEYS

SpecT = TypeVar("SpecT", bound=RunSpec)


@dataclass(frozen=True)
class RateChoice:
    """The settled rates of a run's spec, and which of them come from the rule."""

    learning_rate: float | None = None
    sparse_learning_rate: float | None = None
    head_learning_rate: float | None = None
    by_rule: tuple[str, ...] = ()
    """Keys of `train`. If none is open in the spec, its rates are not repeated here."""
    reason: str = "set in the spec"


SET_RATES = RateChoice()


def choose_rates(spec: RunSpec, *, hidden: int, keeps_head: bool) -> RateChoice:
    """Return the rates that a spec sets, and the rule's where it leaves them open.

    `hidden`: width of the model. `keeps_head`: a classifier starts with the head of its files,
    which is trained at the rate of its stage, as it is no new one.
    """
    train, method = spec.train, spec.method
    has_sparse_stage = method.kind in ("slora", "sparse")
    by_rule = ["learning_rate"] if train.learning_rate == AUTO_RATE else []
    rate, sparse_rate = train.learning_rate, train.sparse_learning_rate
    main_stage = "sparse" if method.kind == "sparse" else "other"
    if rate == AUTO_RATE:
        rate = _compute_stage_rate(spec, main_stage, hidden)
    leaves_sparse = sparse_rate is None and by_rule and method.kind == "slora"
    if sparse_rate == AUTO_RATE or leaves_sparse:
        sparse_rate = _compute_stage_rate(spec, "sparse", hidden) if has_sparse_stage else None
        by_rule += ["sparse_learning_rate"] if has_sparse_stage else []
    head_rate = train.head_learning_rate
    if head_rate == AUTO_RATE:
        head_rate = None if keeps_head else compute_head_rate(hidden)
        if spec.model.task == "sequence-classification":
            by_rule.append("head_learning_rate")
    if all(getattr(train, key) != AUTO_RATE for key in RATE_KEYS):
        return SET_RATES
    rule = f"the rule for a {get_family(spec)}, {hidden:,} wide"
    reason = rule if by_rule else SET_RATES.reason
    return RateChoice(rate, sparse_rate, head_rate, tuple(by_rule), reason)


def set_rates(spec: SpecT, choice: RateChoice) -> SpecT:
    """Return the spec with the chosen rates."""
    if choice.learning_rate is None:
        return spec
    rates = {key: getattr(choice, key) for key in RATE_KEYS}
    return spec.model_copy(update={"train": spec.train.model_copy(update=rates)})


def get_family(spec: RunSpec) -> Family:
    """Return the family of models that the rule knows, by the task."""
    is_classifier = spec.model.task == "sequence-classification"
    return "classifier" if is_classifier else "language model"


def make_rate_subject(
    method: MethodSection, stage: str, family: Family, hidden: int
) -> RateSubject:
    """Return what the stage trains: `sparse`, or the only other one of the method's kind."""
    if stage == "sparse":
        factor = find_mask_factor(method.mask)
        return RateSubject("entries", family, hidden, method.density, factor)
    if method.kind == "full":
        return RateSubject("entries", family, hidden)
    share = method.factor_density if method.factor_pruning == "fixed" else 1.0
    is_initialised = method.kind == "lora" and method.init != "zero"
    return RateSubject("factors", family, hidden, share, "initialised" if is_initialised else None)


def _compute_stage_rate(spec: RunSpec, stage: str, hidden: int) -> float:
    return compute_rule_rate(make_rate_subject(spec.method, stage, get_family(spec), hidden))
