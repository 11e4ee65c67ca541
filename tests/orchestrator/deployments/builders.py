"""Adapters to deploy, with what their runs recorded for a canary."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from jobs.store.adapters.manifest import BaseRecord, Manifest
from jobs.store.adapters.operations import commit, promote
from jobs.store.base import ObjectStore
from jobs.store.runs.canary_file import (
    CANARY_FILE,
    CanaryFile,
    HeldOutRow,
    SampleTokens,
)
from jobs.store.runs.run_store import RunStore
from orchestrator.deployments.deployment_acts import DeploymentWish
from orchestrator.deployments.deployment_record import CanarySettings
from tests.jobs.store.builders import DIGESTS, encode_float_tensor, make_draft

BASE = DIGESTS["a"]
ROWS = (HeldOutRow(tokens=(5, 6, 7, 8), targets=(2, 3)),)
LOSS = 2.0


def commit_version(
    store: ObjectStore,
    folder: Path,
    *,
    form: str = "lora",
    loss: float = LOSS,
    base: str = BASE,
    config: dict[str, Any] | None = None,
    has_canary: bool = True,
) -> Manifest:
    """Commit the next version of chat. `loss` is what its run measured on the held-out rows."""
    folder = folder / secrets.token_hex(4)
    folder.mkdir(parents=True)
    name = "adapter" if form == "lora" else "sparse"
    settings = {"r": 8, "task_type": "CAUSAL_LM", "loss": loss, **(config or {})}
    (folder / f"{name}_config.json").write_text(json.dumps(settings))
    (folder / f"{name}_model.safetensors").write_bytes(encode_float_tensor(loss))
    run = f"chat-20260101-120000-{secrets.token_hex(2)}"
    kind = "sparse" if form == "sparse" else "slora"
    draft = make_draft(run=run, kind=kind, base=BaseRecord(path="/models/base", digest=base))
    manifest = commit(store, folder, draft)
    if has_canary:
        canary = CanaryFile(
            is_chat=False,
            prompts=(SampleTokens(tokens=(1, 2, 3), has_answer=True),),
            rows=ROWS,
            loss=loss,
        )
        store.put(RunStore(store, run).key(CANARY_FILE), canary.model_dump_json().encode())
    return manifest


def commit_promoted(store: ObjectStore, folder: Path, **options: Any) -> Manifest:
    """Commit the next version of chat and promote it."""
    manifest = commit_version(store, folder, **options)
    promote(store, "chat", manifest.version)
    return manifest


def make_wish(
    pin: int | None = None, *, name: str = "chat", endpoint: str = "local", **canary: Any
) -> DeploymentWish:
    return DeploymentWish(name, "chat", pin, endpoint, CanarySettings(**canary))
