"""Try how a model's rows can be packed: each row's logits must be those of the row alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jobs.plan.packing_choice import PackingChoice, PackingMode, ProbeAnswer
from jobs.train.attention.row_attention import use_full_attention, use_row_attention
from jobs.train.data.collate import Batch, Collator
from jobs.train.data.model_inputs import list_layer_types, make_model_inputs
from jobs.train.data.packing import TokenSequence, join_samples
from jobs.train.data.tokenization import IGNORE_INDEX, Sample
from jobs.train.model.shrunken_copy import Build, find_smallest_limit, make_shrunken_model

LINES = ((21, 1, 13), (30, 6))
"""Tokens of the rows in two packed sequences: more than one sequence, rows longer than a window,
and padding."""
LINE_LENGTH = 40
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
"""In standard deviations of the logits, and in the largest gradient."""
CAUSAL_TOLERANCE = 1e-3
"""Above the rounding of any kernel, and far below what a token that is read changes."""
ON = {
    "positions": "exact with position_ids alone",
    "mask": "exact with a mask of the rows",
    "layer-masks": "exact with a mask for each type of layer",
}


@dataclass(frozen=True)
class PackedRows:
    """Rows packed into sequences, each of them alone, and padded."""

    packed: Batch
    alone: tuple[Batch, ...]
    padded: tuple[Batch, ...]
    """The rows side by side, padded at their ends and at their starts."""


def answer_probe(config: Any, build: Build) -> ProbeAnswer:
    """Return how the model with this config can be packed, from shrunken copies of it."""
    any_length = probe_copy(config, build, exceed_limits=True)
    limit = find_smallest_limit(config)
    within_limit = any_length
    if limit is not None and (any_length.by_row or not any_length.is_on):
        within_limit = probe_copy(config, build, exceed_limits=False)
        # Rows that exceed a window have a mask: only shorter ones try attention by row.
        by_row = any_length.by_row and within_limit.by_row
        any_length = replace(any_length, by_row=by_row)
    return ProbeAnswer(any_length, within_limit, limit, reads_ahead(config, build))


def reads_ahead(config: Any, build: Build) -> bool:
    """Return whether a token's logits depend on later tokens, in a shrunken copy."""
    try:
        model = make_shrunken_model(config, exceed_limits=False, build=build)
    except ValueError:
        return False
    tokens = torch.arange(10, 18).repeat(2, 1)
    tokens[1, -1] = 20
    with torch.no_grad():
        first, second = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return bool((first - second)[:-1].abs().max() > CAUSAL_TOLERANCE * first.std())


def probe_copy(config: Any, build: Build, *, exceed_limits: bool) -> PackingChoice:
    """Return how a shrunken copy can be packed; undecided if no copy could be made."""
    try:
        model = make_shrunken_model(config, exceed_limits=exceed_limits, build=build)
    except ValueError:
        return PackingChoice("undecided", "decided at load")
    return probe_model(model)


def probe_model(model: Any) -> PackingChoice:
    """Return the first way to pack with which every row has its own logits and gradients."""
    errors = {}
    for mode in list_modes(model):
        error = measure_error(model, mode)
        if error <= TOLERANCE:
            by_row = mode == "positions" and measure_row_error(model) <= TOLERANCE
            return PackingChoice(mode, ON[mode], by_row=by_row)
        errors[mode] = error
    return PackingChoice("off", explain_error(model, min(errors.values())))


def list_modes(model: Any) -> list[PackingMode]:
    """List the ways to pack that a model may be exact with, the cheapest first."""
    modes: list[PackingMode] = ["positions", "mask"]
    return [*modes, "layer-masks"] if list_layer_types(model) else modes


def explain_error(model: Any, error: float) -> str:
    """Return the reason why a model's rows are not packed."""
    name = type(model).__name__
    if error == float("inf"):
        return f"{name} takes neither position_ids nor a mask that keeps packed rows apart"
    return (
        f"packed rows of {name} do not have the logits that they have alone (the difference is "
        f"{error:.0e} of their standard deviation)"
    )


def measure_error(model: Any, mode: PackingMode) -> float:
    """Return the largest difference of a packed row's logits from the row alone, in standard
    deviations; infinite if the model cannot compute it, or if the gradients differ.
    """
    rows = make_rows(mode, vocabulary=model.get_input_embeddings().weight.shape[0])
    try:
        alone = _compute_rows(model, rows.alone)
        packed = _compute_rows(model, [rows.packed])
    # A model that does not know an input, or another shape of a mask, raises whatever it likes.
    except Exception:
        return float("inf")
    return _compare_rows(packed, alone)


