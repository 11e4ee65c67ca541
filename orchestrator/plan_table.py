"""The plan as a table: what is trained in each stage, and how a batch is dealt to the workers."""

from __future__ import annotations

from jobs.narrate import workers_text
from jobs.preflight import Checked
from orchestrator.console import say, show_pairs, show_table, size_text
from slora.names import kinds


def show(checked: Checked) -> None:
    """Prints the plan for people."""
    plan, model = checked.plan, checked.model
    targets = f"{len(plan.targets)} layers ({', '.join(kinds(plan.targets))})"
    show_pairs(
        [
            ("run", f"{plan.name}, {plan.kind}"),
            ("base", f"{model.folder}, {model.architecture}"),
            ("parameters", f"{plan.model_parameters:,} ({size_text(model.bytes)} on disk)"),
            ("targets", targets if plan.targets else "every parameter"),
            ("data", f"{checked.train.format} rows, {size_text(checked.train.bytes)}"),
            ("workers", f"{plan.workers}, {plan.sharding} ({plan.sharding_reason})"),
            ("batch", _batch(checked)),
            *(("note", f"{line}.") for line in plan.notes),
        ]
    )
    say("")
    rows = [
        (
            stage.name,
            "by epochs" if stage.steps is None else f"{stage.steps:,}",
            f"{stage.trainable + plan.head:,}",
            f"{plan.share(stage):.2%}",
            f"{stage.learning_rate:g}",
        )
        for stage in plan.stages
    ]
    headers = ("stage", "steps", "trainable", "share", "learning rate")
    show_table(rows, headers=headers, right=headers[1:])


def _batch(checked: Checked) -> str:
    plan = checked.plan
    dealt = f"{workers_text(plan.workers)} x {plan.accumulation} micro-batches"
    return f"{plan.batch_size} sequences = {dealt} of {plan.micro_batch_size}"
