"""A run whose model, data and store are in a bucket, and no secret anywhere in its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.store.adapters.operations import resolve_adapter, verify_adapter
from jobs.store.runs.run_store import RunStore, list_runs
from jobs.store.s3.s3_store import S3Store
from tests.ray_head import RAY, ray_head
from tests.storage.weed import KEY, Weed
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
SLORA = str(Path(sys.executable).with_name("slora"))


def upload(store: S3Store, folder: Path, under: str) -> str:
    for path in folder.iterdir():
        store.put_file(f"{under}/{path.name}", path)
    return store.url(under)


@pytest.fixture
def spec(s3: S3Store, tmp_path: Path) -> Path:
    model = upload(s3, tiny_chat_model(tmp_path / "model"), "models/tiny")
    (tmp_path / "rows").mkdir()
    chat_rows(tmp_path / "rows" / "train.jsonl", 60)
    rows = upload(s3, tmp_path / "rows", "rows")
    document = tiny_spec(
        tmp_path,
        model={"path": model},
        data={"train": f"{rows}/*.jsonl", "eval_fraction": 0.2},
        train={"steps": 8, "checkpoint_every": 3},
        cluster={"workers": 2},
        store=s3.url("store"),
    )
    return write_spec(tmp_path / "spec.yaml", document)


@pytest.mark.long
def test_a_run_needs_no_shared_folder_and_leaks_no_secret(
    spec: Path, s3: S3Store, weed: Weed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    with ray_head(tmp_path / "head") as head:
        environment = {**head.environment, "RAY_ADDRESS": head.url}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                words, env=environment, capture_output=True, text=True, timeout=850, check=False
            )

        done = run(SLORA, "train", str(spec), "--json")
        output = run(RAY, "job", "list", "--address", head.url)
    messages = done.stdout + done.stderr
    assert done.returncode == 0, messages
    leaks = json.loads(done.stdout)
    assert leaks["adapter"] == "tiny@v1"
    store = S3Store(s3.bucket, f"{s3.prefix}/store")
    adapter = resolve_adapter(store, "tiny")
    assert verify_adapter(store, adapter) == []
    assert adapter.base.path == s3.url("models/tiny")
    [run] = list_runs(store)
    runs = RunStore(store, run)
    steps = [m["step"] for m in runs.metrics.tail(0)[0] if "evaluation" not in m]
    assert steps == sorted(set(steps)) and steps[-1] == 8
    kinds = [event["event"] for event in runs.events.tail(0)[0]]
    assert kinds[-1] == "published" and "checkpoint_saved" in kinds
    # In the bucket, in the output, in the Jobs API of Ray, or in a file of Ray.
    secrets = weed.secret.encode(), KEY.encode()
    written = {key: s3.get(key) for key in s3.list("")}
    written |= {"what it said": messages.encode(), "ray job list": output.stdout.encode()}
    assert "jobs.finetune" in output.stdout, output.stderr
    of_ray = [path for path in (tmp_path / "head").rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in of_ray)
    written |= {str(path): path.read_bytes() for path in (*of_ray, spec)}
    assert [name for name, data in written.items() if any(word in data for word in secrets)] == []
