"""The plan knows how rows are packed, without torch in its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.inspect.model_files import ModelFiles, read_model
from jobs.plan.packing_choice import (
    UNDECIDED,
    PackingChoice,
    ProbeAnswer,
    check_packing,
    choose_packing,
)
from jobs.spec.load import validate_spec
from jobs.spec.schema import RunSpec
from tests.tiny import hollow_model, tiny_spec

OFF = PackingChoice("off", "rows leak")
POSITIONS = PackingChoice("positions", "exact with position_ids alone", by_row=True)


def make_spec(folder: Path, **data: Any) -> RunSpec:
    return validate_spec(tiny_spec(folder, data=data))


def make_model(folder: Path, **says: Any) -> ModelFiles:
    hollow_model(folder / "model", says=says)
    model, faults = read_model(make_spec(folder).model)
    assert model and not faults
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packing"


def test_a_child_process_tries_the_model_once(tmp_path: Path, cache: Path):
    model = make_model(tmp_path / "a")
    assert choose_packing(make_spec(tmp_path / "a"), model) == POSITIONS
    (path,) = cache.iterdir()
    # Sizes and ids of tokens are no part of the question.
    other = make_model(tmp_path / "b", num_attention_heads=2, bos_token_id=7)
    assert choose_packing(make_spec(tmp_path / "b"), other) == POSITIONS
    assert [path] == list(cache.iterdir())


def test_without_an_answer_the_run_decides(tmp_path: Path, cache: Path):
    model = make_model(tmp_path)
    hollow_model(tmp_path / "model", says={"model_type": "of no library"})
    assert choose_packing(make_spec(tmp_path), model) == UNDECIDED
    assert not cache.exists()


def test_the_spec_decides_where_it_can(tmp_path: Path):
    model = make_model(tmp_path)
    assert choose_packing(make_spec(tmp_path, packing=False), model).reason == "set in the spec"
    classifier = tiny_spec(tmp_path, model={"task": "sequence-classification"})
    assert not choose_packing(validate_spec(classifier), model).is_on


def test_a_window_counts_only_if_rows_exceed_it():
    answer = ProbeAnswer(OFF, POSITIONS, 64)
    assert [answer.choose(length) for length in (63, 64, 65)] == [POSITIONS, POSITIONS, OFF]
    assert ProbeAnswer(OFF, OFF, None).choose(8) == OFF


def test_packing_that_the_spec_demands_must_be_possible(tmp_path: Path):
    for packing, choice, faults in (
        (True, OFF, ["data.packing: true, but rows leak. Use auto or false."]),
        (True, POSITIONS, []),
        (True, UNDECIDED, []),
        ("auto", OFF, []),
    ):
        assert [str(f) for f in check_packing(make_spec(tmp_path, packing=packing), choice)] == (
            faults
        )
