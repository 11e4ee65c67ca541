"""Make the feeds of a site: the rows of a client for a round or for the calibration."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from jobs.federation.partition import Partition
from jobs.federation.sampling import derive_order_seed
from jobs.federation.sites.client_rows import ClientRows, ClientSource
from jobs.train.data.global_batches import Feed
from jobs.train.data.tokenization import Sample
from jobs.train.request import FederationRequest


class ClientFeeds:
    """Makes the feeds of clients. No row is tokenized twice."""

    def __init__(
        self, request: FederationRequest, tokenizer: PreTrainedTokenizerBase, partition: Partition
    ) -> None:
        self._request, self._tokenizer = request, tokenizer
        self._rows = ClientRows(
            request.train_data.files, request.train_data.rows_by_file, partition
        )
        self._token_cache: dict[Any, Sample] = {}

    def make_round_feed(self, client: int, round_index: int) -> Feed:
        """Return a client's rows in an order that depends on the round."""
        return self._make_feed(client, round_index, self._request.plan.micro_batch_size)

    def make_calibration_feed(self, client: int) -> Feed:
        """Return the rows that a client scores masks with, one sequence per micro-batch."""
        return self._make_feed(client, 0, 1)

    def count_rows(self, client: int) -> int:
        """Return the number of rows of a client."""
        return len(self._rows.read_client(client))

    def _make_feed(self, client: int, round_index: int, micro_batch_size: int) -> Feed:
        spec, scan = self._request.spec, self._request.train_data
        source = ClientSource(
            files=scan.files,
            format=scan.format,
            columns=scan.columns,
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
