"""A store as runs leave it, made by hand through the store's own functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.search.diary import Diary
from jobs.search.leave import SEARCH
from jobs.search.rows import Row
from jobs.spec import Spec
from jobs.spec_file import dump_spec, load_spec
from jobs.store.adapters import commit, promote
from jobs.store.objects import ObjectStore
from jobs.store.runs import SPEC, RunStore
from tests.jobs.store.made import adapter_folder, draft

EXAMPLES = Path(__file__).parents[3] / "jobs/examples"
NOON = 1_780_000_000.0
"""Of the day when it all happened."""
DONE, FAILED, STOPPED, RUNNING, PLANNED = (
    f"chat-20260101-12000{number}-0a1b" for number in range(5)
)
SEARCHED, TRIAL = "chat-search-20260101-130000-0a1b", "chat-search-20260101-130000-0a1b-t0"


def chat_spec() -> Spec:
    return load_spec(EXAMPLES / "chat.yaml")


def wrote(store: ObjectStore, run: str, *events: dict[str, Any]) -> RunStore:
    """A run's spec and its journal."""
    runs = RunStore(store, run)
    runs.write_text(SPEC, dump_spec(chat_spec()))
    for number, event in enumerate(events):
        runs.events.append({"time": NOON + number, **event})
    return runs


def committed(store: ObjectStore, folder: Path, **changes: Any) -> None:
    """One more version of an adapter."""
    commit(store, folder if folder.exists() else adapter_folder(folder), draft(**changes))


def fill(store: ObjectStore, folder: Path) -> None:
    """Runs in each state, two adapters of which one is promoted, a search with its trial."""
    begun = {"event": "started", "steps": 28, "plan": {"name": "chat"}}
    wrote(store, DONE, begun, {"event": "published", "adapter": "chat@v1", "bytes": 5})
    wrote(store, FAILED, begun, {"event": "failed", "why": "rank 1: no memory"})
    wrote(store, STOPPED, begun, {"event": "stopped", "why": "interrupted"})
    wrote(store, RUNNING, begun, {"event": "failed", "why": "once"}, {"event": "resumed"})
    wrote(store, PLANNED)
    committed(store, folder, run=DONE, attempt=2)
    _search(store)
    committed(store, folder, run=TRIAL, search=SEARCHED, parent="chat@v1")
    promote(store, "chat", 1)


def _search(store: ObjectStore) -> None:
    runs = wrote(store, SEARCHED)
    runs.write_text(SEARCH, (EXAMPLES / "search.yaml").read_text())
    wrote(store, TRIAL, {"event": "started"})
    diary = Diary(runs)
    first = Row(0, {"method.rank": 8}, run=TRIAL, status="running")
    diary.write(diary.write(first), status="done", metric=1.5, steps=10)
    diary.write(Row(1, {"method.rank": 9}), status="rejected", reason="too large")
    runs.events.append({"event": "published", "time": NOON + 9, "adapter": "chat@v2"})
