"""The feeds of a site: a client's rows for a round, its calibration, and the held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.data.feed import Feed
from jobs.data.remembered import Remembered
from jobs.data.tokens import Sample
from jobs.federate.draw import order_seed
from jobs.federate.partition import Partition
from jobs.federate.rows import ClientSource, Rows
from jobs.request import Request


class ClientFeeds:
    """Makes the feeds of clients; no row is tokenised twice."""

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, split: Partition
    ) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._rows = Rows(request.train.files, request.train.rows_by_file, split)
        self._known: dict[Any, Sample] = {}

    def of(self, client: int, number: int) -> Feed:
        """What a client learns in round `number`: its rows in an order of that round."""
        return self._feed(client, number, self._request.plan.micro_batch_size)

    def calibration(self, client: int) -> Feed:
        """The same for its scores, before the first round: one sequence a micro-batch."""
        return self._feed(client, 0, 1)

    def rows(self, client: int) -> int:
        """How many rows a client has."""
        return len(self._rows.of(client))

    def _feed(self, client: int, number: int, micro: int) -> Feed:
        spec, found = self._request.spec, self._request.train
        source = ClientSource(
            files=found.files,
            format=found.format,
            labels=self._request.labels,
            kept=self._rows.of(client),
        )
        feed = Feed(
            source,
            self._tokenizer,
            task=spec.model.task,
            max_length=spec.data.max_length,
            packing=spec.data.packing,
            batch_size=spec.train.batch_size,
            micro_batch_size=min(micro, spec.train.batch_size),
            rank=0,
            world_size=1,
            seed=order_seed(spec.train.seed, number, client),
        )
        encode: Callable[..., Sample] = Remembered(feed.encode, self._known)
        feed.encode = encode  # type: ignore[assignment]
        return feed
