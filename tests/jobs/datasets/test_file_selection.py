"""What a user may name as data, and which files of a folder are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.file_selection import resolve_files, select_files
from jobs.store.cache import match_keys
from jobs.store.open import open_store
from tests.jobs.datasets.builders import write_jsonl

JSONL = b'{"text": "a"}\n'


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JSONL)


def list_names(folder: Path, paths: tuple[Path, ...]) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_files_are_found_by_name_url_glob_and_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.jsonl", "a.csv", ".hidden.jsonl", "README.md", "dataset_infos.json")
    touch(tmp_path, "deeper/c.jsonl", "__MACOSX/d.jsonl", "._b.jsonl", "deeper/LICENSE.txt")
    both = (tmp_path / "a.csv", tmp_path / "b.jsonl")
    assert resolve_files(str(tmp_path / "b.jsonl")) == both[1:]
    assert resolve_files(f"file://{tmp_path}/b.jsonl") == both[1:]
    assert resolve_files(str(tmp_path)) == (*both, tmp_path / "deeper" / "c.jsonl")
    assert resolve_files(f"{tmp_path}/[ab].*") == both


def test_a_hidden_file_is_data_only_where_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "_hidden.jsonl")
    assert list_names(tmp_path, resolve_files(f"{tmp_path}/*.jsonl")) == ["a.jsonl"]
    assert list_names(tmp_path, resolve_files(str(tmp_path))) == ["a.jsonl"]
    named = resolve_files(str(tmp_path / "_hidden.jsonl"))
    assert list_names(tmp_path, named) == ["_hidden.jsonl"]


def test_a_folder_tells_which_files_it_leaves_out_and_why(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "notes.txt", "README.txt", "run.py", "state.json")
    selection = select_files(str(tmp_path))
    assert list_names(tmp_path, selection.files) == ["a.jsonl"]
    assert {item.path.name: item.reason for item in selection.skipped} == {
        "README.txt": "documentation",
        "run.py": "not a kind of data file",
        "state.json": "metadata of the data set",
        "notes.txt": "text beside other data files",
    }


def test_a_folder_of_texts_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt", "LICENSE.txt")
    assert list_names(tmp_path, resolve_files(str(tmp_path))) == ["a.txt", "b.txt"]


SPLITS = [
    (("train.jsonl", "test.jsonl"), ["train.jsonl"], ["test.jsonl"]),
    (("x-train-00000-of-00002.jsonl", "x-train-00001-of-00002.jsonl", "x-dev.jsonl"),
     ["x-train-00000-of-00002.jsonl", "x-train-00001-of-00002.jsonl"], ["x-dev.jsonl"]),
    (("train/a.jsonl", "valid/a.jsonl", "test/a.jsonl"), ["train/a.jsonl"], ["valid/a.jsonl"]),
    (("a.jsonl", "b.jsonl", "held-out.jsonl"), ["a.jsonl", "b.jsonl"], ["held-out.jsonl"]),
    (("a.jsonl", "latest.jsonl"), ["a.jsonl", "latest.jsonl"], ["a.jsonl", "latest.jsonl"]),
    (("train_test_mix.jsonl",), ["train_test_mix.jsonl"], ["train_test_mix.jsonl"]),
    (("Train.JSONL", "eval.jsonl", "extra.jsonl"), ["Train.JSONL"], ["eval.jsonl"]),
]  # fmt: skip


@pytest.mark.parametrize(("names", "train", "evaluation"), SPLITS)
def test_splits_are_told_by_the_names_of_files_and_folders(
    tmp_path: Path, names: tuple[str, ...], train: list[str], evaluation: list[str]
) -> None:
    touch(tmp_path, *names)
    assert list_names(tmp_path, resolve_files(str(tmp_path), key="data.train")) == train
    assert list_names(tmp_path, resolve_files(str(tmp_path), key="data.eval")) == evaluation


def test_a_folder_without_the_split_of_its_key_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "test.jsonl")
    with pytest.raises(InputError, match=r"no rows for data.train, only of the split test.*Name"):
        resolve_files(str(tmp_path), key="data.train")
    touch(tmp_path / "train", "train.jsonl")
    with pytest.raises(InputError, match=r"no rows for data.eval, only of the split train"):
        resolve_files(str(tmp_path / "train"), key="data.eval")


def test_a_glob_over_several_splits_takes_all_and_warns(tmp_path: Path) -> None:
    touch(tmp_path, "train.jsonl", "test.jsonl")
    selection = select_files(f"{tmp_path}/*.jsonl", key="data.train")
    assert len(selection.files) == 2
    assert "several splits (test, train)" in selection.warnings[0]


def test_a_folder_without_data_names_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "README.md", "model.bin")
    with pytest.raises(InputError, match=r"no data file in .*Left out: README.md \(docu.*bin \("):
        resolve_files(str(tmp_path))


def test_caches_beside_a_saved_data_set_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "data-00000-of-00001.arrow", "cache-123.arrow")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert list_names(tmp_path, resolve_files(str(tmp_path))) == ["data-00000-of-00001.arrow"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d[1].jsonl", [{"text": "a"}])
    assert resolve_files(str(path)) == (path,)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        pytest.param("nowhere.jsonl", "data.train: file not found: nowhere.jsonl", id="a file"),
        pytest.param("no/w/here", "file not found", id="a path"),
        pytest.param("*.nothing", "file not found", id="a glob"),
        pytest.param("", "no data file|file not found", id="nothing"),
        pytest.param("a\0b", "file not found", id="a zero byte"),
        pytest.param("x" * 5000, "can't be read", id="a very long name"),
        pytest.param("/dev/zero", "file not found", id="a device"),
        pytest.param("s3://b/c", "not a valid bucket name", id="s3"),
        pytest.param("nobody/nothing", "nor a data set in the local hub cache", id="a hub id"),
        pytest.param("hf://nobody/nothing", "nor a data set in the local hub cache", id="hf"),
        pytest.param("hf://nobody/nothing@v1", "nobody/nothing --revision v1", id="hf revision"),
        pytest.param("hf://a/b/c", "not an address of a data set.*Use hf://org/name", id="hf path"),
        pytest.param(
            "hf://a/b?splt=x", "'splt' is not one of its options, config and split", id="hf option"
        ),
        pytest.param("hf://a/b?split", "its split has no value", id="hf empty option"),
        pytest.param("hf://a/b?split=x&split=y", "several values of split", id="hf two splits"),
        pytest.param("hf://a/b@../../x", "is not a revision", id="hf revision outside"),
        pytest.param("hf://a/b@/etc", "is not a revision", id="hf absolute revision"),
        pytest.param("hf://a/b?config=..", "is not a configuration", id="hf config outside"),
    ],
)
def test_an_address_without_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        resolve_files(address, key="data.train")


CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/part-1.jsonl
  - split: test
    path: main/part-2*
- config_name: socratic
  data_files:
  - {split: train, path: [socratic/*.jsonl]}
- config_name: evil
  data_files: ../../../*.jsonl
---
# A data set
"""


