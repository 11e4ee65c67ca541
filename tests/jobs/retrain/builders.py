"""Build and commit adapters of a hollow model without torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from jobs.inspect.base_digest import digest_base
from jobs.inspect.datasets.scan import scan_dataset
from jobs.spec.load import dump_spec, validate_spec
from jobs.store.adapters.manifest import BaseRecord, DataRecord, Manifest, ManifestDraft, MaskRecord
from jobs.store.adapters.operations import commit
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import SPEC, RunStore
from tests.jobs.retrain.specs import raw_retrain
from tests.tiny import safetensors

LAYERS = {
    "model.layers.0.self_attn.q_proj": (8, 8),
    "model.layers.0.self_attn.k_proj": (4, 8),
    "model.layers.0.mlp.up_proj": (16, 8),
}


def lora_files(folder: Path, *, rank: int = 2, layers: dict[str, tuple[int, int]] = LAYERS) -> Path:
    """Write a PEFT folder whose tensors are zero."""
    folder.mkdir(parents=True)
    shapes = dict[str, tuple[int, ...]]()
    for name, (rows, columns) in layers.items():
        shapes[f"base_model.model.{name}.lora_A.weight"] = (rank, columns)
        shapes[f"base_model.model.{name}.lora_B.weight"] = (rows, rank)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(shapes))
    config = {"task_type": "CAUSAL_LM", "r": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sparse_files(folder: Path) -> Path:
    """Write a sparse adapter of zeros with three values a layer."""
    folder.mkdir(parents=True)
    values = {f"{name}.values": (3,) for name in LAYERS}
    (folder / "sparse_model.safetensors").write_bytes(safetensors(values))
    config = {
        "task_type": "CAUSAL_LM",
        "layers": [[name, *shape, 1] for name, shape in LAYERS.items()],
        "values": list(LAYERS),
    }
    (folder / "sparse_config.json").write_text(json.dumps(config))
    return folder


def masked_factor_files(folder: Path, factor_mask: dict[str, Any]) -> Path:
    """Write compact factors of rank 2 under these masks, of zeros."""
    folder.mkdir(parents=True)
    values = {f"{name}.{side}.values": (4,) for name in LAYERS for side in ("a_RI", "b_OR")}
    (folder / "sparse_model.safetensors").write_bytes(safetensors(values))
    config = {
        "task_type": "CAUSAL_LM",
        "layers": [[name, *shape, 1] for name, shape in LAYERS.items()],
        "values": [],
        "rank": 2,
        "factor_mask": factor_mask,
    }
    (folder / "sparse_config.json").write_text(json.dumps(config))
    return folder


def committed(
    folder: Path,
    files: Path,
    *,
    run: str = "r1",
    spec: dict[str, Any] | None = None,
    base: str | None = None,
    base_dtype: str | None = None,
    mask: MaskRecord | None = None,
    **changes: Any,
) -> Manifest:
    """Commit an adapter of the tiny spec, and the spec of its run, as the run would."""
    raw = raw_retrain(folder, None, **(spec or {}))
    del raw["retrain"]
    validated = validate_spec(raw)
    store = DirectoryStore(folder / "store")
    text = dump_spec(validated)
    RunStore(store, run).write_text(SPEC, text)
    train = scan_dataset(validated.data.train, "chat", "causal-lm", "data.train")
    eval_data = validated.data.eval and scan_dataset(
        validated.data.eval, "chat", "causal-lm", "data.eval"
    )
    draft = {
        "name": "tiny",
        "kind": validated.method.kind,
        "run": run,
        "attempt": 1,
        "base": BaseRecord(path="model", digest=base)
        if base
        else BaseRecord(path="model", dtype=base_dtype, **vars(digest_base(folder / "model"))),
        "data": DataRecord(
            train_sha256=str(train.sha256),
            eval_sha256=eval_data.sha256 if eval_data else None,
            row_order="file order",
            rows=train.rows,
        ),
        "mask": mask,
        "spec_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "code_version": "0",
        "world_size": 1,
    }
    return commit(store, files, ManifestDraft(**{**draft, **changes}))
