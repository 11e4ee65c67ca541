"""The canary of an adapter: a few held-out rows as tokens, and the trained model's loss on them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from jobs.store.runs.canary_file import CANARY_FILE, CanaryFile, HeldOutRow, SampleTokens
from jobs.train.data.collate import count_targets
from jobs.train.data.global_batches import Feed
from jobs.train.data.packing import TokenSequence, join_samples
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.evaluation_sums import compute_sums
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import TrainingRequest
from jobs.train.samples import SamplePrompt

ROW_COUNT, MAX_ROW_TOKENS = 4, 512
"""Rows of a canary: a server computes them in about a second."""
MAX_ROWS_READ = 100


def write_canary(
    recorder: RunRecorder,
    request: TrainingRequest,
    model: Any,
    feed: Feed | None,
    prompts: Sequence[SamplePrompt],
    answers: Sequence[str],
    *,
    device: torch.device,
    choice: LossChoice,
) -> None:
    """Write the canary file: prompts, and held-out rows with their mean loss per target.

    Every rank computes the same rows, which under ZeRO-3 is a collective. Encoder-decoders have
    none: what a server loads as an adapter generates from one text.
    """
    if feed is not None and feed.kind != "tokens":
        feed = None
    sequences = [] if feed is None else list(islice(_iterate_rows(feed), ROW_COUNT))
    loss = targets = 0.0
    with torch.no_grad():
        for sequence in sequences:
            assert feed is not None
            batch = feed.collate([sequence], length=len(sequence))
            row_loss, row_targets = compute_sums(model, batch, choice, device=device).tolist()
            loss, targets = loss + row_loss, targets + row_targets
    canary = CanaryFile(
        is_chat=request.train_data.format == "chat",
        prompts=tuple(
            SampleTokens(tokens=prompt.token_ids, has_answer=bool(answer.strip()))
            for prompt, answer in zip(prompts, answers, strict=True)
        ),
        rows=tuple(_make_row(sequence) for sequence in sequences),
        loss=loss / targets if targets and math.isfinite(loss) else None,
    )
    recorder.write_json(CANARY_FILE, canary.model_dump(mode="json", exclude_none=True))


def _iterate_rows(feed: Feed) -> Iterator[TokenSequence]:
    """Yield the first held-out rows with a target that are not long, each by itself."""
    for samples in islice(feed.source.iter_rows_of_samples(), MAX_ROWS_READ):
        for sample in samples:
            sequence = join_samples([sample])
            if 1 < len(sequence) <= MAX_ROW_TOKENS and count_targets(sequence):
                yield sequence


def _make_row(sequence: TokenSequence) -> HeldOutRow:
    targets = (
        index for index, label in enumerate(sequence.labels) if index and label != IGNORE_INDEX
    )
    return HeldOutRow(tokens=sequence.input_ids, targets=tuple(targets))
