"""The count after the kills: what was lost, what ran twice, from the registry, store and marks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jobs.store.listing import survey
from jobs.store.objects import open_store
from jobs.store.verify import verify
from orchestrator.registry import adapters, runs
from orchestrator.registry.database import Database
from orchestrator.registry.errors import Unknown
from orchestrator.registry.lifecycle import Status
from orchestrator.registry.values import Run


@dataclass(frozen=True)
class Tally:
    """The counts; all but the first three should be zero."""

    runs: int
    attempts: int
    resubmitted: int
    """Runs that took more than one attempt."""
    lost: int
    """Accepted, and not done."""
    committed_twice: int
    alive_twice: int
    """Runs of which two processes lived at one moment."""
    adapters_lost: int
    """Runs that are done and have no whole adapter, in the store and in the registry."""
    services_ended: int
    """That nobody had killed."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing ran twice."""
        wrong = self.lost, self.committed_twice, self.alive_twice, self.adapters_lost
        return not any((*wrong, self.services_ended))


def counted(
    database: Database, store: str, accepted: Sequence[str], marks: Path, ended: int
) -> Tally:
    """Looks at everything that is left."""
    found = {run_id: _run(database, run_id) for run_id in accepted}
    done = [run for run in found.values() if run is not None and run.status is Status.DONE]
    manifests, broken = survey(open_store(store))
    whole = [one for one in manifests if not _faults(store, one)]
    with database.read() as session:
        rows = {row.run for row in adapters.page(session, store=store, limit=None)}
    commits = Counter(manifest.run for manifest in manifests)
    kept = {manifest.run for manifest in whole} & rows
    tries = [run.attempt for run in found.values() if run is not None]
    return Tally(
        runs=len(accepted),
        attempts=sum(tries),
        resubmitted=sum(one > 1 for one in tries),
        lost=len(accepted) - len(done),
        committed_twice=sum(count > 1 for count in commits.values()),
        alive_twice=sum(_alive_twice(marks, run_id) for run_id in accepted),
        adapters_lost=sum(run.id not in kept for run in done) + len(broken),
        services_ended=ended,
    )


def _run(database: Database, run_id: str) -> Run | None:
    try:
        with database.read() as session:
            return runs.get(session, run_id)
    except Unknown:
        return None


def _faults(store: str, manifest: object) -> list[object]:
    """What is wrong with its files; its base is no model, and was never meant to be one."""
    found = verify(open_store(store), manifest)  # type: ignore[arg-type]
    return [fault for fault in found if fault.key != "base"]


def _alive_twice(marks: Path, run_id: str) -> bool:
    lives = sorted(_life(file) for file in marks.glob(f"{run_id}.a*"))
    return any(later[0] < earlier[1] for earlier, later in pairwise(lives))


def _life(file: Path) -> tuple[float, float]:
    """From its first mark to its last whole one."""
    beats = [float(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]
    return (beats[0], beats[-1]) if beats else (0.0, 0.0)
