"""The plan of a run, completed by the model that was loaded and by its tokenised rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs.plan.plan import MeasuredFacts, ModelShape, Plan, add_tallies, complete_plan
from jobs.plan.token_tally import require_rows
from jobs.train.data.worker_feeds import read_tallies
from jobs.train.model.shard_access import count_elements
from jobs.train.request import Request
from slora.layers.token_rows import SUFFIX


def complete_by_model(
    request: Request,
    model: Any,
    shapes: Mapping[str, tuple[int, int]],
    *,
    sequences: int | None,
) -> Plan:
    """Return the request's plan for the loaded model, whose targets have these shapes.

    `sequences`: those of an epoch, if the plan has epochs. Raise InputError if it does not hold.
    """
    head = map(model.get_submodule, request.plan.head_modules)
    head_size = sum(parameter.numel() for module in head for parameter in module.parameters())
    # Trained rows of the embedding are trained as a head is, in every stage.
    head_size += sum(p.numel() for n, p in model.named_parameters() if n.endswith(SUFFIX))
    parameters = sum(map(count_elements, model.parameters())) - head_size
    plan = request.plan
    if not plan.tallies and not request.spec.data.streaming:
        # Nothing was tokenised before the workers started.
        plan = add_tallies(plan, tallies := read_tallies(request))
        require_rows(tallies, limit=request.spec.data.max_dropped)
    shape = ModelShape(parameters, shapes, head_size, head_modules=plan.head_modules)
    facts = MeasuredFacts(shape, sequences)
    plan = complete_plan(plan, request.spec, facts)
    return replace(plan, attention=model.config._attn_implementation)
