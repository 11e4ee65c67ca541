"""The table of run kinds: each kind is recognised by its section, and refused by another's job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.spec.kinds import (
    KINDS,
    Kind,
    count_tokens,
    count_workers,
    find_kind,
    find_kind_of_files,
    get_kind,
    require_kind,
)
from jobs.spec.load import dump_spec, parse_spec, validate_spec
from tests.jobs.federation.specs import raw_federated
from tests.jobs.retrain.specs import raw_retrain
from tests.jobs.search.specs import raw_search
from tests.tiny import tiny_spec

FOLDER = Path("/made/up")
SPECS: dict[Kind, dict[str, Any]] = {
    "finetune": tiny_spec(FOLDER),
    "search": raw_search(FOLDER),
    "retrain": raw_retrain(FOLDER),
    "federate": raw_federated(FOLDER),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_spec_is_recognised_written_and_read_back_as_its_kind(name: Kind):
    spec = validate_spec(SPECS[name])
    assert find_kind(SPECS[name]) is get_kind(spec) is KINDS[name]
    assert type(spec) is KINDS[name].spec_class
    again = parse_spec(dump_spec(spec))
    assert again == spec and dump_spec(again) == dump_spec(spec)
    assert find_kind_of_files({"spec.yaml", "events.jsonl", KINDS[name].spec_file}) is KINDS[name]
    assert get_kind(spec.training) is KINDS["finetune"]


def test_every_other_kind_is_refused_with_the_command_that_runs_it():
    for name, values in SPECS.items():
        spec = validate_spec(values)
        for expected in KINDS.values():
            if expected.name == name:
                assert require_kind(spec, expected.spec_class) is spec
                continue
            with pytest.raises(InputError) as error:
                require_kind(spec, expected.spec_class)
            [fault] = error.value.faults
            assert fault.key == (expected.section or KINDS[name].section)
            assert KINDS[name].noun in fault.problem and KINDS[name].module in fault.remedy


def test_a_search_of_federations_is_a_search():
    values = raw_federated(FOLDER, train={"eval_every": 1}) | {
        "search": {"space": {"federation.local_steps": {"choice": [1, 2]}}, "samples": 5}
    }
    spec = validate_spec(values)
    assert get_kind(spec).name == "search"
    # 10 rounds of 3 steps, by 2 clients of each, 5 times.
    per_step = spec.train.batch_size * spec.data.max_length
    assert count_tokens(spec) == 10 * 3 * 2 * 5 * per_step


def test_sections_that_exclude_each_other_are_refused():
    for other in (raw_search(FOLDER), raw_federated(FOLDER)):
        with pytest.raises(InputError, match=r"retrain: cannot be combined"):
            validate_spec({**other, "retrain": {}})


def test_workers_and_tokens_are_counted_at_their_most():
    spec = validate_spec(tiny_spec(FOLDER, cluster={"workers": {"min": 1, "max": 3}}))
    assert count_workers(spec) == 3
    assert count_tokens(spec) == 6 * spec.train.batch_size * spec.data.max_length
    assert count_workers(validate_spec(raw_search(FOLDER, {"max_concurrent": 4}))) == 4
    by_epochs = tiny_spec(FOLDER, train={"steps": None, "epochs": 1})
    assert count_tokens(validate_spec(by_epochs)) is None
    assert count_tokens(validate_spec(raw_search(FOLDER))) is None
