"""What a plan is made of beside the spec: the model's shapes, the facts of the data, the dtype. No
torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jobs.errors import Fault, InputError, StoreError, Unreachable
from jobs.inspect.datasets.scan import DatasetScan
from jobs.inspect.model_description import ModelDescription
from jobs.inspect.model_files import ModelFiles
from jobs.plan.attention_choice import name_kernel
from jobs.plan.dtype_choice import DtypeChoice
from jobs.plan.estimate.base_tensors import describe_base
from jobs.plan.estimate.from_spec import CheckedFacts
from jobs.plan.estimate.speed import Speed, find_speed
from jobs.plan.label_order import LabelOrder, TunedHead, order_labels
from jobs.plan.plan import ModelShape, Plan, make_plan
from jobs.plan.rate_choice import SET_RATES, RateChoice
from jobs.spec.schema import RunSpec
from jobs.store.open import open_store


@dataclass(frozen=True)
class PlanSubject:
    """What a plan is made of beside the spec."""

    shape: ModelShape
    facts: CheckedFacts
    dtype: DtypeChoice
    rates: RateChoice = SET_RATES


def describe_run(
    spec: RunSpec,
    dtype: DtypeChoice,
    model: ModelFiles,
    train_scan: DatasetScan | None,
    eval_scan: DatasetScan | None,
    *,
    with_history: bool = True,
) -> PlanSubject:
    """Return what the plan of this run is made of.

    Without `with_history` the speed of past runs is not read: with many runs that takes seconds.
    """
    shape = _describe_shape(spec, model, train_scan)
    speed = _read_speed(spec) if with_history else find_speed(spec, None)
    facts = _collect_facts(spec, model, shape.head, train_scan, eval_scan, speed)
    return PlanSubject(shape, facts, dtype)


def plan_run(spec: RunSpec, subject: PlanSubject) -> tuple[Plan | None, list[Fault]]:
    """Return the plan, or None with the faults that make it impossible."""
    plan, faults = make_plan(spec, subject.shape, facts=subject.facts)
    return plan and replace(plan, dtype=subject.dtype, rates=subject.rates), faults


def _describe_shape(spec: RunSpec, model: ModelFiles, train_scan: DatasetScan | None) -> ModelShape:
    description = model.description
    labels = LabelOrder(())
    if description.head and train_scan:
        labels = order_labels(
            train_scan.labels,
            TunedHead(description.labels, description.label_kind)
            if description.has_saved_head
            else None,
            kind=spec.data.labels,
            complete=train_scan.is_complete,
        )
    head = description.count_head_parameters(len(labels.labels))
    # Rows of single tokens are trained in every stage, as a head is.
    head += len(spec.method.train_tokens) * description.token_width
    return ModelShape(
        model.parameters,
        model.linears,
        head,
        left_out=description.left_out,
        excluded=description.excluded,
        head_modules=description.head,
        labels=labels,
        attention=name_kernel(spec.model.attention, description.attention),
        notes=tuple(filter(None, (labels.note, _note_unused(description)))),
    )


def _note_unused(description: ModelDescription) -> str:
    """Return a note on the weights of the files that the model does not use; empty if none."""
    unused = description.unused
    if not unused:
        return ""
    rest = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    names = f"{', '.join(unused[:3])}{rest}"
    return f"the files have weights that {description.model_class} does not use: {names}"


def _collect_facts(
    spec: RunSpec,
    model: ModelFiles,
    head: int,
    train_scan: DatasetScan | None,
    eval_scan: DatasetScan | None,
    speed: Speed | None,
) -> CheckedFacts:
    base = describe_base(
        model.shapes,
        model.linears,
        model.config,
        has_logits=spec.model.task != "sequence-classification",
        file_bytes=model.bytes,
    )
    return CheckedFacts(
        base,
        head,
        _count_eval_rows(spec, train_scan, eval_scan),
        speed,
        keeps_logits=bool(model.description.plain_loss),
    )


def _count_eval_rows(
    spec: RunSpec, train_scan: DatasetScan | None, eval_scan: DatasetScan | None
) -> int | None:
    """Count the held-out rows, or return None if the data have not been read in full."""
    if eval_scan is not None:
        return eval_scan.rows if eval_scan.is_complete else None
    fraction = spec.data.eval_fraction
    if fraction is None or train_scan is None or not train_scan.is_complete:
        return None
    return round(train_scan.rows * fraction)


def _read_speed(spec: RunSpec) -> Speed | None:
    try:
        return find_speed(spec, open_store(spec.store))
    except (InputError, StoreError, Unreachable):
        # check_store reports what is wrong with the store; the plan does without history.
        return find_speed(spec, None)
