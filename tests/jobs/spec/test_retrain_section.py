"""The retrain section: invalid retrainings are refused by their keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.spec.load import dump_spec, load_spec, validate_spec
from tests.jobs.retrain.specs import a_retrain, raw_retrain
from tests.tiny import write_spec

HERE = Path("/made/up")
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "an unknown key": ({"strat": "current"}, {}, "retrain.strat", "is retrain.start"),
    "an unknown key of the gate": (
        {"gate": {"beter_by": 1.0}}, {}, "retrain.gate.beter_by", "is retrain.gate.better_by"),
    "no start": ({"start": "yesterday"}, {}, "retrain.start", "Use current, scratch"),
    "version nought": ({"start": "v0"}, {}, "retrain.start", "Use current, scratch"),
    "another name's version": ({"start": "chat@v1"}, {}, "retrain.start", "Use current, scratch"),
    "a negative tolerance": (
        {"gate": {"tolerance": -0.1}}, {}, "retrain.gate.tolerance", "greater than or equal to 0"),
    "an infinite margin": (
        {"gate": {"better_by": float("inf")}}, {}, "retrain.gate.better_by", "finite"),
    "an unknown metric": ({"gate": {"metric": "bleu"}}, {}, "retrain.gate.metric", "should be"),
    "a metric that nobody reports": (
        {"gate": {"metric": "eval_accuracy"}}, {}, "retrain.gate.metric", "does not report"),
    "nothing held out": ({}, {"data": {"eval": None}}, "data.eval", "no rows are held out"),
    "two starts": ({}, {"method": {"init": "pissa"}}, "method.init", "pissa initialises"),
    "gates": (
        {}, {"method": {"factor_density": 0.5, "factor_pruning": "gates"}},
        "method.factor_pruning", "cannot continue with gates"),
    "a fault of the spec": ({}, {"method": {"rank": 0}}, "method.rank", "0 is not allowed"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "spec", "key", "problem"), BAD.values(), ids=BAD)
def test_a_bad_retraining_is_refused_by_its_key(section, spec, key, problem):
    with pytest.raises(InputError) as refused:
        a_retrain(HERE, section, **spec)
    problems = {fault.key: f"{fault.problem} {fault.remedy}" for fault in refused.value.faults}
    assert problem in problems[key]


def test_all_faults_are_reported_together():
    with pytest.raises(InputError) as refused:
        a_retrain(HERE, {"start": "soon", "gate": {"missing_rows": "cry"}}, method={"rank": 0})
    keys = {fault.key for fault in refused.value.faults}
    assert keys == {"retrain.start", "retrain.gate.missing_rows", "method.rank"}


@pytest.mark.parametrize("value", [None, {}], ids=["nothing", "an empty section"])
def test_the_bare_key_means_the_defaults(value):
    retrain = validate_spec({**raw_retrain(HERE), "retrain": value})
    assert (retrain.section.start, retrain.section.promote) == ("current", True)
    assert retrain.section.gate.baseline == "current"


def test_what_starts_from_scratch_may_start_anywhere():
    retrain = a_retrain(HERE, {"start": "scratch"}, method={"init": "pissa", "factor_density": 0.5})
    assert retrain.method.init == "pissa"


def test_a_dumped_retraining_loads_as_the_same(tmp_path):
    retrain = a_retrain(tmp_path, {"start": "v3", "gate": {"better_by": 0.01, "tolerance": None}})
    path = tmp_path / "retrain.yaml"
    path.write_text(dump_spec(retrain))
    assert load_spec(path) == retrain


def test_a_key_of_the_gate_may_be_set_from_the_command_line(tmp_path):
    path = write_spec(tmp_path / "retrain.yaml", raw_retrain(tmp_path))
    assert load_spec(path, ["retrain.gate.target=1.5"]).section.gate.target == 1.5
