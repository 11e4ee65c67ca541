"""Read rows in batches for a committed adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from jobs.inspect.datasets.scan import DatasetScan
from jobs.inspect.encoder_decoders import END_CLASSIFIERS
from jobs.plan.packing_choice import UNDECIDED
from jobs.plan.token_tally import TokenTally
from jobs.spec.schema import RunSpec
from jobs.tools.load_adapter import AdaptedModel
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.global_batches import Feed
from jobs.train.data.source import RowSource, TableSamples
from jobs.train.data.token_pass import make_token_inputs, write_table
from jobs.train.data.tokenization import Encoder
from jobs.train.data.tokenize_run import include_scan_faults
from jobs.train.engine.chunked_loss import LossChoice
from jobs.train.model.settle_loss import settle_loss
from jobs.train.model.settle_packing import settle_packing


@dataclass(frozen=True)
class AdapterFeed:
    """The rows in batches, and how the loss of the adapter's model is computed on them."""

    feed: Feed
    choice: LossChoice
    device: torch.device
    tally: TokenTally


@contextmanager
def open_adapter_feed(
    spec: RunSpec, adapted: AdaptedModel, scan: DatasetScan, *, batch_size: int
) -> Iterator[AdapterFeed]:
    """Tokenise the rows into a table that exists inside the block. Raise InputError with all faults
    of rows.
    """
    context = WorkerContext(0, 1, torch.device("cpu"))
    packing = settle_packing(spec, UNDECIDED, adapted.model, context)
    choice = settle_loss(spec, adapted.model, context)
    tokenizer, max_length = adapted.tokenizer, spec.data.max_length
    embeddings = adapted.model.get_input_embeddings().weight.shape[0]
    encoder = Encoder(
        tokenizer,
        max_length=max_length,
        labels=adapted.labels,
        embeddings=embeddings,
        is_seq2seq=adapted.task == "seq2seq",
        reads_class_at_end=adapted.model.config.model_type in END_CLASSIFIERS,
    )
    with tempfile.TemporaryDirectory(prefix="slora-tokens-") as scratch:
        inputs = make_token_inputs(spec, Path(scratch), scan, adapted.labels)
        with include_scan_faults(scan):
            tally = write_table(Path(scratch) / "table", inputs, encoder)
        rows = RowSource(scan.files, scan.format, scan.columns, split="eval")
        feed = Feed(
            TableSamples(Path(scratch) / "table", rows),
            tokenizer,
            kind=spec.target_kind,
            max_length=max_length,
            packing=packing.mode,
            batch_size=batch_size,
            micro_batch_size=batch_size,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
            embeddings=embeddings,
        )
        yield AdapterFeed(feed, choice, context.device, tally)
