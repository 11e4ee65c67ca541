"""Data sets of the hub that the library `datasets` has prepared here, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, DatasetInfo, Features, Value

from jobs.errors import InputError
from jobs.inspect.datasets.file_selection import resolve_files
from jobs.inspect.datasets.files import read_rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def prepare(cache: Path, config: str) -> None:
    """Write a data set as `load_dataset` leaves it: two shards to learn from, and one to test."""
    folder = cache / "open_ai___big_math" / config / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        rows = Dataset.from_list([{"text": name}], features=Features({"text": Value("string")}))
        rows.save_to_disk(folder / "scratch")
        (folder / "scratch/data-00000-of-00001.arrow").rename(folder / f"big_math-{name}.arrow")
    DatasetInfo(config_name=config).write_to_directory(str(folder))


def read_texts(address: str, key: str) -> list[str]:
    files = resolve_files(address, key=key)
    return [row.values["text"] for path in files for row in read_rows(path)]


def test_the_side_of_a_key_or_a_split_that_is_named_is_read(cache: Path):
    prepare(cache, "main")
    shards = ["train-00000-of-00002", "train-00001-of-00002"]
    assert read_texts("hf://OpenAI/BigMath", "data.train") == shards
    assert read_texts("hf://openai/big-math?config=main", "data.eval") == ["test"]
    assert read_texts("openai/big_math", "data.train") == shards
    assert read_texts("hf://openai/big_math?split=test", "data.train") == ["test"]


def test_of_several_configurations_one_must_be_named(cache: Path):
    prepare(cache, "main")
    prepare(cache, "socratic")
    with pytest.raises(InputError, match=r"configurations main, socratic.*config=main"):
        resolve_files("hf://openai/big_math")
    assert len(resolve_files("hf://openai/big_math?config=socratic", key="data.train")) == 2
    with pytest.raises(InputError, match="nor a data set in the local hub cache"):
        resolve_files("hf://openai/big_math@main?config=socratic")
