"""The feeds of a site: a client's rows for a round, its calibration, and the held-out rows."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.federation.partition import Partition
from jobs.federation.sampling import derive_order_seed
from jobs.federation.sites.client_rows import ClientRows, ClientSource
from jobs.train.data.global_batches import Feed
from jobs.train.data.tokenization import Sample
from jobs.train.request import Request


class ClientFeeds:
    """Makes the feeds of clients; no row is tokenised twice."""

    def __init__(
        self, request: Request, tokenizer: PreTrainedTokenizerBase, partition: Partition
    ) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._rows = ClientRows(
            request.train_data.files, request.train_data.rows_by_file, partition
        )
        self._token_cache: dict[Any, Sample] = {}

    def make_round_feed(self, client: int, round_index: int) -> Feed:
        """What a client learns in round `number`: its rows in an order of that round."""
        return self._make_feed(client, round_index, self._request.plan.micro_batch_size)

    def make_calibration_feed(self, client: int) -> Feed:
        """The same for its scores, before the first round: one sequence a micro-batch."""
        return self._make_feed(client, 0, 1)

    def count_rows(self, client: int) -> int:
        """How many rows a client has."""
        return len(self._rows.read_client(client))

    def _make_feed(self, client: int, round_index: int, micro_batch_size: int) -> Feed:
        spec, scan = self._request.spec, self._request.train_data
        source = ClientSource(
            files=scan.files,
            format=scan.format,
            labels=self._request.labels,
            client_rows=self._rows.read_client(client),
        )
        return Feed(
            source,
            self._tokenizer,
            task=spec.model.task,
            max_length=spec.data.max_length,
            packing=spec.data.packing,
            batch_size=spec.train.batch_size,
            micro_batch_size=min(micro_batch_size, spec.train.batch_size),
            rank=0,
            world_size=1,
            seed=derive_order_seed(spec.train.seed, round_index, client),
            token_cache=self._token_cache,
        )
