"""The two sides of a run's data for one worker: rows to learn from, rows to be judged by."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from jobs.data.feed import Feed
from jobs.data.source import Source
from jobs.data.survey import Survey
from jobs.plan import deal
from jobs.request import Request


def train_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed:
    """The rows to learn from, in batches of the spec's size."""
    held = request.spec.data.eval_fraction if request.evaluation is None else None
    source = _source(request, request.train, "train", held)
    size = request.plan.batch_size
    return _feed(request, source, tokenizer, size, rank=rank, world_size=world_size)


def calibration_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed:
    """The training rows again, one sequence a micro-batch: what scores are taken from."""
    held = request.spec.data.eval_fraction if request.evaluation is None else None
    source = _source(request, request.train, "train", held)
    size = request.plan.batch_size
    return _feed(request, source, tokenizer, size, rank=rank, world_size=world_size, micro=1)


def eval_feed(
    request: Request, tokenizer: PreTrainedTokenizerBase, *, rank: int, world_size: int
) -> Feed | None:
    """The held-out rows, one micro-batch a worker at a time; None where the spec names none."""
    fraction = request.spec.data.eval_fraction
    if request.evaluation is not None:
        source = _source(request, request.evaluation, "eval", None)
    elif fraction is not None:
        source = _source(request, request.train, "eval", fraction)
    else:
        return None
    size = request.plan.micro_batch_size * world_size
    return _feed(request, source, tokenizer, size, rank=rank, world_size=world_size)


def _source(
    request: Request, found: Survey, part: Literal["train", "eval"], fraction: float | None
) -> Source:
    return Source(
        files=found.files,
        format=found.format,
        labels=request.labels,
        eval_fraction=fraction,
        part=part,
        seed=request.spec.train.seed,
    )


def _feed(
    request: Request,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    rank: int,
    world_size: int,
    micro: int | None = None,
) -> Feed:
    return Feed(
        source,
        tokenizer,
        task=request.spec.model.task,
        max_length=request.spec.data.max_length,
        packing=request.spec.data.packing,
        batch_size=batch_size,
        micro_batch_size=micro or deal(batch_size, request.plan.micro_batch_size, world_size)[1],
        rank=rank,
        world_size=world_size,
        seed=request.spec.train.seed,
        shuffle=source.part == "train",
    )
