"""`model.attention` is refused where the class or the workers do not have it, and is told."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from jobs.inspect.model_files import ModelFiles, read_model
from jobs.plan.attention_choice import (
    check_attention,
    describe_attention,
    holds_masks,
    name_attention,
    name_kernel,
)
from jobs.plan.packing_choice import PackingChoice, ProbeAnswer, adapt_to_kernel, choose_packing
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.tiny import hollow_model, tiny_spec

ROWS = PackingChoice("positions", "exact with position_ids alone", by_row=True)
MASK = PackingChoice("mask", "exact with a mask of the rows")


def make_spec(folder: Path, attention: str, **sections: Any) -> RunSpec:
    model = {"attention": attention} | sections.pop("model", {})
    return validate_spec(tiny_spec(folder, model=model, **sections))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFiles:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    hollow_model(tmp_path / "model")
    model, faults = read_model(make_spec(tmp_path, "auto").model)
    assert model and not faults
    return model


def test_the_kernels_are_those_of_the_models_class(model: ModelFiles):
    assert model.description.kernels == ("eager", "sdpa", "flash_attention_2", "flex")
    assert model.description.attention == "sdpa"


CPUS, GPUS = {"gpus_per_worker": 0}, {"gpus_per_worker": 1}
CASES: tuple[tuple[str, dict[str, int], str, str], ...] = (
    ("auto", CPUS, "", ""),
    ("sdpa", CPUS, "", ""),
    ("eager", GPUS, "", ""),
    ("flash_attention_2", CPUS, "runs on GPUs, and cluster.gpus_per_worker is 0", "Use auto."),
    ("flex", CPUS, "has no backward on CPUs", "Use auto."),
    ("flex", GPUS, "", ""),
)
FLASH_FAULTS = ["computes in bfloat16", "needs the package flash-attn"]


@pytest.mark.parametrize(("name", "cluster", "problem", "remedy"), CASES)
def test_a_kernel_that_workers_cannot_run_is_refused(
    tmp_path: Path, model: ModelFiles, name: str, cluster: dict[str, int], problem: str, remedy: str
):
    faults = [*check_attention(make_spec(tmp_path, name, cluster=cluster), model.description)]
    assert [fault.key for fault in faults] == ["model.attention"] * bool(problem)
    assert all(problem in fault.problem and remedy in fault.remedy for fault in faults)


def test_flash_attention_needs_half_precision_and_its_package(tmp_path: Path, model: ModelFiles):
    for dtype, first in (("float32", 0), ("bfloat16", 1)):
        spec = make_spec(tmp_path, "flash_attention_2", model={"dtype": dtype}, cluster=GPUS)
        faults = [*check_attention(spec, model.description)]
        # Where the package is installed, there is one fault less.
        expected = FLASH_FAULTS[first : 1 if find_spec("flash_attn") else 2]
        assert len(faults) == len(expected)
        for fault, problem in zip(faults, expected, strict=True):
            assert problem in fault.problem


def test_a_kernel_that_the_class_lacks_is_refused(tmp_path: Path, model: ModelFiles):
    description = replace(model.description, kernels=("eager", "flash_attention_2"))
    (fault,) = check_attention(make_spec(tmp_path, "sdpa"), description)
    assert str(fault) == (
        "model.attention: sdpa, which LlamaForCausalLM of transformers does not support. "
        "Use auto or eager or flash_attention_2."
    )


def test_the_kernel_of_a_trial_is_adapted_to_that_of_the_spec(tmp_path: Path):
    for name, choice, expected in (
        ("auto", ROWS, ROWS),
        ("auto", MASK, MASK),
        ("sdpa", ROWS, replace(ROWS, by_row=False)),
        ("flash_attention_2", ROWS, replace(ROWS, by_row=False)),
        ("flex", MASK, PackingChoice("off", "flex takes no mask, which the model needs")),
    ):
        assert adapt_to_kernel(choice, make_spec(tmp_path, name)) == expected


def test_rows_that_are_not_packed_are_attended_by_row_too(tmp_path: Path, model: ModelFiles):
    def choose(attention: str, **sections: Any) -> PackingChoice:
        return choose_packing(make_spec(tmp_path, attention, **sections), model)

    assert choose("auto") == ROWS
    unpacked = choose("auto", data={"packing": False})
    assert (unpacked.mode, unpacked.by_row) == ("off", True)
    assert not choose("sdpa", data={"packing": False}).by_row
    assert not choose("auto", model={"task": "sequence-classification"}).by_row
    assert not choose("eager").by_row


def test_attention_by_row_is_tried_where_rows_exceed_a_window_and_where_not():
    answer = ProbeAnswer(replace(ROWS, by_row=False), ROWS, 64)
    assert [answer.choose(length).by_row for length in (64, 65)] == [True, False]


def test_what_is_used_is_told():
    assert name_kernel("auto", "sdpa") == "sdpa" and name_kernel("flex", "sdpa") == "flex_attention"
    assert name_attention("sdpa", ROWS) == "rows" and name_attention("sdpa", MASK) == "sdpa"
    assert describe_attention("rows") == "rows: SDPA within each row, without a mask"
    assert describe_attention("flash_attention_3") == "flash_attention_3"


def test_masks_are_held_by_kernels_that_need_them():
    for kernel, window, held in (
        ("sdpa", None, True),
        ("eager", None, True),
        ("rows", None, False),
        ("rows", 64, False),
        ("rows", 63, True),
        ("flash_attention_2", 63, False),
        ("flex_attention", None, False),
    ):
        assert holds_masks(kernel, window, 64) == held
