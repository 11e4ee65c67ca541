"""Apply the configured retention in bounded batches, which can be repeated after a crash."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from jobs.errors import InputError, StoreError
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.control.retention.retention_config import RetentionConfig
from orchestrator.control.retention.run_removal import remove_run
from orchestrator.registry.database import Database
from orchestrator.registry.tenancy import expired_rows
from orchestrator.registry.tenancy.audit_log import SERVICE, Actor
from orchestrator.registry.tenancy.expired_rows import count_selected
from orchestrator.registry.values import Run

RUNS_PER_BATCH = 20
ROWS_PER_BATCH = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetentionTally:
    """How many items were deleted, or are to be deleted."""

    runs: int = 0
    firings: int = 0
    tokens: int = 0
    keys: int = 0

    def __add__(self, other: RetentionTally) -> RetentionTally:
        return RetentionTally(
            self.runs + other.runs,
            self.firings + other.firings,
            self.tokens + other.tokens,
            self.keys + other.keys,
        )

    @property
    def total(self) -> int:
        """Return the number of items of all kinds."""
        return self.runs + self.firings + self.tokens + self.keys


class Retention:
    """Deletes what is older than the configuration keeps."""

    def __init__(
        self,
        database: Database,
        config: RetentionConfig,
        *,
        instance: str,
        store_opener: Callable[[str], ObjectStore] = open_store,
        runs_per_batch: int = RUNS_PER_BATCH,
        actor: Actor = SERVICE,
    ) -> None:
        self._database, self._config, self._instance = database, config, instance
        self._open, self._runs_per_batch, self._actor = store_opener, runs_per_batch, actor

    def list_expired_runs(self, limit: int) -> list[Run]:
        """List the runs to delete, oldest first, without those whose store failed."""
        return self._list_runs(limit, set())

    def count_expired(self) -> RetentionTally:
        """Count the rows to delete beside the runs."""
        config = self._config
        with self._database.read() as session:
            firings = (
                count_selected(session, expired_rows.select_expired_firings(config.firings_days))
                if config.firings_days is not None
                else 0
            )
            tokens = (
                count_selected(session, expired_rows.select_expired_tokens(config.tokens_days))
                if config.tokens_days is not None
                else 0
            )
            keys = count_selected(session, expired_rows.select_expired_keys(config.keys_days))
        return RetentionTally(firings=firings, tokens=tokens, keys=keys)

    def apply_batch(self) -> RetentionTally:
        """Delete one batch of each kind. Raise DatabaseUnreachable."""
        return RetentionTally(runs=self._remove_runs()) + self._delete_rows()

    def _remove_runs(self) -> int:
        count, failed_stores = 0, set[str]()
        while count < self._runs_per_batch:
            expired = self._list_runs(self._runs_per_batch - count, failed_stores)
            if not expired:
                break
            for run in expired:
                if run.store in failed_stores:
                    continue
                try:
                    removed = remove_run(
                        self._database,
                        run,
                        instance=self._instance,
                        store_opener=self._open,
                        actor=self._actor,
                    )
                except (StoreError, InputError) as error:
                    # The runs of other stores do not wait for this one, which does not answer or
                    # has a link that leads out of a project's folder.
                    log.warning("run %s cannot be deleted: %s", run.id, error)
                    failed_stores.add(run.store)
                    continue
                count += 1
                log.info("run %s: deleted with %d files, kept too long", run.id, removed.files)
        return count

    def _list_runs(self, limit: int, failed_stores: set[str]) -> list[Run]:
        days = self._config.runs_days
        if days is None:
            return []
        with self._database.read() as session:
            return expired_rows.list_expired_runs(
                session, days, limit=limit, skipped_stores=failed_stores
            )

    def _delete_rows(self) -> RetentionTally:
        config, firings, tokens = self._config, 0, 0
        with self._database.write() as session:
            if config.firings_days is not None:
                query = expired_rows.select_expired_firings(config.firings_days)
                firings = expired_rows.delete_firings(session, query, limit=ROWS_PER_BATCH)
            if config.tokens_days is not None:
                query = expired_rows.select_expired_tokens(config.tokens_days)
                tokens = expired_rows.delete_tokens(session, query, limit=ROWS_PER_BATCH)
            query = expired_rows.select_expired_keys(config.keys_days)
            keys = expired_rows.delete_keys(session, query, limit=ROWS_PER_BATCH)
        return RetentionTally(firings=firings, tokens=tokens, keys=keys)