def cache_dataset(home: Path, *names: str, card: str = "") -> Path:
    """A data set as the hub's client leaves it in its cache."""
    repo = home / "datasets--org--name"
    touch(repo / "snapshots" / "abc", *names)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "README.md").write_text(card)
    return repo / "snapshots" / "abc"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.parametrize(
    ("address", "key", "names"),
    [
        ("org/name", "data.train", ["data/train-0.jsonl", "data/train-1.jsonl"]),
        ("hf://org/name", "data.eval", ["data/validation-0.jsonl"]),
        ("hf://org/name?split=test", "data.eval", ["data/test-0.jsonl"]),
        ("hf://datasets/org/name@main?split=train", "data.eval",
         ["data/train-0.jsonl", "data/train-1.jsonl"]),
        ("hf://org/name?config=other", "data.train", ["other/train.jsonl"]),
    ],
)  # fmt: skip
def test_a_data_set_of_the_hub_is_read_from_its_cache(
    hub: Path, address: str, key: str, names: list[str]
) -> None:
    files = [f"data/{name}-0.jsonl" for name in ("train", "validation", "test")]
    folder = cache_dataset(hub, *files, "data/train-1.jsonl")
    if "config" in address:
        touch(folder, "other/train.jsonl", "other/test.jsonl")
    assert list_names(folder, resolve_files(address, key=key)) == names


def test_the_card_of_a_data_set_tells_its_configurations_and_splits(hub: Path) -> None:
    folder = cache_dataset(
        hub, "main/part-1.jsonl", "main/part-2.jsonl", "socratic/a.jsonl", card=CARD
    )
    main = "hf://org/name?config=main"
    assert list_names(folder, resolve_files(main, key="data.train")) == ["main/part-1.jsonl"]
    assert list_names(folder, resolve_files(main, key="data.eval")) == ["main/part-2.jsonl"]
    socratic = resolve_files("hf://org/name?config=socratic&split=train")
    assert list_names(folder, socratic) == ["socratic/a.jsonl"]
    with pytest.raises(InputError, match=r"configurations main, socratic, evil.*config=main"):
        resolve_files("org/name")
    with pytest.raises(InputError, match="no data file"):
        resolve_files("hf://org/name?config=evil")
    with pytest.raises(InputError, match=r"no files of the split dev.*test, train"):
        resolve_files("hf://org/name?config=main&split=dev")


def test_the_folders_of_a_prefix_are_listed_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("a.jsonl", "train/a.jsonl", "test/deep/b.jsonl", "_old/c.jsonl", "test/.d.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}")
    store = open_store(f"file://{tmp_path}")
    keys = ["data/a.jsonl", "data/test/deep/b.jsonl", "data/train/a.jsonl"]
    assert match_keys(store, "data") == match_keys(store, "data/") == keys
    assert match_keys(store, "data/train/*.jsonl") == ["data/train/a.jsonl"]
