"""The loader: every mistake in a file or an override is a fault with its key, problem and fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import Fault, InputError
from jobs.spec.load import dump_spec, load_spec, validate_spec
from jobs.spec.schema import RunSpec
from jobs.spec.yaml_text import MAX_BYTES, parse_yaml_fast
from tests.tiny import tiny_spec, write_spec

HERE = Path("/made/up")
LEAST = "name: a\nmodel: {path: m}\ndata: {train: t}\n"


def list_faults(spec: dict[str, Any]) -> list[Fault]:
    with pytest.raises(InputError) as refused:
        validate_spec(spec)
    return list(refused.value.faults)


def load_faults(path: Path, *overrides: str) -> list[Fault]:
    with pytest.raises(InputError) as refused:
        load_spec(path, overrides)
    return list(refused.value.faults)


def write_text(folder: Path, text: str | bytes) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def load_changed(folder: Path, *overrides: str, **changes: Any) -> RunSpec:
    return load_spec(write_spec(folder / "spec.yaml", tiny_spec(folder, **changes)), overrides)


NEAREST = {
    "root": ({"modle": {}}, "modle", "model"),
    "model": ({"model": {"dtpye": "float32"}}, "model.dtpye", "model.dtype"),
    "data": ({"data": {"max_lenght": 8}}, "data.max_lenght", "data.max_length"),
    "method": ({"method": {"densety": 0.1}}, "method.densety", "method.density"),
    "hand-off": (
        {"method": {"handoff": {"rescael": "none"}}},
        "method.handoff.rescael", "method.handoff.rescale"),
    "train": ({"train": {"batchsize": 8}}, "train.batchsize", "train.batch_size"),
    "stop": ({"train": {"stop": {"patiense": 1}}}, "train.stop.patiense", "train.stop.patience"),
    "cluster": ({"cluster": {"worker": 2}}, "cluster.worker", "cluster.workers"),
    "range": (
        {"cluster": {"workers": {"min": 1, "max": 2, "maxx": 3}}},
        "cluster.workers.maxx", "cluster.workers.max"),
    "another section's": ({"train": {"rank": 4}}, "train.rank", "method.rank"),
    "at the root": ({"rank": 4}, "rank", "method.rank"),
    "another's name elsewhere": ({"train": {"lora_alpha": 4}}, "train.lora_alpha", "method.alpha"),
    "nothing like it": ({"train": {"zzz": 4}}, "train.zzz", "train."),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "key", "nearest"), NEAREST.values(), ids=NEAREST)
def test_an_unknown_key_names_the_nearest_known_key(wrong: dict[str, Any], key: str, nearest: str):
    fault = {fault.key: fault for fault in list_faults(tiny_spec(HERE, **wrong))}[key]
    assert fault.problem == "unknown key"
    named = fault.remedy.removeprefix("The nearest known key is ").removesuffix(".")
    assert named.startswith(nearest) if nearest.endswith(".") else named == nearest


OTHERS = {
    "train.lr": "train.learning_rate",
    "method.r": "method.rank",
    "method.lora_alpha": "method.alpha",
    "train.max_steps": "train.steps",
    "train.num_epochs": "train.epochs",
    "cluster.num_workers": "cluster.workers",
    "model.model_name_or_path": "model.path",
    "data.max_seq_length": "data.max_length",
}


@pytest.mark.parametrize(("other", "ours"), OTHERS.items(), ids=OTHERS)
def test_a_key_of_another_trainer_is_refused_and_ours_named(other: str, ours: str):
    section, _, key = other.partition(".")
    [fault] = list_faults(tiny_spec(HERE, **{section: {key: 1}}))
    assert (fault.key, fault.remedy) == (other, f"The nearest known key is {ours}.")


TYPES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "text as int": ({"train": {"steps": "8"}}, "train.steps", "'8'", "valid integer"),
    "float as int": ({"train": {"steps": 8.0}}, "train.steps", "8.0", "valid integer"),
    "bool as int": ({"train": {"steps": True}}, "train.steps", "True", "valid integer"),
    "text as float": ({"train": {"warmup": "0.1"}}, "train.warmup", "'0.1'", "valid number"),
    "int as bool": ({"method": {"rslora": 1}}, "method.rslora", "1", "valid boolean"),
    "int as a switch": ({"data": {"packing": 1}}, "data.packing", "1", "'auto'"),
    "int as text": ({"model": {"path": 7}}, "model.path", "7", "valid string"),
    "not finite": (
        {"train": {"learning_rate": float("inf")}}, "train.learning_rate", "inf", "finite"),
    "no number": (
        {"train": {"learning_rate": float("nan")}}, "train.learning_rate", "nan", "finite"),
    "zero density": ({"method": {"density": 0}}, "method.density", "0", "greater than 0"),
    "density 1.5": ({"method": {"density": 1.5}}, "method.density", "1.5", "less than or equal"),
    "no rank": ({"method": {"rank": 0}}, "method.rank", "0", "greater than or equal to 1"),
    "unknown choice": ({"method": {"kind": "dora"}}, "method.kind", "'dora'", "'slora'"),
    "two gpus": ({"cluster": {"gpus_per_worker": 2}}, "cluster.gpus_per_worker", "2", "0 or 1"),
    "no workers": ({"cluster": {"workers": 0}}, "cluster.workers", "0", "or equal to 1"),
    "workers in words": ({"cluster": {"workers": "two"}}, "cluster.workers", "'two'", "integer"),
    "one target": ({"method": {"targets": "q_proj"}}, "method.targets", "'q_proj'", "list"),
    "no target": ({"method": {"targets": []}}, "method.targets", "[]", "at least 1"),
    "target no text": ({"method": {"targets": ["q", 1]}}, "method.targets[1]", "1", "string"),
    "section of one value": ({"method": 3}, "method", "3", "a section with keys"),
    "short sequences": ({"data": {"max_length": 4}}, "data.max_length", "4", "equal to 8"),
    "negative seed": ({"train": {"seed": -1}}, "train.seed", "-1", "equal to 0"),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "key", "value", "expected"), TYPES.values(), ids=TYPES)
def test_a_forbidden_value_is_quoted_with_the_allowed_ones(
    wrong: dict[str, Any], key: str, value: str, expected: str
):
    fault = {fault.key: fault for fault in list_faults(tiny_spec(HERE, **wrong))}[key]
    assert fault.problem == f"{value} is not allowed"
    assert expected in fault.remedy and fault.remedy.startswith("It ")
    assert "instance of" not in str(fault) and "tuple" not in str(fault)


def test_faults_of_all_sections_are_reported_together():
    wrong = tiny_spec(
        HERE,
        name="../x",
        model={"task": "magic"},
        data={"eval": "e.jsonl", "eval_fraction": 0.5},
        method={"density": 2, "mask": "my.masks:FISHER"},
        train={"steps": None, "learning_rate": "fast"},
        cluster={"wrokers": 2},
        store=None,
    ) | {"extra": 1}
    assert [fault.key for fault in list_faults(wrong)] == [
        "name", "model.task", "method.density", "method.mask", "train.learning_rate",
        "cluster.wrokers", "extra", "train", "data",
    ]  # fmt: skip
    assert all(fault.problem and fault.remedy for fault in list_faults(wrong))


@pytest.mark.parametrize("key", ["name", "model", "data", "train"])
def test_a_required_key_is_reported_as_missing(key: str):
    [fault] = list_faults(tiny_spec(HERE, **{key: None}))
    assert (fault.key, fault.problem) == (key, "missing")


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"steps": None}, "neither"),
        ({"epochs": 2}, "both"),
    ],
    ids=["neither", "both"],
)
def test_steps_and_epochs_exclude_each_other(train: dict[str, Any], problem: str):
    [fault] = list_faults(tiny_spec(HERE, train=train))
    assert fault.key == "train" and problem in fault.problem


def test_rows_for_evaluation_are_named_or_split_off_not_both():
    [fault] = list_faults(tiny_spec(HERE, data={"eval": "e.jsonl", "eval_fraction": 0.1}))
    assert fault.key == "data" and "both" in fault.problem


def test_numbers_are_read_as_people_write_them(tmp_path: Path):
    text = LEAST + "train: {steps: 8, learning_rate: 1e-3, weight_decay: 1E+0, warmup: 5e-2}\n"
    spec = load_spec(write_text(tmp_path, text + "method: {alpha: 2e1, density: .5}"))
    assert (spec.train.learning_rate, spec.train.weight_decay) == (1e-3, 1.0)
    assert (spec.train.warmup, spec.method.alpha, spec.method.density) == (0.05, 20.0, 0.5)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    text = "\N{ZERO WIDTH NO-BREAK SPACE}" + LEAST + "train: {steps: 8}"
    assert load_spec(write_text(tmp_path, text)).name == "a"


FILES: dict[str, tuple[str | bytes, str]] = {
    "key twice": (LEAST + "train: {steps: 1, steps: 2}", "'steps' appears twice"),
    "section twice": (LEAST + "train: {steps: 1}\ntrain: {steps: 2}", "'train' appears twice"),
    "not UTF-8": (b"name: caf\xe9", "not UTF-8 at byte 9"),
    "UTF-16": ("name: a".encode("utf-16"), "not UTF-8 at byte 0"),
    "a list": ("- name: a", "not a mapping"),
    "a text": ("chat", "not a mapping"),
    "empty": ("", "not a mapping"),
    "only a comment": ("# name: a\n", "not a mapping"),
    "two documents": ("name: a\n---\nname: b\n", "single document"),
    "unclosed": ("model: {path: a", "invalid YAML"),
    "a tab": ("model:\n\tpath: a", "invalid YAML"),
    "a control character": ("name: \x00", "invalid YAML"),
    "a python object": ("name: !!python/object/apply:os.getcwd []", "invalid YAML"),
    "too deep": ("[" * 5000, "invalid YAML"),
    "no such day": ("name: 2020-13-45", "invalid YAML: month must be in"),
    "a number too long": ("name: " + "1" * 5000, "invalid YAML: Exceeds the limit"),
    "too large": ("#" * (MAX_BYTES + 1), "larger than 1,000,000 bytes"),
}


@pytest.mark.parametrize(("text", "problem"), FILES.values(), ids=FILES)
def test_a_malformed_file_is_a_single_fault_under_its_name(
    text: str | bytes, problem: str, tmp_path: Path
):
    path = write_text(tmp_path, text)
    [fault] = load_faults(path)
    assert fault.key == str(path) and problem in fault.problem
    assert "\n" not in str(fault) and fault.remedy


@pytest.mark.parametrize(
    "path", ["/no/such.yaml", "/", "/" + "a" * 300, "/proc/self/mem"],
    ids=["absent", "a folder", "too long a name", "unreadable"],
)  # fmt: skip
def test_an_unreadable_spec_is_a_single_fault(path: str):
    [fault] = load_faults(Path(path))
    assert fault.key == path and fault.remedy


def test_the_largest_allowed_file_is_still_read(tmp_path: Path):
    text = LEAST + "train: {steps: 8}\n#"
    assert load_spec(write_text(tmp_path, text + "x" * (MAX_BYTES - len(text)))).name == "a"


def test_aliases_that_multiply_do_not_fill_the_memory(tmp_path: Path):
    bomb = ["extra0: &a0 [" + ", ".join(["lol"] * 9) + "]"]
    bomb += [
        f"extra{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 30)
    ]  # fmt: skip
    text = "\n".join([*bomb, "name: *a29", "store: *a29", "method: {mask: *a29, targets: *a29}"])
    (fault,) = load_faults(write_text(tmp_path, text))
    assert "it holds more than 10,000 keys and values" in fault.problem


def test_keys_that_are_not_strings_are_reported_in_plain_words(tmp_path: Path):
    faults = load_faults(write_text(tmp_path, LEAST + "train: {steps: 8}\n2: 2\ntrue: 3\nnull: 4"))
    assert len(faults) == 3
    assert {fault.remedy for fault in faults} == {"It should be a string, like every key."}


SET: dict[str, tuple[str, str, Any]] = {
    "a number": ("method.rank=4", "method.rank", 4),
    "an exponent": ("train.learning_rate=5e-4", "train.learning_rate", 5e-4),
    "a list": ("method.targets=[q_proj, v_proj]", "method.targets", ("q_proj", "v_proj")),
    "null": ("train.checkpoint_every=null", "train.checkpoint_every", None),
    "nothing": ("train.checkpoint_every=", "train.checkpoint_every", None),
    "a third level": ("method.handoff.split=b", "method.handoff.split", "b"),
    "the root": ("name=other", "name", "other"),
    "blanks": (" name = other", "name", "other"),
    "an equals sign inside": ("model.path=/a=b", "model.path", "/a=b"),
    "a quoted number": ("name='7'", "name", "7"),
    "a section": ("cluster={workers: 2}", "cluster.workers", 2),
}


@pytest.mark.parametrize(("text", "key", "value"), SET.values(), ids=SET)
def test_set_overrides_any_key(text: str, key: str, value: Any, tmp_path: Path):
    section: Any = load_changed(tmp_path, text)
    for part in key.split("."):
        section = getattr(section, part)
    assert section == value


def test_the_last_of_two_overrides_wins(tmp_path: Path):
    assert load_changed(tmp_path, "method.rank=1", "method.rank=2").method.rank == 2


def test_set_leaves_the_neighbours_alone(tmp_path: Path):
    spec = load_changed(tmp_path, "train.stop.metric=eval_loss", "train.seed=3")
    assert (spec.train.steps, spec.train.batch_size, spec.train.seed) == (6, 4, 3)


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        (["train.epochs=2"], None, 2),
        (["train.epochs=2", "train.steps=9"], 9, None),
    ],
    ids=["epochs", "epochs and back"],
)
def test_naming_epochs_replaces_the_steps_of_the_file(
    overrides: list[str], steps: int | None, epochs: int | None, tmp_path: Path
):
    train = load_changed(tmp_path, *overrides).train
    assert (train.steps, train.epochs) == (steps, epochs)


BAD_SET = {
    "no value": "method.rank",
    "no key": "=4",
    "empty part": "method..rank=4",
    "trailing dot": "method.=4",
    "not YAML": "method.targets=[q",
    "no such day": "name=2020-13-45",
    "too deep": "name=" + "[" * 3000,
}


@pytest.mark.parametrize("text", BAD_SET.values(), ids=BAD_SET)
def test_bad_overrides_are_reported_together(text: str, tmp_path: Path):
    path = write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path))
    first, second = load_faults(path, text, "also bad")
    assert first.key.startswith("--set ") and len(str(first)) < 250
    assert second.key == "--set 'also bad'"


def test_an_override_to_an_unknown_key_names_the_nearest(tmp_path: Path):
    path = write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path))
    [fault] = load_faults(path, "method.rnak=4")
    assert (fault.key, fault.remedy) == ("method.rnak", "The nearest known key is method.rank.")


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "- " * 100_000, "? " * 100_000])
def test_nesting_without_end_is_an_error_and_not_the_end_of_the_process(text: str):
    with pytest.raises((yaml.YAMLError, RecursionError)):
        parse_yaml_fast(text)


def test_plain_values_are_what_yaml_says():
    text = dump_spec(validate_spec(tiny_spec(Path("/here"))))
    assert parse_yaml_fast(text) == yaml.safe_load(text)
