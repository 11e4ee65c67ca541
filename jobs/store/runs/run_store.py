"""Runs in the store: what a run is called, and where its papers lie."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.spec.schema import NAME_PATTERN
from jobs.store.base import ObjectStore
from jobs.store.local import DirectoryStore
from jobs.store.runs.journal import Journal
from jobs.store.runs.remote_journal import RemoteJournal
from jobs.store.settings import read_store_settings

SPEC, PLAN, LEDGER = "spec.yaml", "plan.json", "ledger.json"
EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
MASKS, LOW_RANK_INIT = "masks.safetensors", "start.safetensors"
"""Chosen masks, and where a low-rank stage starts: written once, read by a run that goes on."""
CHECKPOINT_TENSORS, CHECKPOINT_STATE = "state.safetensors", "state.json"
"""A checkpoint's files, the second written last."""
MAX_RUN_ID_LENGTH = 128

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


def make_run_id(name: str, now: datetime) -> str:
    """`<name>-YYYYMMDD-HHMMSS-<4 hex>`, in UTC: sorts by time within one name."""
    return f"{name}-{now.astimezone(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def list_runs(store: ObjectStore) -> list[str]:
    """The runs that have a spec, which is the first thing that a run writes."""
    keys = (key.split("/") for key in store.list("runs/"))
    return [parts[1] for parts in keys if len(parts) == 3 and parts[2] == SPEC]


class RunStore:
    """One run's part of the store."""

    def __init__(self, store: ObjectStore, run_id: str) -> None:
        if len(run_id) > MAX_RUN_ID_LENGTH or not re.fullmatch(NAME_PATTERN, run_id):
            problem = f"{run_id[:150]!a} is no run's name"
            raise InputError([Fault("run", problem, "Use one that new_run_id made.")])
        self.store, self.run_id = store, run_id

    @property
    def prefix(self) -> str:
        """The start of the keys of this run."""
        return f"runs/{self.run_id}/"

    def key(self, name: str) -> str:
        """The key of one of the run's papers."""
        return self.prefix + name

    def checkpoint_key(self, step: int, name: str) -> str:
        """The key of a checkpoint's file."""
        return f"{self.prefix}checkpoints/{step}/{name}"

    def list_checkpoint_steps(self) -> list[int]:
        """The steps of which any file is there, in order, whether or not it is whole."""
        start = f"{self.prefix}checkpoints/"
        steps = {key.removeprefix(start).split("/")[0] for key in self.store.list(start)}
        return sorted(int(step) for step in steps if _STEP.fullmatch(step))

    def write_text(self, name: str, text: str) -> None:
        """Write one paper, over an older one: a later attempt says it anew."""
        self.store.put(self.key(name), text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write one paper as JSON. NaN is an error: no other program could read it."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def read_text(self, name: str) -> str:
        """One paper, or NotFound."""
        return self.store.get(self.key(name)).decode()

    def read_json(self, name: str) -> Any:
        """One paper from JSON, or NotFound."""
        return json.loads(self.store.get(self.key(name)))

    @property
    def events(self) -> Journal | RemoteJournal:
        """What happened to the run."""
        return self._open_journal(EVENTS)

    @property
    def metrics(self) -> Journal | RemoteJournal:
        """What was measured, step by step."""
        return self._open_journal(METRICS)

    def get_scratch_folder(self, name: str) -> Path:
        """A folder for what is thrown away: in the run's own, or of this machine in a bucket."""
        if isinstance(self.store, DirectoryStore):
            return self.store.local_path(self.key(name))
        return read_store_settings().outbox.parent / "scratch" / f"{self.run_id}-{name}"

    def _open_journal(self, name: str) -> Journal | RemoteJournal:
        if isinstance(self.store, DirectoryStore):
            return Journal(self.store.local_path(self.key(name)))
        return RemoteJournal(self.store, self.key(name), urgent=name == EVENTS)
