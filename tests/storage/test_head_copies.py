"""Copies of the starts of objects: bounded, and never taken for whole objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ReadLimitExceeded
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.inspect.model_folder import find_model_folder
from jobs.inspect.weight_files import read_weights
from jobs.spec.load import validate_spec
from jobs.store.s3.s3_store import S3Store
from jobs.store.settings import HEAD_BYTES
from orchestrator.control.looking.look_protocol import LookLimits, LookRequest
from orchestrator.control.looking.look_runner import LookRunner
from tests.orchestrator.control.builders import make_spec
from tests.tiny import chat_rows, hollow_model

LIMIT = 1 << 20
ROW = json.dumps({"text": "some words"}).encode() + b"\n"


@pytest.fixture
def heads(s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store of which this process copies the starts of objects only."""
    monkeypatch.setenv(HEAD_BYTES, str(LIMIT))
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return s3


def scan(url: str) -> DatasetScan:
    return scan_dataset(url, "text", "causal-lm", "data.train", limit=200)


def measure_copies(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_first_rows_of_a_large_object_are_read_by_a_range(heads: S3Store, tmp_path: Path):
    heads.put("rows.jsonl", ROW * 200_000)
    heads.put("small.jsonl", ROW * 3)
    assert scan(heads.url("rows.jsonl")).rows == 200
    assert scan(heads.url("small.jsonl")).is_complete
    assert measure_copies(tmp_path) <= LIMIT + len(ROW) * 3
    assert not (tmp_path / "cache").exists()


def test_the_end_of_a_copy_is_not_that_of_its_object(heads: S3Store):
    heads.put("long.jsonl", (json.dumps({"text": "x" * 10_000}) + "\n").encode() * 300)
    with pytest.raises(ReadLimitExceeded, match=r"only the first 1,048,576 bytes of long\.jsonl"):
        scan(heads.url("long.jsonl"))
    heads.put("table.parquet", b"PAR1" + bytes(2 * LIMIT))
    with pytest.raises(ReadLimitExceeded, match=r"table.parquet is too long"):
        scan(heads.url("table.parquet"))


def test_the_copies_of_many_objects_share_the_limit(heads: S3Store, tmp_path: Path):
    for number in range(8):
        heads.put(f"rows/{number}.jsonl", ROW * 20_000)
    assert scan(heads.url("rows")).rows == 200
    assert measure_copies(tmp_path) == LIMIT
    for number in range(8, 20):
        heads.put(f"rows/{number}.jsonl", ROW)
    with pytest.raises(ReadLimitExceeded, match="20 objects"):
        scan(heads.url("rows"))


def put_model(store: S3Store, folder: Path, key: str) -> str:
    for path in sorted(hollow_model(folder).iterdir()):
        store.put(f"{key}/{path.name}", path.read_bytes())
    return store.url(key)


def test_of_weights_the_header_is_copied_and_their_size_is_known(heads: S3Store, tmp_path: Path):
    url = put_model(heads, tmp_path / "model", "base")
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [4 * LIMIT], "data_offsets": [0, 4 * LIMIT]}}
    ).encode()
    header += b" " * (2**19 - len(header))
    weights = len(header).to_bytes(8, "little") + header + bytes(4 * LIMIT)
    heads.put("base/model.safetensors", weights)
    folder = find_model_folder(url)
    assert folder is not None
    spans, faults = read_weights(folder)
    assert faults == [] and spans["w"].end == 4 * LIMIT
    assert (folder / "model.safetensors").stat().st_size == 8 + len(header)
    heads.put("base/model.safetensors", (2**60).to_bytes(8, "little") + bytes(4 * LIMIT))
    folder = find_model_folder(url)
    assert folder is not None
    assert "header of 1152921504606846976 bytes" in str(read_weights(folder)[1][0])
    heads.put("base/config.json", b"{}" + b" " * LIMIT)
    with pytest.raises(ReadLimitExceeded, match="too long"):
        find_model_folder(url)


@pytest.fixture
def runner() -> Iterator[LookRunner]:
    runner = LookRunner(limits=LookLimits(wall_s=300, copy_bytes=LIMIT))
    yield runner
    runner.close()


def test_a_look_reads_a_bucket_with_the_credentials_of_its_project(
    s3: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: LookRunner
):
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    model = put_model(s3, tmp_path / "model", "base")
    s3.put("train.jsonl", chat_rows(tmp_path / "train.jsonl", 4).read_bytes() * 20_000)

    def look(project: str, train: str) -> Any:
        data = {"train": s3.url(train), "max_length": 32}
        spec = make_spec(s3.url(""), model={"path": model}, data=data, method={"rank": 2})
        values = validate_spec(spec).training.model_dump(mode="json")
        return runner.submit(project, LookRequest(question="validate_run", spec=values)).result(300)

    assert look("default", "train.jsonl").faults == ()
    assert look("default", "train.jsonl").store_error == ""
    (fault,) = look("default", "none.jsonl").faults
    assert fault.problem == f"no data file under {s3.url('none.jsonl')}"
    # Another project has no credentials here.
    assert look("lab", "train.jsonl").store_error
    assert not (tmp_path / "cache").exists()
