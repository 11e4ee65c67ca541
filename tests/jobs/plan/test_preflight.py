"""Bad input gives a single fault each, faults are reported together, and nothing is written."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Fault, InputError
from jobs.plan.preflight import QUICK_ROWS, ValidatedRun, validate_run
from jobs.spec.load import load_spec, validate_spec
from jobs.spec.paths import make_paths_absolute
from jobs.spec.strategies import ALLOWED_MASKS, make_mask_environment
from tests.tiny import chat_rows, hollow_model, label_rows, merge_spec, tiny_spec, write_spec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def make_folder(folder: Path) -> Path:
    """Make a folder in which the tiny spec can be run: with a model and rows, without a store."""
    hollow_model(folder / "model")
    chat_rows(folder / "train.jsonl", 8)
    return folder


def validate_folder(folder: Path, *, quick: bool = False, **overrides: Any) -> ValidatedRun:
    spec = load_spec(write_spec(folder / "spec.yaml", tiny_spec(folder, **overrides)))
    return validate_run(make_paths_absolute(spec), quick=quick)


def list_faults(folder: Path, **overrides: Any) -> list[Fault]:
    with pytest.raises(InputError) as refused:
        validate_folder(folder, **overrides)
    return list(refused.value.faults)


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return everything below a folder, with its size and the time of its last change."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")
    }


def test_a_job_loads_only_the_installed_masks_that_its_service_allows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def list_problems(**method: str) -> list[str]:
        return [f"{fault.key} {fault.problem}" for fault in list_faults(folder, method=method)]

    monkeypatch.setenv(ALLOWED_MASKS, "[]")
    refused = "'loudest' is not a mask strategy that this service allows"
    assert list_problems(mask="loudest") == [f"method.mask {refused}"]
    assert list_problems(mask="rows", score="loudest") == [f"method.score {refused}"]
    assert validate_folder(folder, method={"mask": "fisher"})
    # That one may be loaded does not mean that it is installed.
    for allowed in (["quietest"], None):
        monkeypatch.delenv(ALLOWED_MASKS)
        for name, value in make_mask_environment(allowed).items():
            monkeypatch.setenv(name, value)
        (problem,) = list_problems(mask="quietest")
        assert problem.startswith("method.mask ") and "this service allows" not in problem
    monkeypatch.setenv(ALLOWED_MASKS, "loudest")
    assert list_problems() == [f"{ALLOWED_MASKS} not a JSON array of names"]


def make_classifier(folder: Path, **changes: Any) -> dict[str, Any]:
    hollow_model(folder / "model", says={"architectures": ["BertModel"], "model_type": "bert"})
    label_rows(folder / "train.jsonl", 8)
    spec = {
        "model": {"task": "sequence-classification"},
        "data": {"format": "classification"},
    }
    return merge_spec(spec, changes)


def append_line(path: Path, line: str | bytes) -> None:
    with path.open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())


def truncate_gzip(folder: Path) -> dict[str, Any]:
    packed = gzip.compress((folder / "train.jsonl").read_bytes())
    (folder / "train.jsonl.gz").write_bytes(packed[:-20])
    return {"data": {"train": str(folder / "train.jsonl.gz")}}


def truncate_jsonl(folder: Path) -> None:
    path = folder / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-30])


def add_label_to_eval(folder: Path) -> dict[str, Any]:
    rows = label_rows(folder / "eval.jsonl", 3, ["warm", "cold", "hot"])
    return make_classifier(folder, data={"eval": str(rows)})


def write_single_label(folder: Path) -> dict[str, Any]:
    rows = label_rows(folder / "one.jsonl", 3, ["a"])
    return make_classifier(folder, data={"train": str(rows)})


def make_empty_folder(folder: Path) -> dict[str, Any]:
    (folder / "rows").mkdir()
    return {"data": {"train": str(folder / "rows")}}


def store_under_a_file(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("")
    return {"store": f"file://{folder}/file/store"}


def write_text_eval(folder: Path) -> dict[str, Any]:
    (folder / "eval.txt").write_text("a text\n")
    return {"data": {"eval": str(folder / "eval.txt"), "format": "auto"}}


Prepare = Callable[[Path], Any]
BAD: dict[str, tuple[Prepare, str, str]] = {
    "no such model folder": (
        lambda at: {"model": {"path": "/no/such/model"}}, "model.path", "/no/such/model: no such"),
    "a model of another task": (
        lambda at: hollow_model(at / "model", says={"architectures": ["BertModel"]}),
        "model.task", "BertModel"),
    "data of another task": (
        lambda at: {"data": {"format": "classification"}}, "data.format", "does not fit causal-lm"),
    "no such data": (
        lambda at: {"data": {"train": f"{at}/none.jsonl"}}, "data.train", "file not found"),
    "an empty file": (
        lambda at: (at / "train.jsonl").write_text(""), "data.train", "no rows in"),
    "a folder without data": (make_empty_folder, "data.train", "no data file"),
    "an unsupported file type": (
        lambda at: {"data": {"train": str(at / "model/model.safetensors")}},
        "model.safetensors", "unsupported file type .safetensors"),
    "a row without messages": (
        lambda at: append_line(at / "train.jsonl", '{"text": "a"}\n'),
        "train.jsonl:9", "chat needs 'messages'; the row has 'text'"),
    "a conversation without an answer": (
        lambda at: append_line(
            at / "train.jsonl", '{"messages": [{"role": "user", "content": "a"}]}\n'),
        "train.jsonl:9", "no message is from the assistant"),
    "an image in a message": (
        lambda at: append_line(
            at / "train.jsonl",
            '{"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}\n'),
        "train.jsonl:9", "image"),
    "not UTF-8": (
        lambda at: append_line(at / "train.jsonl", b'{"messages": "caf\xe9"}\n'),
        "train.jsonl:9", "not UTF-8"),
    "truncated gzip": (truncate_gzip, "train.jsonl.gz", "truncated gzip"),
    "truncated JSONL": (truncate_jsonl, "train.jsonl:8", "truncated"),
    "a strategy of a package that is not here": (
        lambda at: {"method": {"mask": "nowhere-to-be-found"}},
        "method.mask", "'nowhere-to-be-found' is not a mask strategy"),
    "a rank above the smallest target": (
        lambda at: {"method": {"rank": 5, "targets": ["k_proj"]}}, "method.rank",
        "(4 x 8, model.layers.0."),
    "density 0": (lambda at: {"method": {"density": 0}}, "method.density", "0 is not allowed"),
    "density 1.5": (
        lambda at: {"method": {"density": 1.5}}, "method.density", "1.5 is not allowed"),
    "a batch that can't be dealt": (
        lambda at: {"cluster": {"workers": 3}}, "train.batch_size", "divided by 3 workers"),
    "a target that is none": (
        lambda at: {"method": {"targets": ["lm_head"]}}, "method.targets[0]",
        "matches lm_head, which is not adapted (output projection)"),
    "a label in eval that train lacks": (add_label_to_eval, "data.eval", "training data: 'hot'"),
    "a single label": (write_single_label, "data.train", "have the label 'a'"),
    "rows of two formats": (write_text_eval, "data.eval", "text rows, while data.train has chat"),
    "a split that holds out none": (
        lambda at: {"data": {"eval_fraction": 1e-9}}, "data.eval_fraction", "hold out no rows"),
    "no chat template": (
        lambda at: (at / "model/chat_template.jinja").unlink(), "data.format", "no chat template"),
    "a store under a file": (store_under_a_file, "store", "cannot be written"),
    "a store in /proc": (lambda at: {"store": "file:///proc/x"}, "store", "cannot be written"),
    "a store of an unknown kind": (
        lambda at: {"store": "gs://bucket"}, "store", "gs:// is not supported"),
    "a store without a folder": (lambda at: {"store": "file://"}, "store", "has no path"),
    "a store without its slashes": (
        lambda at: {"store": "file:x"}, "store", "is not spelled as a URL"),
    "a store in no bucket": (lambda at: {"store": "s3://B_/p"}, "store", "not a valid bucket name"),
    "a name with /": (lambda at: {"name": "a/b"}, "name", "not a valid name"),
    "a name with ..": (lambda at: {"name": "../b"}, "name", "not a valid name"),
    "sequences longer than the model": (
        lambda at: {"data": {"max_length": 129}}, "data.max_length", "exceeds the model's 128"),
}  # fmt: skip


def test_bad_input_is_a_single_fault_and_writes_nothing(tmp_path: Path):
    for number, (case, (prepare, key, problem)) in enumerate(BAD.items()):
        folder = make_folder(tmp_path / str(number))
        changes = prepare(folder)
        overrides = changes if isinstance(changes, dict) else {}
        write_spec(folder / "spec.yaml", tiny_spec(folder, **overrides))
        before = list_files(folder)
        with pytest.raises(InputError) as refused:
            validate_run(load_spec(folder / "spec.yaml"))
        [fault] = refused.value.faults
        assert fault.key == key or fault.key.endswith(f"/{key}"), case
        assert problem in fault.problem and fault.remedy, case
        assert list_files(folder) == before, case
        assert not Path("/proc/x").exists(), case


def test_faults_of_all_sections_are_reported_together(folder: Path):
    (folder / "file").write_text("")
    append_line(folder / "train.jsonl", "{}\n[]\n")
    (folder / "model/chat_template.jinja").unlink()
    faults = list_faults(
        folder,
        data={"max_length": 500, "eval": "/no/such.jsonl"},
        method={"rank": 99, "targets": ["q_proj", "nothing"]},
        cluster={"workers": 3},
        store=f"file://{folder}/file/store",
    )
    assert [fault.key.rpartition("/")[2] for fault in faults] == [
        "train.jsonl:9", "train.jsonl:10", "data.eval", "data.format", "data.max_length",
        "train.batch_size", "method.targets[1]", "method.rank", "store",
    ]  # fmt: skip


def test_a_missing_model_does_not_hide_the_faults_of_the_data(folder: Path):
    (folder / "train.jsonl").write_text("")
    keys = [fault.key for fault in list_faults(folder, model={"path": "/no/such/model"})]
    assert keys == ["model.path", "data.train"]


def test_a_valid_spec_is_validated_and_writes_nothing(folder: Path):
    write_spec(folder / "spec.yaml", tiny_spec(folder))
    before = list_files(folder)
    validated = validate_run(load_spec(folder / "spec.yaml"))
    assert list_files(folder) == before
    assert (validated.train_scan.format, validated.train_scan.rows, validated.train_scan.files) == (
        "chat", 8, (folder / "train.jsonl",))  # fmt: skip
    assert validated.plan.target_weights == 2 * 8 * 8 + 2 * 4 * 8 + 3 * 16 * 8
    assert validated.model.folder == (folder / "model").resolve()
    assert validated.eval_scan is None


def test_a_classifier_is_planned_with_its_head(folder: Path):
    assert validate_folder(folder, **make_classifier(folder)).plan.head == 2 * 8 + 2


def test_sequences_as_long_as_the_model_are_allowed(folder: Path):
    assert validate_folder(folder, data={"max_length": 128})


def test_only_conversations_need_a_chat_template(folder: Path):
    (folder / "model/chat_template.jinja").unlink()
    (folder / "train.txt").write_text("one\ntwo\n")
    assert validate_folder(folder, data={"train": str(folder / "train.txt"), "format": "text"})


def test_a_quick_look_reads_the_first_rows_and_asks_nothing_of_the_store(folder: Path):
    chat_rows(folder / "train.jsonl", QUICK_ROWS)
    append_line(folder / "train.jsonl", "not JSON\n")
    validated = validate_folder(folder, quick=True, store="file:///proc/x")
    assert (validated.train_scan.rows, validated.train_scan.sha256) == (QUICK_ROWS, None)
    assert [fault.key for fault in list_faults(folder)] == [
        f"{folder}/train.jsonl:{QUICK_ROWS + 1}"
    ]


ABSOLUTE_PATHS: dict[str, tuple[str, str]] = {
    "a file": ("rows.jsonl", "{here}/rows.jsonl"),
    "a file in a folder": ("data/rows.jsonl", "{here}/data/rows.jsonl"),
    "a glob": ("data/*.jsonl", "{here}/data/*.jsonl"),
    "a file of which there is none": ("./data/none.jsonl", "{here}/data/none.jsonl"),
    "a file in two folders": ("a/b/c.jsonl", "{here}/a/b/c.jsonl"),
    "from the parent": ("../rows.jsonl", "{parent}/rows.jsonl"),
    "from home": ("~/rows.jsonl", "{home}/rows.jsonl"),
    "from nobody's home": ("~nobody-here/rows.jsonl", "{here}/~nobody-here/rows.jsonl"),
    "a whole path": ("/data/rows.jsonl", "/data/rows.jsonl"),
    "a file URL": ("file://data/rows.jsonl", "{here}/data/rows.jsonl"),
    "a hub id": ("owner/rows", "owner/rows"),
    "S3": ("s3://bucket/rows", "s3://bucket/rows"),
}


@pytest.mark.parametrize(("written", "resolved"), ABSOLUTE_PATHS.values(), ids=ABSOLUTE_PATHS)
def test_paths_become_absolute_and_hub_ids_stay(
    written: str, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here = tmp_path / "here"
    chat_rows(here / "data/rows.jsonl", 1)
    monkeypatch.chdir(here)
    spec = validate_spec(tiny_spec(Path("x"), store="file://s"))
    relative_spec = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"path": written}),
            "data": spec.data.model_copy(update={"train": written, "eval": written}),
        }
    )
    absolute_spec = make_paths_absolute(relative_spec)
    expected = resolved.format(here=os.getcwd(), parent=tmp_path, home=Path.home())
    assert (absolute_spec.model.path, absolute_spec.data.train, absolute_spec.data.eval) == (
        expected,
        expected,
        expected,
    )
    assert make_paths_absolute(absolute_spec) == absolute_spec


STORES: dict[str, tuple[str, str]] = {
    "the default": ("file://.cache/store", "file://{here}/.cache/store"),
    "two parts, as a hub id has": ("file://out/store", "file://{here}/out/store"),
    "without a scheme": ("out/store", "file://{here}/out/store"),
    "a whole path": ("file:///data/store", "file:///data/store"),
    "capitals": ("FILE://store", "file://{here}/store"),
    "from home": ("~/store", "file://{home}/store"),
    "no folder": ("file://", "file://"),
    "S3": ("s3://bucket/prefix", "s3://bucket/prefix"),
}


@pytest.mark.parametrize(("written", "resolved"), STORES.values(), ids=STORES)
def test_the_store_becomes_an_absolute_path(
    written: str, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    spec = validate_spec(tiny_spec(tmp_path)).model_copy(update={"store": written})
    assert make_paths_absolute(spec).store == resolved.format(here=os.getcwd(), home=Path.home())


def test_the_rest_of_the_spec_stays_as_it_was(tmp_path: Path):
    spec = validate_spec(tiny_spec(tmp_path))
    assert make_paths_absolute(spec) == spec
    assert json.loads(make_paths_absolute(spec).model_dump_json())["data"]["eval"] is None


def test_an_indivisible_batch_is_reported_beside_a_missing_model(tmp_path):
    chat_rows(tmp_path / "train.jsonl", 8)
    spec = validate_spec(tiny_spec(tmp_path, train={"batch_size": 5}, cluster={"workers": 2}))
    with pytest.raises(InputError) as refused:
        validate_run(spec)
    assert {fault.key for fault in refused.value.faults} == {"model.path", "train.batch_size"}
