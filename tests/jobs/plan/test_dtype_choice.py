"""`model.dtype: auto` takes bfloat16 where the hardware computes it faster, and says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.inspect.model_files import ModelFiles, read_model
from jobs.plan.dtype_choice import (
    FLOAT32,
    ProbeShape,
    ProductSeconds,
    choose_dtype,
    choose_for_gpus,
    choose_for_machine,
    choose_for_processor,
    make_probe_shape,
    set_dtype,
)
from jobs.plan.preflight import replan, validate_run
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from jobs.train.monitor.event_text import format_dtype
from slora.kernels.processor import Processor, read_processor
from slora.layers.shapes import LayerShape
from tests.tiny import chat_rows, hollow_model, tiny_spec

AMX, OLD = Processor("new", ("amx_bf16",)), Processor("old", ())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dtype"


def make_spec(folder: Path, **model: str) -> RunSpec:
    return validate_spec(tiny_spec(folder, model=model))


def make_model(folder: Path) -> ModelFiles:
    hollow_model(folder / "model")
    model, faults = read_model(make_spec(folder).model)
    assert model and not faults
    return model


def test_bfloat16_takes_instructions_and_twice_the_speed():
    fast = choose_for_processor(AMX, lambda: ProductSeconds(2.9, 1.0))
    assert (fast.dtype, fast.speedup) == ("bfloat16", 2.9)
    assert format_dtype(vars(fast)) == "bfloat16 (auto: 2.9 x faster than float32 here)"
    slow = choose_for_processor(AMX, lambda: ProductSeconds(1.9, 1.0))
    assert format_dtype(vars(slow)) == "float32 (auto: bfloat16 is only 1.9 x as fast here)"
    unmeasured = choose_for_processor(AMX, lambda: None)
    assert unmeasured.dtype == "float32" and "could not be measured" in unmeasured.reason


def test_a_processor_without_the_instructions_measures_nothing():
    def measure() -> ProductSeconds:
        raise AssertionError("measured")

    choice = choose_for_processor(OLD, measure)
    assert choice.dtype == "float32" and "neither AMX nor AVX512-BF16" in choice.reason


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [((9.0, 8.0), "bfloat16"), ((9.0, 7.5), "float32"), ((), "bfloat16")],
)
def test_gpus_compute_in_bfloat16_unless_one_is_too_old(
    capabilities: tuple[float, ...], dtype: str
):
    choice = choose_for_gpus(capabilities)
    assert (choice.dtype, choice.is_auto) == (dtype, True)


def test_a_dtype_in_the_spec_is_taken_as_it_is(tmp_path: Path):
    model = make_model(tmp_path)
    for dtype in ("float32", "bfloat16"):
        choice = choose_dtype(make_spec(tmp_path, dtype=dtype), model)
        assert format_dtype(vars(choice)) == dtype


def test_the_products_are_those_of_the_widest_layer_within_bounds(tmp_path: Path):
    spec = make_spec(tmp_path)
    layers = {"a": (8, 16), "b": (64, 32), "c": LayerShape(8 * 48, 32, experts=8)}
    assert make_probe_shape(spec, layers) == ProbeShape(64, 64, 32)
    large = validate_spec(tiny_spec(tmp_path, train={"micro_batch_size": 64}))
    assert make_probe_shape(large, {"a": (28672, 8192)}) == ProbeShape(512, 1024, 1024)


def test_a_machine_is_measured_once(tmp_path: Path, cache: Path):
    shape = ProbeShape(8, 32, 16)
    first = choose_for_machine(shape, tmp_path, on_gpu=False)
    if not read_processor().flags:
        assert first.dtype == "float32" and not cache.exists()
        return
    (path,) = cache.iterdir()
    # What is recorded counts, and not a second measurement.
    path.write_text(json.dumps({"float32_s": 5.0, "bfloat16_s": 1.0}))
    choose_for_machine.__globals__["_recall_or_probe"].cache_clear()
    second = choose_for_machine(shape, tmp_path, on_gpu=False)
    assert (second.dtype, second.float32_s) == ("bfloat16", 5.0)


def test_a_plan_is_made_in_the_chosen_dtype(tmp_path: Path):
    make_model(tmp_path)
    chat_rows(tmp_path / "train.jsonl", 8)
    plans = {
        dtype: validate_run(make_spec(tmp_path, dtype=dtype), quick=True)
        for dtype in ("float32", "bfloat16", "auto")
    }
    chosen = plans["auto"]
    assert chosen.plan.dtype.is_auto and chosen.spec.model.dtype == chosen.plan.dtype.dtype
    assert chosen.plan.estimate == plans[chosen.plan.dtype.dtype].plan.estimate
    assert plans["float32"].plan.dtype == FLOAT32
    assert plans["bfloat16"].plan.to_json()["dtype"]["dtype"] == "bfloat16"
    assert replan(chosen, make_spec(tmp_path, dtype="bfloat16")).plan.estimate == (
        plans["bfloat16"].plan.estimate
    )


def test_the_spec_keeps_its_kind_when_its_dtype_is_set(tmp_path: Path):
    spec = make_spec(tmp_path, dtype="auto")
    assert set_dtype(spec, "bfloat16") == make_spec(tmp_path, dtype="bfloat16")
    assert spec.model.dtype == "auto"
