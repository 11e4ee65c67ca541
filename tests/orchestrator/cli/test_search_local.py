"""`slora search` before its job starts: conditions to resume, and the CPUs of the local Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import InputError
from jobs.plan.preflight import validate_run
from jobs.spec.kinds import require_kind
from jobs.spec.load import dump_spec, load_spec
from jobs.spec.schema import SearchSpec
from orchestrator.cli.local_run import run_to_end
from orchestrator.cli.search_local import count_search_cpus
from tests.jobs.search.specs import raw_search
from tests.tiny import chat_rows, hollow_model


def _make_spec(folder: Path, section: dict[str, Any] | None = None, **spec: Any) -> SearchSpec:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(raw_search(folder, section, **spec)))
    return require_kind(load_spec(path), SearchSpec)


def _resume(spec: SearchSpec, folder: Path, run: str) -> None:
    hollow_model(folder / "model")
    for name in ("train", "eval"):
        chat_rows(folder / f"{name}.jsonl", 8)
    run_to_end(spec, validate_run(spec), resume=run)


def test_a_missing_search_can_not_be_resumed(tmp_path: Path):
    with pytest.raises(InputError, match="there is no search missing") as refused:
        _resume(_make_spec(tmp_path), tmp_path, "missing")
    assert [fault.key for fault in refused.value.faults] == ["--resume"]


def test_a_search_is_resumed_with_its_own_spec_only(tmp_path: Path):
    folder = tmp_path / "store" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(dump_spec(_make_spec(tmp_path, {"samples": 3})))
    with pytest.raises(InputError, match="the spec differs from that of mine"):
        _resume(_make_spec(tmp_path, {"samples": 4}), tmp_path, "mine")


@pytest.mark.parametrize(
    ("section", "cluster", "cpus"),
    [
        pytest.param({"max_concurrent": 2}, {"workers": 3, "cpus_per_worker": 2}, 12, id="limited"),
        pytest.param({"space": {"cluster.workers": {"choice": [1, 500]}}}, {}, 500, id="searched"),
        pytest.param({}, {}, os.cpu_count(), id="this machine"),
    ],
)
def test_a_local_ray_has_room_for_the_largest_trial(
    tmp_path: Path, section: dict[str, Any], cluster: dict[str, Any], cpus: int
):
    assert count_search_cpus(_make_spec(tmp_path, section, cluster=cluster)) == cpus
