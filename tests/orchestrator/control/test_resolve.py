"""A submission of each kind is validated, and its workers and tokens are counted."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from jobs.errors import InputError
from jobs.spec.kinds import KINDS
from jobs.spec.load import dump_spec, validate_spec
from orchestrator.control.resolve import SubmitRequest, resolve_run
from orchestrator.registry.run_request import RunRequest
from tests.orchestrator.control.builders import make_spec

STORES = ["file:///store"]


def resolve(kind: Any, spec: dict[str, Any]) -> RunRequest:
    return resolve_run(SubmitRequest(kind=kind, spec=spec), STORES, ["default"])


def test_a_retraining_is_resolved_with_its_section():
    request = resolve("retrain", make_spec(retrain={"gate": {"better_by": 0.1}}))
    resolved = validate_spec(yaml.safe_load(request.spec_text))
    assert resolved.section.gate.better_by == 0.1
    assert (request.name, request.data, request.workers) == ("chat", "/data/train.jsonl", 1)
    assert request.tokens == 10 * 4 * 64


def test_a_retraining_without_its_section_is_refused():
    with pytest.raises(InputError, match="retrain: missing"):
        resolve("retrain", make_spec())


def test_a_fine_tune_with_the_section_is_refused():
    with pytest.raises(InputError, match="the spec of a retraining"):
        resolve("finetune", make_spec(retrain={}))


def test_a_federation_is_resolved_with_its_section():
    section = {"clients": 6, "clients_per_round": 3, "rounds": 7, "local_steps": 2}
    spec = make_spec(federation=section, cluster={"workers": 2})
    spec["train"] = {key: value for key, value in spec["train"].items() if key != "steps"}
    request = resolve("federate", spec)
    resolved = validate_spec(yaml.safe_load(request.spec_text))
    assert (resolved.section.rounds, resolved.train.steps) == (7, 14)
    assert request.workers == 2
    assert request.tokens == 7 * 3 * 2 * 4 * 64


def test_a_search_over_federations_counts_what_all_clients_of_all_trials_train():
    section = {"clients": 6, "clients_per_round": 3, "rounds": 7, "local_steps": 2}
    space = {"train.learning_rate": {"choice": [0.1, 0.2]}}
    search = {"space": space, "samples": 5, "scheduler": "none"}
    spec = make_spec(federation=section, search=search)
    spec["train"] = {key: value for key, value in spec["train"].items() if key != "steps"}
    request = resolve("search", spec)
    resolved = validate_spec(yaml.safe_load(request.spec_text))
    assert resolved.federation is not None and resolved.federation.rounds == 7
    assert request.tokens == 5 * 7 * 3 * 2 * 4 * 64


def test_a_federation_without_its_section_is_refused():
    with pytest.raises(InputError, match="federation: missing"):
        resolve("federate", make_spec())


@pytest.mark.parametrize("key", ["model.path", "data.train", "data.eval"])
@pytest.mark.parametrize("path", ["/no\0name/*", "/a\nb", "s3://b/\x1b[2J", "here/and/there"])
def test_an_invalid_path_is_refused_by_its_key(key: str, path: str):
    spec = make_spec()
    section, name = key.split(".")
    spec[section] = {**spec[section], name: path}
    with pytest.raises(InputError) as error:
        resolve("finetune", spec)
    assert [fault.key for fault in error.value.faults] == [key]


SPACE = {"train.learning_rate": {"loguniform": [0.1, 1.0]}}
CLIENTS = {"clients": 6, "clients_per_round": 3, "rounds": 7, "local_steps": 2}
SECTIONS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "retrain": {"retrain": {"gate": {"better_by": 0.1}}},
    "search": {"search": {"space": SPACE, "scheduler": "none"}},
    "federate": {"federation": CLIENTS},
}


@pytest.mark.parametrize(("kind", "sections"), SECTIONS.items())
def test_the_spec_of_a_request_is_the_validated_one(kind: str, sections: dict[str, Any]):
    spec = make_spec(**sections)
    if kind == "federate":
        spec["train"] = {key: value for key, value in spec["train"].items() if key != "steps"}
    request = resolve(kind, spec)
    loaded = request.load_spec()
    assert type(loaded) is KINDS[request.kind].spec_class
    assert dump_spec(loaded) == request.spec_text
