"""`slora plan --rates`: every rate starts from the same weights, and nothing is published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.tools.range_test import RateTest, TriedRate, iter_table_rows
from orchestrator.cli.main import app
from tests.tiny import label_rows, tiny_encoder, tiny_spec, write_spec

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


# DeepSpeed, which trains all of a model, is loaded in this process.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["slora", pytest.param("full", marks=pytest.mark.long)])
def test_the_rates_of_each_stage_and_of_the_head_are_tried_from_one_start(
    tmp_path: Path, kind: str
):
    tiny_encoder(tmp_path / "model")
    label_rows(tmp_path / "train.jsonl", 40)
    label_rows(tmp_path / "eval.jsonl", 8)
    spec = tiny_spec(
        tmp_path,
        model={"task": "sequence-classification"},
        data={"format": "classification", "eval": str(tmp_path / "eval.jsonl")},
        method={"kind": kind},
        train={"learning_rate": 1e-3, "sparse_learning_rate": 1e-12, "head_learning_rate": 1e-12},
    )
    path = write_spec(tmp_path / "spec.yaml", spec)
    result = CliRunner().invoke(app, ["plan", str(path), "--rates", "--json"])
    assert result.exit_code == 0, result.output
    tests = {test["key"]: test for test in json.loads(result.stdout)["tests"]}
    stages = {"full": ["train.learning_rate"]}.get(
        kind, ["train.sparse_learning_rate", "train.learning_rate"]
    )
    assert sorted(tests) == sorted([*stages, "train.head_learning_rate"])
    rates = [entry["rate"] for entry in tests["train.learning_rate"]["tried"]]
    assert rates == pytest.approx([2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3])
    losses = [entry["loss"] for entry in tests["train.learning_rate"]["tried"]]
    assert tests["train.learning_rate"]["best"] == rates[losses.index(min(losses))]
    assert len(set(losses)) == len(losses)
    if kind == "slora":
        # Nothing moves at these rates: losses are equal only if each trial has the same start.
        still = [entry["loss"] for entry in tests["train.sparse_learning_rate"]["tried"]]
        assert still == pytest.approx([still[0]] * 5, abs=1e-6)
    assert not (tmp_path / "store" / "adapters").exists()


def test_the_table_names_the_best_rate_the_planned_one_and_an_edge():
    tried = tuple(TriedRate(rate, loss) for rate, loss in ((0.1, 3.0), (0.2, None), (0.4, 1.0)))
    rows = list(iter_table_rows([RateTest("sparse", "train.learning_rate", 0.2, tried)]))
    assert [row[1:] for row in rows] == [
        ("0.1", "3.0000", ""), ("0.2", "diverged", "planned"), ("0.4", "1.0000", "best, edge"),
    ]  # fmt: skip
    inner = RateTest("sparse", "train.learning_rate", 0.2, (*tried, TriedRate(0.8, 2.0)))
    assert list(iter_table_rows([inner]))[2][3] == "best"
