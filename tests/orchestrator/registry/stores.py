"""Fill a store as runs do, through the functions of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.search.search_artifacts import SEARCH_FILE
from jobs.search.trial_log import TrialLog
from jobs.search.trial_record import TrialRecord
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.schema import RunSpec
from jobs.store.adapters.operations import commit, promote
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import SPEC, RunStore
from tests.jobs.store.builders import make_adapter_folder, make_draft

EXAMPLES = Path(__file__).parents[3] / "jobs/examples"
NOON = 1_780_000_000.0
"""Time of the events."""
DONE, FAILED, STOPPED, RUNNING, PLANNED = (
    f"chat-20260101-12000{number}-0a1b" for number in range(5)
)
SEARCHED, TRIAL = "chat-search-20260101-130000-0a1b", "chat-search-20260101-130000-0a1b-t0"


def load_chat_spec() -> RunSpec:
    return load_spec(EXAMPLES / "chat.yaml")


def write_run(store: ObjectStore, run: str, *events: dict[str, Any]) -> RunStore:
    """Write the spec and the journal of a run."""
    runs = RunStore(store, run)
    runs.write_text(SPEC, dump_spec(load_chat_spec()))
    for number, event in enumerate(events):
        runs.events.append({"time": NOON + number, **event})
    return runs


def commit_version(store: ObjectStore, folder: Path, **changes: Any) -> None:
    """Commit another version of an adapter."""
    commit(store, folder if folder.exists() else make_adapter_folder(folder), make_draft(**changes))


def fill_store(store: ObjectStore, folder: Path) -> None:
    """Write runs in each status, two adapters with a pointer, and a search with its trial."""
    started = {"event": "started", "steps": 28, "plan": {"name": "chat"}}
    write_run(store, DONE, started, {"event": "published", "adapter": "chat@v1", "bytes": 5})
    write_run(store, FAILED, started, {"event": "failed", "why": "rank 1: no memory"})
    write_run(store, STOPPED, started, {"event": "stopped", "why": "interrupted"})
    write_run(store, RUNNING, started, {"event": "failed", "why": "once"}, {"event": "resumed"})
    write_run(store, PLANNED)
    commit_version(store, folder, run=DONE, attempt=2)
    _write_search(store)
    commit_version(store, folder, run=TRIAL, search=SEARCHED, parent="chat@v1")
    promote(store, "chat", 1)


def _write_search(store: ObjectStore) -> None:
    runs = write_run(store, SEARCHED)
    runs.write_text(SEARCH_FILE, (EXAMPLES / "search.yaml").read_text())
    write_run(store, TRIAL, {"event": "started"})
    trial_log = TrialLog(runs)
    first = TrialRecord(0, {"method.rank": 8}, run=TRIAL, status="running")
    trial_log.write(trial_log.write(first), status="done", metric=1.5, steps=10)
    trial_log.write(TrialRecord(1, {"method.rank": 9}), status="rejected", reason="too large")
    runs.events.append({"event": "published", "time": NOON + 9, "adapter": "chat@v2"})
