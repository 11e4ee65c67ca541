"""The files of a run in the store: run ids, keys, checkpoints and journals."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.spec.limits import NAME_PATTERN
from jobs.store.base import ObjectStore
from jobs.store.runs.journal import Journal
from jobs.store.runs.remote_journal import RemoteJournal
from jobs.store.settings import read_store_settings

SPEC, PLAN, LEDGER = "spec.yaml", "plan.json", "ledger.json"
EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
MASKS, LOW_RANK_INIT = "masks.safetensors", "start.safetensors"
"""The selected masks and the start of a low-rank stage: written once, read when a run resumes."""
CHECKPOINT_TENSORS, CHECKPOINT_STATE = "state.safetensors", "state.json"
"""The files of a checkpoint; the second is written last."""
MAX_RUN_ID_LENGTH = 128
RUNS_PREFIX = "runs/"
KERNELS_PREFIX = "kernels/"
"""Under a run: the kernels of its sparse products, one file for each kind of device."""

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


def make_run_id(name: str, now: datetime) -> str:
    """Return `<name>-YYYYMMDD-HHMMSS-<4 hex>`, in UTC: ids of one name sort by time."""
    return f"{name}-{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def list_runs(store: ObjectStore) -> list[str]:
    """Return the ids of all runs with a spec, which is the first file that a run writes."""
    keys = (key.split("/") for key in store.list(RUNS_PREFIX))
    return [parts[1] for parts in keys if len(parts) == 3 and parts[2] == SPEC]


def format_run_key(run_id: str, name: str = "") -> str:
    """Return the key of a file of a run, or the prefix of all its keys."""
    return f"{RUNS_PREFIX}{run_id}/{name}"


class RunStore:
    """The part of a store that belongs to one run."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        if len(run_id) > MAX_RUN_ID_LENGTH or not re.fullmatch(NAME_PATTERN, run_id):
            problem = f"{run_id[:150]!a} is not a run id"
            raise InputError([Fault("run", problem, "Use an id from `slora runs`.")])
        self.store, self.run_id = store, run_id

    def key(self, name: str) -> str:
        """Return the key of a file of the run."""
        return format_run_key(self.run_id, name)

    def checkpoint_key(self, step: int, name: str) -> str:
        """Return the key of a file of a checkpoint."""
        return self.key(f"checkpoints/{step}/{name}")

    def list_checkpoint_steps(self) -> list[int]:
        """Return the steps of all checkpoints, complete or not, in order."""
        start = self.key("checkpoints/")
        steps = {key.removeprefix(start).split("/")[0] for key in self.store.list(start)}
        return sorted(int(step) for step in steps if _STEP.fullmatch(step))

    def write_text(self, name: str, text: str) -> None:
        """Write a file, replacing that of an earlier attempt."""
        self.store.put(self.key(name), text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a file as JSON. Raise ValueError for NaN, which no other program could read."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_text(self, name: str) -> str:
        """Return the text of a file. Raise NotInStore if it is absent."""
        return self.store.get(self.key(name)).decode()

    def read_json(self, name: str) -> Any:
        """Return the JSON value of a file. Raise NotInStore if it is absent."""
        return json.loads(self.store.get(self.key(name)))

    @property
    def events(self) -> Journal | RemoteJournal:
        """Return the journal of the events of the run."""
        return self.open_journal(EVENTS, urgent=True)

    @property
    def phase_events(self) -> Journal | RemoteJournal:
        """Return the journal of events for those of phases: nobody waits until they are sent."""
        return self.open_journal(EVENTS)

    @property
    def metrics(self) -> Journal | RemoteJournal:
        """Return the journal of the metrics of each step."""
        return self.open_journal(METRICS)

    def get_scratch_folder(self, name: str) -> Path:
        """Return the path of a temporary folder: in a directory store, else on this machine."""
        if (path := self.store.local_path(self.key(name))) is not None:
            return path
        return read_store_settings().outbox.parent / "scratch" / f"{self.run_id}-{name}"

    def open_journal(self, name: str, *, urgent: bool = False) -> Journal | RemoteJournal:
        """Return the journal of a file: appended on a file system, else buffered and rewritten."""
        if (path := self.store.local_path(self.key(name))) is not None:
            return Journal(path)
        return RemoteJournal(self.store, self.key(name), urgent=urgent)
