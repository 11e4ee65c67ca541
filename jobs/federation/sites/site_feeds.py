"""Make the feeds of a site: the rows of a client for a round or for the calibration."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from jobs.federation.partition import Partition
from jobs.federation.sampling import derive_order_seed
from jobs.federation.sites.client_rows import ClientSamples
from jobs.train.data.global_batches import Feed
from jobs.train.data.worker_feeds import open_train_table
from jobs.train.request import FederationRequest


class ClientFeeds:
    """Makes the feeds of clients, from the table of all rows."""

    def __init__(
        self, request: FederationRequest, tokenizer: PreTrainedTokenizerBase, partition: Partition
    ) -> None:
        self._request, self._tokenizer, self._partition = request, tokenizer, partition
        self._table = open_train_table(request, tokenizer)

    def make_round_feed(self, client: int, round_index: int) -> Feed:
        """Return a client's rows in an order that depends on the round."""
        return self._make_feed(client, round_index, self._request.plan.micro_batch_size)

    def make_calibration_feed(self, client: int) -> Feed:
        """Return the rows that a client scores masks with, one sequence per micro-batch."""
        return self._make_feed(client, 0, 1)

    def count_rows(self, client: int) -> int:
        """Return the number of rows of a client."""
        return len(self._partition.rows[client])

    def _make_feed(self, client: int, round_index: int, micro_batch_size: int) -> Feed:
        spec, scan = self._request.spec, self._request.train_data
        source = ClientSamples(self._table, scan.rows_by_file, self._partition.rows[client])
        return Feed(
            source,
            self._tokenizer,
            kind=spec.target_kind,
            max_length=spec.data.max_length,
            packing=self._request.plan.packing.mode,
            batch_size=spec.train.batch_size,
            micro_batch_size=min(micro_batch_size, spec.train.batch_size),
            rank=0,
            world_size=1,
            seed=derive_order_seed(spec.train.seed, round_index, client),
        )
