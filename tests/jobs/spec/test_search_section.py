"""The search section: invalid searches are refused by their keys, and trials get their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.errors import InputError
from jobs.search.space import list_precomputed_configs
from jobs.spec.load import load_spec, make_trial_spec, validate_spec
from tests.jobs.search.specs import SPACE, a_search, raw_search

RATE = "train.learning_rate"
BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown key": (
        {"space": {"method.rnak": {"choice": [1]}}}, "search.space.method.rnak", "unknown key"),
    "a section": ({"space": {"method": {"choice": [1]}}}, "search.space.method", "a section"),
    "the name": ({"space": {"name": {"choice": ["a"]}}}, "search.space.name", "same in all"),
    "an empty space": ({"space": {}}, "search.space", "lists no keys"),
    "no space": ({"space": None}, "search.space", "It should be"),
    "an empty choice": (
        {"space": {"method.rank": {"choice": []}}}, "search.space.method.rank.choice", "empty"),
    "two domains": (
        {"space": {"method.rank": {"choice": [1], "grid": [2]}}},
        "search.space.method.rank", "choice and grid"),
    "no domain": ({"space": {"method.rank": {}}}, "search.space.method.rank", "nothing is set"),
    "an unknown domain": (
        {"space": {"method.rank": {"choise": [1]}}},
        "search.space.method.rank.choise", "method.rank.choice"),
    "a value that is none": (
        {"space": {"method.rank": {"choice": [4, 0]}}}, "search.space.method.rank", "0 is not"),
    "a bound that is none": (
        {"space": {"method.density": {"uniform": [0.5, 1.5]}}},
        "search.space.method.density", "1.5 is not"),
    "a range upside down": (
        {"space": {RATE: {"uniform": [2, 1]}}}, f"search.space.{RATE}", "not below"),
    "a logarithm of zero": (
        {"space": {RATE: {"loguniform": [-1, 1]}}}, f"search.space.{RATE}", "no logarithm"),
    "a metric nobody reports": (
        {"metric": "eval_accuracy"}, "search.metric", "does not report eval_accuracy"),
    "an unknown metric": ({"metric": "bleu"}, "search.metric", "should be"),
    "an unknown scheduler": ({"scheduler": "asah"}, "search.scheduler", "should be"),
    "pbt over rank": ({"scheduler": "pbt"}, "search.space.method.rank", "pbt changes values"),
    "a grid without an end": ({"algorithm": "grid"}, f"search.space.{RATE}", "is not finite"),
    "a crossing for tpe": (
        {"algorithm": "tpe", "space": {"method.rank": {"grid": [2, 4]}}},
        "search.space.method.rank", "cannot search a grid"),
    "two objectives for random": (
        {"also_minimise": ["adapter_bytes"]}, "search.also_minimise", "one objective"),
    "a cost without a price": ({"budget": {"cost": 3}}, "search.budget.cost", "price of a machine"),
    "an unknown key of the section": ({"sample": 3}, "search.sample", "is search.samples"),
    "a value that is listed twice": (
        {"space": {"method.rank": {"choice": [2, 4, 2]}}}, "search.space.method.rank",
        "2 is listed twice"),
    "a grid of millions": (
        {"algorithm": "grid", "space": {
            "method.rank": {"randint": [1, 3000]}, "train.seed": {"randint": [0, 999]}}},
        "search.space", "the grid has 3,000,000 trials"),
    "one bound": (
        {"space": {RATE: {"uniform": [0.1]}}}, f"search.space.{RATE}.uniform[1]", "two numbers"),
    "a domain of nothing": (
        {"space": {"method.rank": {}}}, "search.space.method.rank", "nothing is set"),
    "a list for a domain": (
        {"space": {"method.rank": [2, 4]}}, "search.space.method.rank", "not a domain"),
    "workers that come and go": (
        {"space": {"cluster.workers": {"choice": [1, {"min": 1, "max": 2}]}}},
        "search.space.cluster.workers", "a fixed number"),
    "the least of workers that come and go": (
        {"space": {"cluster.workers.min": {"choice": [1, 2]}}},
        "search.space.cluster.workers.min", "a fixed number"),
    "what the trials are judged by": (
        {"space": {"data.eval": {"choice": ["a", "b"]}}}, "search.space.data.eval", "the same in"),
    "the worst of a metric": ({"mode": "max"}, "search.mode", "would select the worst"),
    "pbt of a few at once": (
        {"scheduler": "pbt", "max_concurrent": 2}, "search.max_concurrent", "as many of its"),
    "pbt that waits for what tpe learns": (
        {"scheduler": "pbt", "algorithm": "tpe"}, "search.algorithm", "starts all trials at once"),
    "no samples": ({"samples": 0}, "search.samples", "greater than"),
    "a share above one": (
        {"constraints": {"trainable_share": 2}}, "search.constraints.trainable_share", "less than"),
}  # fmt: skip


def test_a_bad_search_is_refused_by_the_path_of_its_key(tmp_path: Path):
    for case, (search, key, problem) in BAD.items():
        with pytest.raises(InputError) as refused:
            validate_spec(raw_search(tmp_path, search))
        faults = {fault.key: fault for fault in refused.value.faults}
        assert key in faults, (case, faults)
        assert problem in f"{faults[key].problem} {faults[key].remedy}", case
        assert faults[key].problem and faults[key].remedy, case


def test_a_search_without_held_out_rows_or_evaluations_is_refused(tmp_path: Path):
    raw = raw_search(tmp_path)
    del raw["data"]["eval"], raw["train"]["eval_every"]
    with pytest.raises(InputError) as refused:
        validate_spec(raw)
    assert {fault.key for fault in refused.value.faults} == {"data.eval", "train.eval_every"}


def test_faults_of_the_spec_and_of_the_search_are_reported_together(tmp_path: Path):
    raw = raw_search(tmp_path, {"sample": 3})
    raw["method"]["rank"] = 0
    with pytest.raises(InputError) as refused:
        validate_spec(raw)
    assert {fault.key for fault in refused.value.faults} == {"method.rank", "search.sample"}


def test_an_elastic_trial_is_refused(tmp_path: Path):
    with pytest.raises(InputError) as refused:
        a_search(tmp_path, cluster={"workers": {"min": 1, "max": 2}})
    assert [fault.key for fault in refused.value.faults] == ["cluster.workers"]


def test_a_trial_is_the_spec_with_its_values(tmp_path: Path):
    search = a_search(tmp_path)
    spec = make_trial_spec(search, {"method.rank": 4, "train.learning_rate": 0.005})
    assert (spec.method.rank, spec.train.learning_rate) == (4, 0.005)
    assert search.method.rank == 2
    assert set(search.section.space) == set(SPACE)


@pytest.mark.parametrize("key", ["method.rank", "method.factor_density", "method.kind"])
def test_trials_of_several_ranks_or_kinds_have_whole_factors(tmp_path: Path, key: str):
    raw = raw_search(tmp_path)
    values = ["slora", "lora"] if key == "method.kind" else [1]
    raw["method"], raw["search"]["space"] = {}, {key: {"choice": values}}
    method = validate_spec(raw).method
    assert (method.rank, method.alpha, method.factor_density) == (8, 16, 1.0)


def test_trials_of_one_kind_have_the_factors_of_a_run(tmp_path: Path):
    raw = raw_search(tmp_path)
    raw["method"], raw["search"]["space"] = {}, {"method.density": {"choice": [0.01, 0.02]}}
    assert validate_spec(raw).method.rank == 32


def test_the_workers_of_a_trial_may_be_searched(tmp_path: Path):
    search = a_search(tmp_path, {"space": {"cluster.workers": {"choice": [1, 2]}}})
    assert make_trial_spec(search, {"cluster.workers": 2}).workers == 2


def test_hyperband_needs_steps_to_divide(tmp_path: Path):
    with pytest.raises(InputError) as refused:
        a_search(tmp_path, {"scheduler": "hyperband"}, train={"steps": None, "epochs": 2})
    assert [fault.key for fault in refused.value.faults] == ["train.steps"]


def test_a_long_range_is_judged_by_its_ends_and_never_listed(tmp_path: Path):
    space = {"train.seed": {"randint": [0, 2**31 - 1]}, "method.rank": {"choice": [2, 4]}}
    for algorithm in ("random", "grid"):
        search = a_search(tmp_path, {"space": space, "algorithm": algorithm, "samples": 5})
        ahead = list_precomputed_configs(search.section) or []
        assert len(ahead) == 5
        assert all(0 <= config["train.seed"] < 2**31 for config in ahead)


def test_a_domain_is_set_from_the_command_line(tmp_path: Path):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(raw_search(tmp_path)))
    overrides = [
        "search.space.method.rank.choice=[8]",
        "search.space.train.warmup.uniform=[0, 0.1]",
    ]
    space = load_spec(path, overrides).section.space
    assert set(space) == {*SPACE, "train.warmup"}
    assert space["method.rank"].choice == (8,)


def test_an_unknown_key_of_a_nested_space_has_its_nearest(tmp_path: Path):
    with pytest.raises(InputError, match=r"search\.space\.method\.rnk: .*method\.rank"):
        a_search(tmp_path, {"space": {"method": {"rnk": {"choice": [2]}}}})
