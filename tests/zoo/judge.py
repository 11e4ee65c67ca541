"""The columns of the table: each a function that returns if it is right, and raises if not."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.zoo.case import ZooCase
from tests.zoo.cells import WrongError
from tests.zoo.stock import (
    call_without_cache,
    compute_row_logits,
    compute_stock_loss,
    encode_rows,
    find_gradients,
    list_head_parameters,
    load_peft,
    load_stock,
    read_tensors,
)
from tests.zoo.trainings import Forward, Training

EXACT = 1e-5
"""Largest difference of logits, as a share of their standard deviation, of rows in one sequence."""
CLOSE = 1e-4
"""The same between two ways of computing the same weights, such as a merged update."""
PEFT_WEIGHTS = "adapter_model.safetensors"
COMMON = {"model", "base_model", "language_model", "layers", "layer", "block", "encoder", "decoder",
          "self_attn", "attention", "mlp"}  # fmt: skip
"""Parts of names that say nothing about a layer."""


def require(condition: object, reason: str) -> None:
    """Raise WrongError with the reason unless the condition holds."""
    if not condition:
        raise WrongError(reason)


def judge_plan(case: ZooCase, plan: Mapping[str, Any], training: Training) -> None:
    """Compare the plan with the stock model, with the run and with its adapter."""
    model, info = load_stock(case)
    head = list_head_parameters(case, model, info)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    head_size, total = sum(sizes[name] for name in head), sum(sizes.values())
    require(
        plan["model_parameters"] == total,
        f"plan: {plan['model_parameters']:,} parameters, model: {total:,}",
    )
    require(plan["head"] == head_size, f"plan: a head of {plan['head']:,}, model: {head_size:,}")
    for key in ("model_parameters", "head", "targets", "target_weights"):
        require(
            _as_list(plan[key]) == _as_list(training.final_plan[key]),
            f"{key}: {_differ(plan[key], training.final_plan[key])} (plan, run)",
        )
    _judge_targets(plan, training, set(sizes))
    _judge_coverage(model, plan, head)


def _judge_targets(plan: Mapping[str, Any], training: Training, parameters: set[str]) -> None:
    assert training.adapter is not None
    trained = list_adapted_layers(training.adapter, parameters)
    targets = set(plan["targets"])
    require(trained == targets, f"targets: {_differ(targets, trained)} (plan, adapter)")
    stage = plan["stages"][-1]["trainable"]
    count = sum(
        math.prod(shape)
        for name, (shape, _) in read_tensors(training.adapter).items()
        if ".lora_" in name
    )
    if (training.adapter / PEFT_WEIGHTS).is_file():
        require(stage == count, f"plan: {stage:,} trained parameters, adapter: {count:,}")


def list_adapted_layers(adapter: Path, parameters: Iterable[str]) -> set[str]:
    """Return the layers, or the model's parameters, that an adapter changes beside the head."""
    if not (adapter / PEFT_WEIGHTS).is_file():
        from slora.formats.merge import get_layer_shapes
        from slora.formats.peft import read_adapter

        return set(get_layer_shapes(read_adapter(adapter)))
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    names = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0].removesuffix(".base_layer")
        for name in read_tensors(adapter)
        if ".lora_A" in name
    }
    endings = config.get("target_parameters") or []
    # PEFT matches these names from their end, at a dot.
    fused = {
        name for name in parameters if any(f".{name}".endswith(f".{ending}") for ending in endings)
    }
    owners = {name.rpartition(".")[0] for name in fused}
    return {name for name in names if name not in owners} | fused


def _judge_coverage(model: nn.Module, plan: Mapping[str, Any], head: set[str]) -> None:
    """Require that every linear layer is a target, a head, or named by the plan as left out."""
    output = model.get_output_embeddings()  # type: ignore[operator]
    heads = {name.rpartition(".")[0] for name in head}
    text = read_statements(plan)
    targets = set(plan["targets"])
    for name, module in model.named_modules():
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if not is_linear or module is output or name in targets or name in heads:
            continue
        parts = [part for part in name.split(".") if part not in COMMON and not part.isdigit()]
        require(
            any(part in text for part in parts),
            f"{name} ({type(module).__name__}) is no target, and the plan does not say so",
        )


def read_statements(plan: Mapping[str, Any]) -> str:
    """Return what a plan says beside its targets and figures, as one text."""
    silent = ("targets", "estimate", "stages", "name")
    return json.dumps({key: value for key, value in plan.items() if key not in silent})


def judge_losses(training: Training, kind: str) -> None:
    """Require finite losses, and a loss of the same rows that falls in each stage."""
    require(training.losses, "no step was recorded")
    for number, loss in enumerate(training.losses, start=1):
        require(math.isfinite(loss), f"the loss of step {number} is {loss}")
    loss = {name: values["loss"] for name, values in training.evaluations.items()}
    pairs = [("before", "sparse"), ("handoff", "end")] if kind == "slora" else [("before", "end")]
    for start, end in pairs:
        require(
            loss[end] < loss[start],
            f"the loss does not fall: {loss[start]:.4f} {start}, {loss[end]:.4f} {end}",
        )


