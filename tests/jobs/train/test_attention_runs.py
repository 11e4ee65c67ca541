"""Runs that attend by row have the losses of runs with masks, packed or padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

STEPS = 20
RELATIVE = 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_by_row_are_those_with_masks(tmp_path: Path, ranks: int):
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 60)

    def make_case(attention: str, packing: bool) -> TrainingCase:
        spec: dict[str, Any] = tiny_spec(
            tmp_path,
            model={"attention": attention},
            data={"packing": packing, "max_length": 96},
            train={"steps": STEPS, "micro_batch_size": 2, "learning_rate": 1e-3},
        )
        return TrainingCase(f"{attention}-{packing}", spec)

    cases = [make_case(name, packing) for packing in (True, False) for name in ("auto", "sdpa")]
    results = train_all(cases, ranks)
    for case in cases:
        plan = json.loads((tmp_path / "store" / "runs" / case.run / "plan.json").read_text())
        assert plan["attention"] == ("rows" if case.run.startswith("auto") else "sdpa")
    for packing in (True, False):
        by_row, masked = (results[f"{name}-{packing}"].losses for name in ("auto", "sdpa"))
        assert len(by_row) == STEPS
        assert by_row == pytest.approx(masked, rel=RELATIVE)
        assert by_row[-1] < by_row[0]
