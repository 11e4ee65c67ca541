"""A restricted process reads what is inside after links are resolved, and tells of nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.file_selection import select_files, walk_folder
from jobs.inspect.datasets.files import read_rows
from jobs.inspect.model_folder import find_model_folder
from jobs.places.boundary import (
    VARIABLE,
    check_spec,
    get_places,
    make_environment,
    open_checked,
    restrict_places,
)
from jobs.places.places import PROBLEM, Places
from jobs.spec.load import validate_spec
from jobs.spec.paths import make_paths_absolute
from orchestrator.control.new_data import compute_data_fingerprint
from tests.orchestrator.control.builders import make_spec

ROW = '{"text": "a"}\n'


class Host:
    """A machine with files of the project `lab` and of others."""

    def __init__(self, root: Path) -> None:
        self.lab, self.other, self.model = root / "lab", root / "other", root / "model"
        for folder in (self.lab, self.other, self.model):
            folder.mkdir()
        (self.lab / "train.jsonl").write_text(ROW)
        (self.other / "train.jsonl").write_text(ROW)
        self.places = Places(data=(str(self.lab),), models=(str(self.model),))

    def link(self, name: str, target: Path) -> str:
        (self.lab / name).symlink_to(target)
        return str(self.lab / name)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    with restrict_places(host.places):
        yield host


def refuse(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as error:
        action()
    return str(error.value)


def test_files_inside_are_read(host: Host):
    for address in (
        f"{host.lab}",
        f"{host.lab}/train.jsonl",
        f"{host.lab}/*.jsonl",
        f"file://{host.lab}",
    ):
        assert [path.name for path in select_files(address).files] == ["train.jsonl"]
    assert [row.values for row in read_rows(host.lab / "train.jsonl")] == [{"text": "a"}]
    assert find_model_folder(str(host.model)) == host.model


def test_a_link_inside_may_lead_to_another_place(host: Host):
    (host.lab / "more").mkdir()
    (host.lab / "more/x.jsonl").write_text(ROW)
    assert select_files(host.link("own.jsonl", host.lab / "more/x.jsonl")).files
    assert select_files(f"{host.lab}/m*/*.jsonl").files


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(
    "shape",
    ["file", "folder", "in folder", "glob", "glob behind", "globbed folder", "model", "model file"],
)
def test_a_link_that_leads_outside_is_refused_alike_whether_its_target_exists(
    host: Host, shape: str, exists: bool
):
    secret = host.other / ("train.jsonl" if exists else "absent.jsonl")
    folder = host.other if exists else host.other / "absent"
    actions: dict[str, Callable[[], object]] = {
        "file": lambda: select_files(host.link("x.jsonl", secret)),
        "folder": lambda: select_files(host.link("x", folder)),
        "in folder": lambda: (host.link("x.jsonl", secret), select_files(str(host.lab))),
        "glob": lambda: (host.link("x.jsonl", secret), select_files(f"{host.lab}/*.jsonl")),
        "glob behind": lambda: select_files(f"{host.link('x', folder)}/*.jsonl"),
        "globbed folder": lambda: (
            host.link("x", folder), select_files(f"{host.lab}/*/train.jsonl")),
        "model": lambda: find_model_folder(host.link("x", folder)),
        "model file": lambda: (
            (host.model / "tokenizer.json").symlink_to(secret), find_model_folder(str(host.model))),
    }  # fmt: skip
    message = refuse(actions[shape])
    assert PROBLEM in message and str(host.other) not in message and "absent" not in message


def test_a_link_in_a_folder_is_checked_again_when_it_is_followed(host: Host):
    host.link("x", host.other)
    assert PROBLEM in refuse(lambda: select_files(str(host.lab)))
    assert PROBLEM in refuse(lambda: compute_data_fingerprint(str(host.lab)))
    # As if the folder had become a link since the address was checked.
    assert PROBLEM in refuse(lambda: list(walk_folder(host.lab)))


@pytest.mark.parametrize("name", ["train.jsonl", "absent.jsonl"])
def test_a_path_outside_is_refused_alike_whether_it_exists(host: Host, name: str):
    assert PROBLEM in refuse(lambda: select_files(str(host.other / name)))
    assert PROBLEM in refuse(lambda: compute_data_fingerprint(str(host.other / name)))
    assert PROBLEM in refuse(lambda: find_model_folder(str(host.other / name)))


def test_a_chain_of_links_through_a_folder_inside_is_followed_to_its_end(host: Host):
    (host.lab / "deep").mkdir()
    (host.lab / "deep/out").symlink_to(host.other)
    host.link("first", host.lab / "deep")
    assert PROBLEM in refuse(lambda: select_files(f"{host.lab}/first/*/train.jsonl"))
    assert PROBLEM in refuse(lambda: select_files(f"{host.lab}/**/train.jsonl"))


def test_a_file_that_is_swapped_for_a_link_after_its_selection_is_not_read(host: Host):
    (path,) = select_files(str(host.lab)).files
    path.unlink()
    path.symlink_to(host.other / "train.jsonl")
    assert PROBLEM in refuse(lambda: list(read_rows(path)))
    assert PROBLEM in refuse(lambda: open_checked(path).__enter__())


def test_a_file_that_is_swapped_while_it_is_open_stays_the_one_that_was_checked(host: Host):
    path = host.lab / "train.jsonl"
    with open_checked(path) as opened:
        os.replace(host.other / "train.jsonl", path)
        path.write_text("other")
        assert Path(opened).read_text() == ROW


def test_a_relative_path_is_a_hub_id_and_never_a_file(host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(host.other.parent)
    (host.other / "rows").mkdir()
    (host.other / "rows/train.jsonl").write_text(ROW)
    assert PROBLEM in refuse(lambda: select_files("other/rows"))
    with restrict_places(Places(data=("other/rows",), models=("other/rows",))):
        assert "hub cache" in refuse(lambda: select_files("other/rows"))
        assert find_model_folder("other/rows") is None
        spec = validate_spec(make_spec(model={"path": "other/rows"}, data={"train": "other/rows"}))
        absolute = make_paths_absolute(spec)
        assert (absolute.model.path, absolute.data.train) == ("other/rows", "other/rows")
    with restrict_places(None):
        assert make_paths_absolute(spec).data.train == str(host.other / "rows")


def test_a_spec_that_names_another_store_or_place_ends_the_job(host: Host):
    spec = validate_spec(make_spec(data={"train": f"{host.lab}/train.jsonl"}))
    messages = refuse(lambda: check_spec(spec)).splitlines()
    assert [message.partition(":")[0] for message in messages] == ["model.path"]
    with restrict_places(Places(store="file:///store/projects/lab")):
        assert refuse(lambda: check_spec(spec)).startswith("store: ")


def test_a_job_reads_its_places_from_the_environment(host: Host, monkeypatch: pytest.MonkeyPatch):
    environment = make_environment(host.places)
    assert get_places(environment) == host.places
    assert make_environment(None) == {}
    with restrict_places(None):
        assert select_files(str(host.other)).files
    monkeypatch.setenv(VARIABLE, "{}")
    assert get_places() == host.places


def test_places_that_cannot_be_read_restrict_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "not JSON")
    assert VARIABLE in refuse(lambda: select_files("/etc"))


def test_nothing_is_restricted_without_a_service(tmp_path: Path):
    host = Host(tmp_path)
    path = host.link("x.jsonl", host.other / "train.jsonl")
    assert select_files(path).files and list(read_rows(Path(path)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"a": [{"merges_file": "../other/train.jsonl"}]}),
        ("tokenizer_config.json", {"tokenizer_file": "~/secret"}),
        ("config.json", {"vision_config": {"backbone": "/models/other"}}),
        ("adapter_config.json", {"base_model_name_or_path": "/models/other"}),
        ("extra.json", {"vocab_files": ["x", "s3://bucket/x"]}),
    ],
)
def test_a_model_whose_files_name_files_outside_is_refused(
    host: Host, name: str, values: dict[str, object]
):
    (host.model / name).write_text(json.dumps(values))
    assert "names a file outside the model's folder" in refuse(
        lambda: find_model_folder(str(host.model))
    )
    with restrict_places(None):
        assert find_model_folder(str(host.model)) == host.model


def test_a_model_that_tells_where_it_was_saved_is_read(host: Host):
    values = {"_name_or_path": "/home/me/model", "vocab_file": "vocab.txt", "backbone": "org/net",
              "chat_template": "/x", "bos_token": "/"}  # fmt: skip
    for name in ("config.json", "tokenizer_config.json"):
        (host.model / name).write_text(json.dumps(values))
    (host.model / "tokenizer.json").write_text(json.dumps({"model": {"vocab_file": "/etc/passwd"}}))
    (host.model / "broken.json").write_text("[" * 5000)
    assert find_model_folder(str(host.model)) == host.model


def test_a_configuration_that_is_too_large_to_be_checked_is_refused(host: Host):
    (host.model / "huge.json").write_text(json.dumps({"a": "x" * (5 << 20)}))
    assert "larger than 4 MiB" in refuse(lambda: find_model_folder(str(host.model)))