def judge_frozen(case: ZooCase, training: Training) -> None:
    """Require that after the run all weights but the head are those of the stock model."""
    model, info = load_stock(case)
    head = list_head_parameters(case, model, info)
    stock = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    require(
        stock.keys() == training.state.keys(),
        f"tensors after the run: {_differ(stock, training.state)} (stock, run)",
    )
    for name, tensor in stock.items():
        if name not in head:
            require(
                torch.equal(tensor.detach(), training.state[name].to(tensor.dtype)),
                f"{name} is frozen, and was changed",
            )


def judge_full(case: ZooCase, training: Training) -> None:
    """Require that each weight with a gradient has changed, and no other tensor."""
    assert training.adapter is not None
    before, info = load_stock(case)
    after, _ = load_stock(case, training.adapter)
    head, gradients = list_head_parameters(case, before, info), find_gradients(case, before)
    trained, later = dict(after.named_parameters()), find_gradients(case, after)
    for name, parameter in before.named_parameters():
        if name in head:
            continue
        is_same = torch.equal(parameter, trained[name])
        require(
            not (is_same and gradients[name] > 1e-7), f"{name} has a gradient, and is as before"
        )
        # A weight behind one that begins with zeros has its first gradient in the second step.
        has_gradient = gradients[name] or later[name]
        require(is_same or has_gradient, f"{name} has no gradient, and was changed")
    buffers = dict(after.named_buffers())
    for name, buffer in before.named_buffers():
        require(torch.equal(buffer, buffers[name]), f"the buffer {name} was changed")


def judge_packing(case: ZooCase, training: Training) -> None:
    """Require the logits and the loss of the stock model on each row alone."""
    model, _ = load_stock(case)
    rows = encode_rows(case)
    stock = [compute_row_logits(case, model, ids) for ids in rows]
    first = [forward for forward in training.forwards if forward.trains][:1]
    compared: set[int] = set()
    is_packed, worst = False, 0.0
    for forward in [*_list_forwards_of_the_base(training), *first]:
        for sequence, tokens in enumerate(forward.inputs["input_ids"].tolist()):
            positions = {number: _find(tokens, ids) for number, ids in enumerate(rows)}
            starts = {number: at for number, at in positions.items() if at is not None}
            is_packed, compared = is_packed or len(starts) > 1, compared | starts.keys()
            for number, start in starts.items():
                worst = max(
                    worst, _compare_row(forward, sequence, start, stock[number], len(rows[number]))
                )
    require(len(compared) == len(rows), "the tokens of the rows are not in the model's inputs")
    says_so = says_unpacked(training.plan) or says_unpacked(training.final_plan)
    require(is_packed or says_so, "rows are not packed, and the plan does not say so")
    require(worst <= EXACT, f"packed differs from alone by {worst:.1e} of the logits' std")
    loss, expected = training.evaluations["before"]["loss"], compute_stock_loss(case, model)
    require(abs(loss - expected) < 1e-4 * expected, f"loss {loss:.5f}, stock {expected:.5f}")


def says_unpacked(plan: Mapping[str, Any]) -> bool:
    """Return whether a plan says, in its own field or in a note, that rows are not packed."""
    choice = plan.get("packing")
    if isinstance(choice, Mapping):
        return choice.get("mode") == "off" and bool(choice.get("reason"))
    return any("pack" in note for note in plan.get("notes", ()))


def _list_forwards_of_the_base(training: Training) -> list[Forward]:
    """Return the forwards of the first evaluation, and those that tried the model before it.

    The evaluation comes after the first step, with the weights of the start.
    """
    forwards = list[Forward]()
    steps = 0
    for trains, group in itertools.groupby(training.forwards, lambda forward: forward.trains):
        steps += trains
        if steps > 1:
            break
        forwards += [] if trains else group
    return forwards


def _compare_row(forward: Forward, sequence: int, start: int, stock: Tensor, length: int) -> float:
    """Return the largest difference of a row's logits, but those of its last token."""
    positions = forward.inputs.get("logits_to_keep")
    if not isinstance(positions, Tensor):
        positions = torch.arange(forward.logits.shape[1])
    inside = (positions >= start) & (positions < start + length - 1)
    actual = forward.logits[sequence, : len(positions)][inside].float()
    expected = stock[positions[inside] - start]
    return float((actual - expected).abs().max() / expected.std())


def _find(tokens: list[int], ids: list[int]) -> int | None:
    """Return where the row's tokens begin in a sequence, or None."""
    for start in range(len(tokens) - len(ids) + 1):
        if tokens[start : start + len(ids)] == ids:
            return start
    return None


