"""`slora search` before its job starts: what it refuses to go on with, and the Ray it needs."""

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
from orchestrator.cli.search_local import _count_cpus, run_search
from tests.jobs.search.specs import raw_search
from tests.tiny import chat_rows, hollow_model


def _asked(folder: Path, section: dict[str, Any] | None = None, **spec: Any) -> SearchSpec:
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(raw_search(folder, section, **spec)))
    return require_kind(load_spec(path), SearchSpec)


def _run(search: SearchSpec, folder: Path, *, resume: str) -> int:
    hollow_model(folder / "model")
    for name in ("train", "eval"):
        chat_rows(folder / f"{name}.jsonl", 8)
    return run_search(search, validate_run(search), resume=resume, json=False)


def test_a_search_that_is_not_there_can_not_go_on(tmp_path: Path):
    with pytest.raises(InputError, match="there is no search missing") as refused:
        _run(_asked(tmp_path), tmp_path, resume="missing")
    assert [fault.key for fault in refused.value.faults] == ["--resume"]


def test_a_search_goes_on_with_its_own_spec_only(tmp_path: Path):
    folder = tmp_path / "store" / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(dump_spec(_asked(tmp_path, {"samples": 3})))
    with pytest.raises(InputError, match="mine was another search"):
        _run(_asked(tmp_path, {"samples": 4}), tmp_path, resume="mine")


@pytest.mark.parametrize(
    ("section", "cluster", "cpus"),
    [
        pytest.param({"max_concurrent": 2}, {"workers": 3, "cpus_per_worker": 2}, 12, id="asked"),
        pytest.param({"space": {"cluster.workers": {"choice": [1, 500]}}}, {}, 500, id="searched"),
        pytest.param({}, {}, os.cpu_count(), id="this machine"),
    ],
)
def test_a_local_ray_has_room_for_the_largest_trial(
    tmp_path: Path, section: dict[str, Any], cluster: dict[str, Any], cpus: int
):
    assert _count_cpus(_asked(tmp_path, section, cluster=cluster)) == cpus
