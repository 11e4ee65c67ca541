"""Scans that may read a limited number of bytes, as stored and decompressed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, ReadLimitExceeded
from jobs.inspect.datasets import files as files_module
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset

LIMIT = 1 << 20
ROW = json.dumps({"text": "some words"}).encode() + b"\n"


def scan(path: Path, *, limit: int | None = 200, max_bytes: int | None = LIMIT) -> DatasetScan:
    return scan_dataset(
        str(path), "text", "causal-lm", "data.train", limit=limit, max_bytes=max_bytes
    )


def write_rows(path: Path, data: bytes) -> Path:
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    pack = packers.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_the_first_rows_of_a_file_of_any_size_are_within_the_limit(tmp_path: Path, suffix: str):
    path = write_rows(tmp_path / f"rows.jsonl{suffix}", ROW * 400_000)
    result = scan(path, max_bytes=4 << 20)
    assert result.rows == 200 and not result.is_complete and result.sha256 is None


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_a_decompression_bomb_is_a_fault(tmp_path: Path, suffix: str):
    path = write_rows(tmp_path / f"bomb.jsonl{suffix}", bytes(64 << 20))
    with pytest.raises(InputError, match=rf"bomb.jsonl{suffix}: its first [\d,]+ bytes decompress"):
        scan(path)


def test_long_rows_exceed_the_limit_without_a_fault(tmp_path: Path):
    letters = "".join(random.Random(0).choices("abcdefgh", k=1 << 16))
    rows = (json.dumps({"text": letters}) + "\n").encode() * 200
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        path = write_rows(tmp_path / name, rows)
        if name.endswith(".gz"):
            # So that they do not compress as a bomb does.
            path.write_bytes(gzip.compress(rows, compresslevel=1))
        with pytest.raises(ReadLimitExceeded, match="take more than 1,048,576 bytes"):
            scan(path)
        assert scan(path, max_bytes=None).rows == 200


def test_a_fault_before_the_limit_is_reported(tmp_path: Path):
    path = write_rows(tmp_path / "rows.jsonl", b"[1]\nnot json\n" + b" " * (8 << 20))
    with pytest.raises(InputError, match=r"rows.jsonl:1"):
        scan(path)


def test_the_first_rows_of_a_table_do_not_read_all_of_it(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    texts = [random.Random(number).randbytes(2000).hex() for number in range(1000)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100)
    assert path.stat().st_size > LIMIT
    result = scan(path)
    assert result.rows == 200 and result.sha256 is None
    with pytest.raises(ReadLimitExceeded):
        scan(path, limit=None)
    assert scan(path, limit=None, max_bytes=None).sha256 is not None


def test_a_lack_of_memory_is_no_fault_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)

    def fail(*_: object, **__: object) -> object:
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    with pytest.raises(MemoryError):
        list(files_module.read_rows(path))