def measure_row_error(model: Any) -> float:
    """Return the largest difference that attention by row makes, as `measure_error` does: of packed
    rows from rows alone, and of padded rows from the same with masks. Infinite without SDPA.
    """
    if model.config._attn_implementation != "sdpa":
        return float("inf")
    rows = make_rows("positions", vocabulary=model.get_input_embeddings().weight.shape[0])
    batches = [(rows.alone, rows.packed), *(((b,), b) for b in rows.padded)]
    try:
        expected = [_compute_rows(model, batch) for batch, _ in batches]
        if not use_row_attention(model):
            return float("inf")
        actual = [_compute_rows(model, [batch]) for _, batch in batches]
    # A model that reads its mask, or has scores that SDPA does not know, raises what it likes.
    except Exception:
        return float("inf")
    finally:
        use_full_attention(model)
    return max(map(_compare_rows, actual, expected))


def make_rows(mode: PackingMode, *, vocabulary: int) -> PackedRows:
    """Return random rows, packed in this way and alone."""
    generator = torch.Generator().manual_seed(0)
    packed, alone = Collator(0, mode, "tokens", False), Collator(0, "off", "tokens", False)
    lines = [
        join_samples(draw_sample(length, vocabulary, generator) for length in lengths)
        for lengths in LINES
    ]
    singles = [row for line in lines for row in split_rows(line)]
    return PackedRows(
        packed(lines, length=LINE_LENGTH),
        tuple(alone([row], length=len(row)) for row in singles),
        tuple(pad_rows(singles, left=left) for left in (False, True)),
    )


def pad_rows(rows: Sequence[TokenSequence], *, left: bool) -> Batch:
    """Return the rows side by side, without targets for padding to predict."""
    batch = Collator(0, "off", "tokens", False, pads_left=left)(rows, length=LINE_LENGTH)
    is_padding = batch.inputs["attention_mask"][:, :-1] == 0
    batch.labels[:, 1:].masked_fill_(is_padding, IGNORE_INDEX)
    return batch


def split_rows(line: TokenSequence) -> Iterator[TokenSequence]:
    """Yield the rows of a packed sequence."""
    for number in range(1, line.rows + 1):
        first = line.segment_ids.index(number)
        last = first + line.segment_ids.count(number)
        yield join_samples([Sample(line.input_ids[first:last], line.labels[first:last])])


def draw_sample(length: int, vocabulary: int, generator: torch.Generator) -> Sample:
    """Return a row of random tokens."""
    # Low ids are special tokens, high ones may stand for images.
    low, high = min(5, vocabulary - 1), min(vocabulary, 250)
    ids = tuple(torch.randint(low, high, (length,), generator=generator).tolist())
    return Sample(ids, (IGNORE_INDEX, *ids[1:]))


def _compute_rows(model: Any, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V] of all tokens, row by row, and the gradient of their loss."""
    model.zero_grad()
    logits, loss = [], torch.zeros(())
    for batch in batches:
        output = model(**make_model_inputs(model, batch, device=torch.device("cpu"))).logits
        length = output.shape[1]
        targets = batch.labels[:, 1:].flatten()
        loss = loss + torch.nn.functional.cross_entropy(
            output[:, :-1].flatten(0, 1), targets, reduction="sum", ignore_index=IGNORE_INDEX
        )
        is_token = _find_tokens(batch, length)
        logits.append(output[is_token].detach())
    (gradient,) = torch.autograd.grad(loss, [model.get_input_embeddings().weight])
    return torch.cat(logits), gradient


def _compare_rows(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> float:
    """Return the largest difference of the logits, in standard deviations of the expected ones;
    infinite if the gradients differ."""
    logits, gradient = expected
    error = float((actual[0] - logits).abs().max() / logits.std())
    if error <= TOLERANCE and gradient.isfinite().all():
        difference = (actual[1] - gradient).abs().max() / gradient.abs().max()
        # NaN too: padding that attends to nothing.
        return error if difference <= GRADIENT_TOLERANCE else float("inf")
    return error if error == error else float("inf")


def _find_tokens(batch: Batch, length: int) -> Tensor:
    if batch.packing == "off":
        return batch.inputs["attention_mask"].bool()
    used = [sum(lengths) for lengths in LINES]
    return torch.arange(length) < torch.tensor(used)[:, None]
