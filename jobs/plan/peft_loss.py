"""Whether stock PEFT holds the adapter of a planned run: what a note of the plan says. No torch."""

from __future__ import annotations

from pydantic import TypeAdapter

from jobs.errors import InputError, JobsError
from jobs.inspect.answer_cache import recall_answer
from jobs.inspect.inspection_client import inspect_model
from jobs.inspect.model_files import ModelFiles
from jobs.spec.schema import MethodSection, RunSpec

_LOSS = TypeAdapter(str)


def find_peft_note(
    spec: RunSpec, model: ModelFiles, targets: tuple[str, ...], labels: tuple[str, ...]
) -> str:
    """Return a note on an adapter of these targets that PEFT can't hold, or an empty string."""
    if not targets or not _is_plain_lora(spec.method):
        return ""
    shapes = {name: model.linears[name] for name in targets}
    arguments = {
        "task": spec.model.task,
        "targets": {name: [*shape, shape.experts] for name, shape in shapes.items()},
        "head_modules": list(model.description.head),
        "labels": list(labels),
        "trains_tokens": bool(spec.method.train_tokens),
    }
    config = (model.folder / "config.json").read_text(encoding="utf-8")
    try:
        loss = recall_answer(
            "peft",
            [config, arguments],
            parse=_LOSS.validate_json,
            ask=lambda: inspect_model("find_peft_loss", model.folder, **arguments),
        )
    except (InputError, JobsError):
        # Nothing is known before the run, which tries it again when it publishes.
        return ""
    if not loss:
        return ""
    return (
        f"the adapter will be stored in the compact form, which stock PEFT does not read: {loss}. "
        "Merge it for other programs"
    )


def _is_plain_lora(method: MethodSection) -> bool:
    """Return whether the adapter would be stored as a plain LoRA, if PEFT can hold it."""
    if method.kind == "slora" and method.handoff.residual != "drop":
        return False
    is_pruned = method.factor_density < 1 and method.factor_pruning == "gates"
    return method.kind in ("slora", "lora") and not is_pruned and method.factor_storage == "peft"
