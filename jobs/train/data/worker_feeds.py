"""The feeds of one worker: rows to learn from, and held-out rows to evaluate on."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from jobs.inspect.datasets.scan import DatasetScan
from jobs.plan.plan import split_batch
from jobs.train.data.global_batches import Feed
from jobs.train.data.source import RowSource
from jobs.train.data.tokenization import Sample
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL, EvaluationRequest, HeldOutRows, Request

TokenCache = dict[Any, Sample]
"""Samples by row, shared by feeds that tokenize alike."""


def make_train_feed(
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    world_size: int,
    token_cache: TokenCache | None = None,
) -> Feed:
    """Return the rows to learn from, in batches of the spec's size."""
    return _make_feed(
        request,
        _make_train_source(request),
        tokenizer,
        request.plan.batch_size,
        rank=rank,
        world_size=world_size,
        token_cache=token_cache,
    )


def make_calibration_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed:
    """Return the training rows again, one sequence a micro-batch, to take scores from."""
    return _make_feed(
        request,
        _make_train_source(request),
        tokenizer,
        request.plan.batch_size,
        rank=rank,
        world_size=world_size,
        micro_batch_size=1,
    )


def make_eval_feed(
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int,
    world_size: int,
    token_cache: TokenCache | None = None,
) -> Feed | None:
    """Return the held-out rows, one micro-batch a worker at a time; None if the spec has none."""
    fraction = request.spec.data.eval_fraction
    if request.eval_data is not None:
        source = _make_source(request, request.eval_data, "eval", None)
    elif fraction is not None:
        source = _make_source(request, request.train_data, "eval", fraction)
    else:
        return None
    return _make_feed(
        request,
        source,
        tokenizer,
        request.plan.micro_batch_size * world_size,
        rank=rank,
        world_size=world_size,
        token_cache=token_cache,
    )


def make_evaluation_feeds(
    request: EvaluationRequest,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    rank: int,
    world_size: int,
) -> dict[str, Feed]:
    """Return the sets of rows to evaluate an adapter with these labels on: the spec's own, and
    those of an earlier adapter. A set with labels that the adapter does not know is omitted.
    """
    batch_size = request.plan.micro_batch_size * world_size
    row_sets = {HELD_OUT: _get_held_out_rows(request), PREVIOUS_EVAL: request.previous_eval}
    return {
        name: _make_feed(
            request,
            _make_held_out_source(held_out, labels),
            tokenizer,
            batch_size,
            rank=rank,
            world_size=world_size,
        )
        for name, held_out in row_sets.items()
        if held_out is not None and not {*held_out.scan.labels} - {*labels}
    }


def _get_held_out_rows(request: Request) -> HeldOutRows | None:
    """Return the rows that the spec holds out."""
    data = request.spec.data
    if request.eval_data is not None:
        return HeldOutRows(request.eval_data, str(data.eval))
    if data.eval_fraction is None:
        return None
    seed = request.spec.train.seed
    return HeldOutRows(request.train_data, data.train, None, data.eval_fraction, seed)


def _make_held_out_source(held_out: HeldOutRows, labels: tuple[str, ...]) -> RowSource:
    return RowSource(
        files=held_out.scan.files,
        format=held_out.scan.format,
        columns=held_out.scan.columns,
        labels=labels,
        eval_fraction=held_out.fraction,
        split="eval",
        seed=held_out.seed,
    )


def _make_train_source(request: Request) -> RowSource:
    fraction = request.spec.data.eval_fraction if request.eval_data is None else None
    return _make_source(request, request.train_data, "train", fraction)


def _make_source(
    request: Request, scan: DatasetScan, part: Literal["train", "eval"], fraction: float | None
) -> RowSource:
    return RowSource(
        files=scan.files,
        format=scan.format,
        columns=scan.columns,
        labels=request.labels,
        eval_fraction=fraction,
        split=part,
        seed=request.spec.train.seed,
    )


def _make_feed(
    request: Request,
    source: RowSource,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int | None = None,
    token_cache: TokenCache | None = None,
) -> Feed:
    return Feed(
        source,
        tokenizer,
        task=request.spec.model.task,
        max_length=request.spec.data.max_length,
        packing=request.spec.data.packing,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size
        or split_batch(batch_size, request.plan.micro_batch_size, world_size)[1],
        rank=rank,
        world_size=world_size,
        seed=request.spec.train.seed,
        shuffle=source.split == "train",
        token_cache=token_cache,
    )
