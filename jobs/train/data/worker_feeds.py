"""The feeds of one worker: rows to learn from, and held-out rows to evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from jobs.inspect.datasets.scan import DatasetScan
from jobs.inspect.embedding_count import classifies_last_position, read_embedding_count
from jobs.plan.plan import split_batch
from jobs.plan.token_tally import TokenTally
from jobs.train.data.global_batches import Feed
from jobs.train.data.run_encoder import make_encoder
from jobs.train.data.source import RowSource, SampleSource, StreamedSamples, TableSamples
from jobs.train.data.token_pass import ensure_table, make_token_inputs, read_sealed_tally
from jobs.train.data.tokenization import Encoder
from jobs.train.request import HELD_OUT, PREVIOUS_EVAL, EvaluationRequest, HeldOutRows, Request


def make_train_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed:
    """Return the rows to learn from, in batches of the spec's size."""
    source = _open_samples(request, _make_train_rows(request), request.train_data, tokenizer)
    batch_size = request.plan.batch_size
    return _make_feed(request, source, tokenizer, batch_size, rank=rank, world_size=world_size)


def make_calibration_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed:
    """Return the training rows again, one sequence a micro-batch, to take scores from."""
    return _make_feed(
        request,
        _open_samples(request, _make_train_rows(request), request.train_data, tokenizer),
        tokenizer,
        request.plan.batch_size,
        rank=rank,
        world_size=world_size,
        micro_batch_size=1,
    )


def make_eval_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed | None:
    """Return the held-out rows, one micro-batch a worker at a time; None if the spec has none."""
    rows = _make_eval_rows(request)
    if rows is None:
        return None
    source = _open_samples(request, rows, request.eval_data or request.train_data, tokenizer)
    batch_size = request.plan.micro_batch_size * world_size
    return _make_feed(request, source, tokenizer, batch_size, rank=rank, world_size=world_size)


def open_train_table(request: Request, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Return the table of the training rows, which is written if this machine lacks it."""
    return _open_table(
        request,
        request.train_data,
        make_encoder(request.spec, request.base, tokenizer, request.labels),
    )


def read_tallies(request: Request) -> dict[str, TokenTally]:
    """Return the tallies of the request's tables, by key of the spec."""
    scans = {"data.train": request.train_data, "data.eval": request.eval_data}
    inputs = {
        key: make_token_inputs(request.spec, request.base, scan, request.labels)
        for key, scan in scans.items()
        if scan is not None
    }
    tallies = {key: read_sealed_tally(value) for key, value in inputs.items()}
    return {key: tally for key, tally in tallies.items() if tally is not None}


def make_sample_rows(request: Request) -> RowSource:
    """Return the rows to take a few prompts from: those held out, or those to learn from."""
    return _make_eval_rows(request) or _make_train_rows(request)


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
            StreamedSamples(
                _make_held_out_source(request, held_out, labels),
                make_encoder(request.spec, request.base, tokenizer, labels),
                request.spec.model.task,
            ),
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


def _make_held_out_source(
    request: Request, held_out: HeldOutRows, labels: tuple[str, ...]
) -> RowSource:
    return RowSource(
        files=held_out.scan.files,
        format=held_out.scan.format,
        columns=held_out.scan.columns,
        labels=labels,
        label_kind=held_out.scan.label_kind,
        eval_fraction=held_out.fraction,
        split="eval",
        seed=held_out.seed,
        skips_bad_rows=request.spec.data.on_bad_row == "skip",
    )


def _make_train_rows(request: Request) -> RowSource:
    fraction = request.spec.data.eval_fraction if request.eval_data is None else None
    return _make_rows(request, request.train_data, "train", fraction)


def _make_eval_rows(request: Request) -> RowSource | None:
    fraction = request.spec.data.eval_fraction
    if request.eval_data is not None:
        return _make_rows(request, request.eval_data, "eval", None)
    return None if fraction is None else _make_rows(request, request.train_data, "eval", fraction)


def _make_rows(
    request: Request, scan: DatasetScan, part: Literal["train", "eval"], fraction: float | None
) -> RowSource:
    return RowSource(
        files=scan.files,
        format=scan.format,
        columns=scan.columns,
        labels=request.labels,
        label_kind=scan.label_kind,
        eval_fraction=fraction,
        split=part,
        seed=request.spec.train.seed,
        skips_bad_rows=request.spec.data.on_bad_row == "skip",
    )


def _open_samples(
    request: Request, rows: RowSource, scan: DatasetScan, tokenizer: PreTrainedTokenizerBase
) -> SampleSource:
    """Return the rows' samples from their table, which is written if this machine lacks it."""
    encoder = make_encoder(request.spec, request.base, tokenizer, request.labels)
    spec = request.spec
    if spec.data.streaming:
        return StreamedSamples(rows, encoder, spec.model.task)
    return TableSamples(_open_table(request, scan, encoder), rows)


def _open_table(request: Request, scan: DatasetScan, encoder: Encoder) -> Path:
    inputs = make_token_inputs(request.spec, request.base, scan, request.labels)
    return ensure_table(inputs, lambda: encoder)


def _make_feed(
    request: Request,
    source: SampleSource,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    micro_batch_size: int | None = None,
) -> Feed:
    return Feed(
        source,
        tokenizer,
        kind=request.spec.target_kind,
        max_length=request.spec.data.max_length,
        packing=request.plan.packing.mode,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size
        or split_batch(batch_size, request.plan.micro_batch_size, world_size)[1],
        rank=rank,
        world_size=world_size,
        seed=request.spec.train.seed,
        shuffle=source.split == "train",
        embeddings=read_embedding_count(request.base),
        pads_left=classifies_last_position(request.base),
    )
