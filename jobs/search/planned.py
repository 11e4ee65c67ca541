"""What a trial would cost, by its plan, before it starts: and whether it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import Fault, InputError
from jobs.federate.check import check_federated
from jobs.federate.section import FederationSection
from jobs.plan import Plan
from jobs.preflight import Checked, absolute, check, replanned
from jobs.search.door import Search
from jobs.search.rows import Row
from jobs.search.section import Constraints


@dataclass(frozen=True)
class Planned:
    """A trial that may run, and its row with the plan's figures."""

    row: Row
    checked: Checked
    federation: FederationSection | None = None


def planned(search: Search, checked: Checked, row: Row) -> Planned | Row:
    """The trial's plan, or its row as rejected, with the reason."""
    federation = None
    try:
        asked = search.federated(row.config)
        if asked is not None:
            federation = asked.section
            found = check_federated(replace(asked, spec=absolute(asked.spec))).checked
        else:
            spec = absolute(search.trial(row.config))
            found = check(spec) if _elsewhere(row.config) else replanned(checked, spec, past=False)
    except InputError as wrong:
        return replace(row, status="rejected", reason=str(wrong.faults[0]))
    row = replace(row, **costs(found.plan))
    reason = broken(search.section.constraints, found.plan)
    if reason is not None:
        return replace(row, status="rejected", reason=reason)
    return Planned(row, found, federation)


def _elsewhere(config: Mapping[str, Any]) -> bool:
    """Whether the trial has a model or data of its own, which nobody has looked at."""
    return any(key.startswith(("model.", "data.")) for key in config)


def costs(plan: Plan) -> dict[str, Any]:
    """The plan's figures under the names that rows have for them."""
    seen = plan.prediction
    return {
        "trainable_share": max(plan.share(stage) for stage in plan.stages),
        "node_bytes": float(seen.way.out) if seen and seen.way.out is not None else None,
        "adapter_bytes": float(seen.adapter) if seen else None,
        "memory_bytes": float(seen.way.memory.peak) if seen else None,
    }


def impossible(reasons: Sequence[str]) -> InputError:
    """Why no trial may run: the commonest of the plan's reasons, by its key."""
    common = max(reasons, key=reasons.count)
    key, _, problem = common.partition(": ")
    all_of = f"{problem.rstrip('.')}; so it is in {reasons.count(common)} of {len(reasons)} trials"
    return InputError([Fault(key, all_of, "Ease it, or search elsewhere.")])


def broken(limits: Constraints, plan: Plan) -> str | None:
    """The first constraint that the plan breaks, in words."""
    seen = plan.prediction
    found = {
        "trainable_share": max(plan.share(stage) for stage in plan.stages),
        "node_bytes_per_step": max(
            (seen.way.out_a_step(stage.name) for stage in plan.stages), default=0
        )
        if seen
        else None,
        "adapter_mb": seen.adapter / 1e6 if seen else None,
        "memory_gb": seen.way.memory.peak / 1e9 if seen else None,
    }
    for name, value in found.items():
        limit = getattr(limits, name)
        if limit is not None and value is not None and value > limit:
            return f"search.constraints.{name}: {value:.4g} is above {limit:g}"
    return None
