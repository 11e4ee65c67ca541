"""The two sides of a run's data for one worker: rows to learn from, rows to be judged by."""

from __future__ import annotations

from typing import Literal

from transformers import PreTrainedTokenizerBase

from jobs.data.feed import Feed
from jobs.data.source import Source
from jobs.data.survey import Survey
from jobs.plan import deal
from jobs.request import HELD_OUT, OLD, HeldOut, Request


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


def judging_feeds(
    request: Request,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...],
    *,
    rank: int,
    world_size: int,
) -> dict[str, Feed]:
    """The rows that adapters are judged by, the spec's and the old ones, for one that knows these
    labels; a set with labels that it does not know is left out."""
    place = {"rank": rank, "world_size": world_size}
    size = request.plan.micro_batch_size * world_size
    sets = {HELD_OUT: _held_out(request), OLD: request.old}
    return {
        name: _feed(request, _old_source(held, labels), tokenizer, size, **place)
        for name, held in sets.items()
        if held is not None and not {*held.found.labels} - {*labels}
    }


def _held_out(request: Request) -> HeldOut | None:
    """The spec's own rows, as such a set."""
    data = request.spec.data
    if request.evaluation is not None:
        return HeldOut(request.evaluation, str(data.eval))
    if data.eval_fraction is None:
        return None
    seed = request.spec.train.seed
    return HeldOut(request.train, data.train, None, data.eval_fraction, seed)


def _old_source(held: HeldOut, labels: tuple[str, ...]) -> Source:
    return Source(
        files=held.found.files,
        format=held.found.format,
        labels=labels,
        eval_fraction=held.fraction,
        part="eval",
        seed=held.seed,
    )


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
