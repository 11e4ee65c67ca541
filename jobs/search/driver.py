"""A search from its first proposal to the committed adapter. Runs on the cluster, as its driver."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import InputError, TrainingFailed
from jobs.model_files import model_digest
from jobs.preflight import Checked
from jobs.search.diary import Diary
from jobs.search.door import Search
from jobs.search.pareto import best
from jobs.search.planned import Planned, impossible, planned
from jobs.search.proposals import Proposals, request_of
from jobs.search.rows import Row
from jobs.search.schedulers import scheduler_of
from jobs.search.watch import BudgetStopper, Watch, spent
from jobs.store.objects import open_store
from jobs.store.runs import RunStore

TUNE_FOLDER = "tune"
"""Where Tune keeps its papers during a search; nothing is ever read back from them."""
ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Tune writes no logs and snapshots of its own: what a search needs is in its diary."""


def run_trials(
    search: Search, checked: Checked, runs: RunStore, diary: Diary, say: Callable[[Row], None]
) -> None:
    """Every trial that has not ended, through Ray Tune. Raises InputError, TrainingFailed."""
    os.environ.update(ENVIRONMENT)
    from ray import tune

    from jobs.cluster_run import missing_resources
    from jobs.search.crew import bundles
    from jobs.search.trainable import ASKED, TrialActor

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    proposals = Proposals(search, checked, diary, run=runs.run_id)
    watch = Watch(search, diary, say)
    population = search.section.scheduler == "pbt"
    everyone = proposals.everything() if population else []

    def over(why: str) -> None:
        watch.why_over, proposals.over = why, True

    def resources(config: dict[str, Any]) -> Any:
        asked = config[ASKED]
        if (missing := missing_resources(asked.request)) is not None:
            print(f"trial {asked.number} waits for the cluster: {missing}", flush=True)
        return tune.PlacementGroupFactory(bundles(asked.request.spec.cluster))

    folder = runs.scratch(TUNE_FOLDER)
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, resources),
        # Tune's PBT refuses a searcher: its population is there from the start.
        param_space={ASKED: tune.grid_search(everyone)} if population else None,
        tune_config=tune.TuneConfig(
            search_alg=None if population else proposals,
            scheduler=scheduler_of(search, diary.rows),
            num_samples=1 if population else -1,
            # Tune counts paused trials too: with a limit, the population would never meet.
            max_concurrent_trials=None if population else _at_once(search),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(_whole(folder)),
            stop=BudgetStopper(search, diary, over),
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=search.spec.cluster.max_failures),
            verbose=0,
        ),
    )
    try:
        # A search that died in its last seconds has trained all there is.
        if everyone or (not population and proposals.left()):
            tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (why := spent(search, diary)) is not None:
        runs.events.append({"event": "over", "time": time.time(), "why": why})
        put_off(diary, why, say)
    if best(diary.rows, search.section.direction) is None:
        raise none_ended(diary.rows)


def put_off(diary: Diary, why: str, say: Callable[[Row], None]) -> None:
    """What ran or waited when the budget was spent: Tune ends it, and tells no callback so."""
    for row in diary.rows:
        if not row.ended:
            say(diary.write(row, status="stopped", reason=why))


def none_ended(rows: list[Row]) -> InputError | TrainingFailed:
    """Why a search has nothing to show: the commonest reason of its trials."""
    reasons = [row.reason for row in rows if row.reason]
    commonest = max(reasons, key=reasons.count) if reasons else "no trial was started"
    same = reasons.count(commonest)
    if rows and all(row.status == "rejected" for row in rows):
        return impossible(reasons)
    return TrainingFailed(
        f"all {len(rows)} trials", commonest.rstrip("."), f"So it was in {same} of them."
    )


def publish_best(
    search: Search, checked: Checked, runs: RunStore, row: Row, *, attempt: int
) -> str:
    """Commits the best trial's adapter, from its last checkpoint. Returns its label."""
    from jobs.cluster_run import train
    from jobs.federate.drive import federate

    found = planned(search, checked, row)
    assert isinstance(found, Planned), found
    folder = found.checked.model.folder
    request = request_of(found.checked, row.run, model_digest(folder), search=runs.run_id)
    trial = RunStore(open_store(request.spec.store), row.run)
    if found.federation is None:
        train(request, trial, attempt=attempt)
    else:
        federate(replace(request, federation=found.federation), trial, attempt=attempt)
    events, _ = trial.events.tail(0)
    return str(next(e["adapter"] for e in reversed(events) if e["event"] == "published"))


def _at_once(search: Search) -> int:
    """Trials at once: what was asked, or what the cluster has room for right now."""
    import ray

    cluster, there = search.spec.cluster, ray.cluster_resources()
    assert isinstance(cluster.workers, int)
    room = int(there.get("CPU", 1) // (cluster.workers * cluster.cpus_per_worker))
    if cluster.gpus_per_worker:
        room = min(room, int(there.get("GPU", 0) // cluster.workers))
    return min(search.section.max_concurrent or max(1, room), max(1, room))


def _whole(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()