def judge_names(case: ZooCase, training: Training, scratch: Path) -> None:
    """Compare the tensors of the saved model with those that the stock model saves."""
    assert training.adapter is not None
    saved, base = read_tensors(training.adapter), read_tensors(case.base)
    if case.group != "CLASSIFY" and saved == base:
        return
    load_stock(case)[0].save_pretrained(scratch)
    stock = read_tensors(scratch)
    require(saved.keys() == stock.keys(), f"names: {_differ(stock, saved)} (stock, saved)")
    for name, facts in stock.items():
        require(saved[name] == facts, f"{name} is {saved[name]}, and {facts} in the stock model")


def judge_reload(case: ZooCase, training: Training, kind: str) -> None:
    """Compare the logits of the last evaluation with those of the adapter from the store."""
    from jobs.store.open import open_store
    from jobs.tools.load_adapter import load_adapted_model

    last = _find_last_evaluation(case, training)
    store = open_store(f"file://{case.folder / 'store'}")
    loaded = [load_adapted_model(store, training.label).model]
    if kind == "full":
        assert training.adapter is not None
        loaded.append(load_stock(case, training.adapter)[0])
    for model in loaded:
        with torch.no_grad():
            logits = call_without_cache(model.eval(), last.inputs).logits
        _require_close(logits, last.logits, "reloaded and in memory")
    base, _ = load_stock(case)
    with torch.no_grad():
        logits = call_without_cache(base, last.inputs).logits
    difference = _measure(logits, last.logits)
    require(difference > 10 * CLOSE, f"trained and base differ by {difference:.1e} only")


def _find_last_evaluation(case: ZooCase, training: Training) -> Forward:
    """Return the last call on rows: what follows it may be samples, which are generated."""
    rows = encode_rows(case) if case.task == "causal-lm" else []
    for forward in reversed(training.forwards):
        sequences = forward.inputs["input_ids"].tolist()
        has_rows = any(_find(tokens, ids) is not None for tokens in sequences for ids in rows)
        if not forward.trains and (has_rows or not rows):
            return forward
    raise WrongError("no evaluation was observed")


def judge_peft(case: ZooCase, training: Training) -> None:
    """Compare stock PEFT with the merged model, on rows alone."""
    from jobs.store.open import open_store
    from jobs.tools.load_adapter import load_adapted_model

    assert training.adapter is not None
    if not (training.adapter / PEFT_WEIGHTS).is_file():
        text = read_statements(training.plan)
        require("PEFT" in text or "compact" in text, "not a PEFT folder, and the plan is silent")
        return
    store = open_store(f"file://{case.folder / 'store'}")
    merged = load_adapted_model(store, training.label, merged=True).model.eval()
    adapted = load_peft(case, training.adapter)
    for ids in encode_rows(case)[:2]:
        _require_close(
            compute_row_logits(case, adapted, ids),
            compute_row_logits(case, merged, ids),
            "stock PEFT and merged",
        )
    _require_head(training.adapter, dict(adapted.named_parameters()))


def _require_head(adapter: Path, loaded: Mapping[str, Tensor]) -> None:
    """Require that PEFT holds every tensor of the file."""
    values = [tensor.detach() for tensor in loaded.values()]
    for name, tensor in load_file(adapter / PEFT_WEIGHTS).items():
        is_held = any(
            value.shape == tensor.shape and torch.equal(value, tensor) for value in values
        )
        require(is_held, f"stock PEFT does not hold {name}")


def judge_shards(replicated: list[Training], sharded: list[Training]) -> None:
    """Require the same losses of a run with a replicated and with a sharded base.

    Where two singular values are close, the hand-off cuts between them by the last bits of the
    sparse values, and Adam makes whole steps of that: the losses after it may differ by more.
    """
    ours, theirs = replicated[0].losses, sharded[0].losses
    require(len(ours) == len(theirs), f"{len(ours)} and {len(theirs)} steps")
    sparse_steps = replicated[0].final_plan["stages"][0]["steps"]
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        tolerance = 1e-5 if number <= sparse_steps else 1e-3
        require(
            abs(one - other) <= tolerance * abs(one),
            f"step {number}: loss {other:.5f} sharded, {one:.5f} replicated",
        )


def _require_close(actual: Tensor, expected: Tensor, what: str) -> None:
    difference = _measure(actual, expected)
    require(
        difference <= CLOSE, f"{what} differ by {difference:.1e} of the logits' standard deviation"
    )


def _measure(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise WrongError(f"logits of {tuple(actual.shape)} and {tuple(expected.shape)}")
    difference = (actual.float() - expected.float()).abs().max() / expected.float().std()
    return float(difference) if bool(difference.isfinite()) else math.inf


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _differ(first: Any, second: Any) -> str:
    """Return what of two values is in one of them only."""
    if isinstance(first, int | float | str):
        return f"{first} and {second}"
    one, other = set(first), set(second)
    lacking, extra = sorted(one - other), sorted(other - one)
    if not lacking and not extra:
        return "another order"
    return (
        f"only in the first {len(lacking)} {lacking[:2]}, only in the second "
        f"{len(extra)} {extra[:2]}"
    )
