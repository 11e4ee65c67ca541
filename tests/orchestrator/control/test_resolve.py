"""What is asked of the service: each kind read by its own door."""

from __future__ import annotations

import pytest
import yaml

from jobs.errors import InputError
from jobs.spec.load import validate_spec
from orchestrator.control.resolve import resolve_run
from tests.orchestrator.control.builders import make_spec

STORES = ["file:///store"]


def test_a_retraining_is_asked_for_with_its_section():
    asked = resolve_run("retrain", make_spec(retrain={"gate": {"better_by": 0.1}}), STORES)
    found = validate_spec(yaml.safe_load(asked.spec_text))
    assert found.section.gate.better_by == 0.1
    assert (asked.name, asked.data, asked.workers) == ("chat", "/data/train.jsonl", 1)
    assert asked.tokens == 10 * 4 * 64


def test_a_retraining_without_its_section_is_refused():
    with pytest.raises(InputError, match="retrain: missing"):
        resolve_run("retrain", make_spec(), STORES)


def test_a_fine_tune_with_the_section_is_refused():
    with pytest.raises(InputError, match="the spec of a retraining"):
        resolve_run("finetune", make_spec(retrain={}), STORES)


def test_a_federation_is_asked_for_with_its_section():
    section = {"clients": 6, "clients_per_round": 3, "rounds": 7, "local_steps": 2}
    spec = make_spec(federation=section, cluster={"workers": 2})
    spec["train"] = {key: value for key, value in spec["train"].items() if key != "steps"}
    asked = resolve_run("federate", spec, STORES)
    found = validate_spec(yaml.safe_load(asked.spec_text))
    assert (found.section.rounds, found.train.steps) == (7, 14)
    assert asked.workers == 2
    assert asked.tokens == 7 * 3 * 2 * 4 * 64


def test_a_search_over_federations_counts_what_all_clients_of_all_trials_train():
    section = {"clients": 6, "clients_per_round": 3, "rounds": 7, "local_steps": 2}
    space = {"train.learning_rate": {"choice": [0.1, 0.2]}}
    search = {"space": space, "samples": 5, "scheduler": "none"}
    spec = make_spec(federation=section, search=search)
    spec["train"] = {key: value for key, value in spec["train"].items() if key != "steps"}
    asked = resolve_run("search", spec, STORES)
    found = validate_spec(yaml.safe_load(asked.spec_text))
    assert found.federation is not None and found.federation.rounds == 7
    assert asked.tokens == 5 * 7 * 3 * 2 * 4 * 64


def test_a_federation_without_its_section_is_refused():
    with pytest.raises(InputError, match="federation: missing"):
        resolve_run("federate", make_spec(), STORES)


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
@pytest.mark.parametrize("path", ["/no\0name/*", "/a\nb", "s3://b/\x1b[2J", "here/and/there"])
def test_a_path_that_is_no_place_is_refused_by_its_key(key: str, path: str):
    spec = make_spec()
    section, name = key.split(".")
    spec[section] = {**spec[section], name: path}
    with pytest.raises(InputError) as refused:
        resolve_run("finetune", spec, STORES)
    assert [fault.key for fault in refused.value.faults] == [key]
