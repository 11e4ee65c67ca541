"""Count what was lost or ran twice, from the registry, the store and the marks of jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jobs.store.adapters.listing import scan_adapters
from jobs.store.adapters.verify import verify_adapter
from jobs.store.open import open_store
from orchestrator.registry import adapters, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import UnknownItem
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.values import Run


@dataclass(frozen=True)
class KillTally:
    """The counts; all but the first three should be zero."""

    runs: int
    attempts: int
    resubmitted: int
    """Runs that took more than one attempt."""
    lost: int
    """Accepted runs that are not done."""
    committed_twice: int
    alive_twice: int
    """Runs with two processes at the same time."""
    adapters_lost: int
    """Done runs without an intact adapter in the store and the registry."""
    services_ended: int
    """Services that ended without being killed."""

    @property
    def is_good(self) -> bool:
        """Return whether nothing was lost and nothing ran twice."""
        wrong = self.lost, self.committed_twice, self.alive_twice, self.adapters_lost
        return not any((*wrong, self.services_ended))


def count_outcomes(
    database: Database, store: str, accepted: Sequence[str], marks: Path, ended: int
) -> KillTally:
    """Count everything after the kills."""
    run_by_id = {run_id: _get_run(database, run_id) for run_id in accepted}
    done = [run for run in run_by_id.values() if run is not None and run.status is Status.DONE]
    manifests, broken = scan_adapters(open_store(store))
    intact = [item for item in manifests if not _find_faults(store, item)]
    with database.read() as session:
        rows = {row.run for row in adapters.list_page(session, store=store, limit=None)}
    commits = Counter(manifest.run for manifest in manifests)
    runs_with_adapter = {manifest.run for manifest in intact} & rows
    tries = [run.attempt for run in run_by_id.values() if run is not None]
    return KillTally(
        runs=len(accepted),
        attempts=sum(tries),
        resubmitted=sum(item > 1 for item in tries),
        lost=len(accepted) - len(done),
        committed_twice=sum(count > 1 for count in commits.values()),
        alive_twice=sum(_has_overlap(marks, run_id) for run_id in accepted),
        adapters_lost=sum(run.id not in runs_with_adapter for run in done) + len(broken),
        services_ended=ended,
    )


def _get_run(database: Database, run_id: str) -> Run | None:
    try:
        with database.read() as session:
            return runs.get(session, run_id)
    except UnknownItem:
        return None


def _find_faults(store: str, manifest: object) -> list[object]:
    """Find faults of an adapter's files; its base is a dummy and does not count."""
    faults = verify_adapter(open_store(store), manifest)  # type: ignore[arg-type]
    return [fault for fault in faults if fault.key != "base"]


def _has_overlap(marks: Path, run_id: str) -> bool:
    lives = sorted(_read_life(file) for file in marks.glob(f"{run_id}.a*"))
    return any(later[0] < earlier[1] for earlier, later in pairwise(lives))


def _read_life(file: Path) -> tuple[float, float]:
    """Read the times of the first mark and the last complete one."""
    beats = [float(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return (beats[0], beats[-1]) if beats else (0.0, 0.0)
