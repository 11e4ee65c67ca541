"""What is asked of the service: each kind read by its own door."""

from __future__ import annotations

import pytest
import yaml

from jobs.errors import InputError
from jobs.retrain.door import validate_retrain
from orchestrator.service.asked import asked_for
from tests.orchestrator.service.made import spec_of

STORES = ["file:///store"]


def test_a_retraining_is_asked_for_with_its_section():
    asked = asked_for("retrain", spec_of(retrain={"gate": {"better_by": 0.1}}), STORES)
    found = validate_retrain(yaml.safe_load(asked.text))
    assert found.section.gate.better_by == 0.1
    assert (asked.name, asked.data, asked.workers) == ("chat", "/data/train.jsonl", 1)
    assert asked.tokens == 10 * 4 * 64


def test_a_retraining_without_its_section_is_refused():
    with pytest.raises(InputError, match="retrain: missing"):
        asked_for("retrain", spec_of(), STORES)


def test_a_fine_tune_with_the_section_is_refused():
    with pytest.raises(InputError, match="the spec of a retraining"):
        asked_for("finetune", spec_of(retrain={}), STORES)
