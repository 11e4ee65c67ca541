"""Checks of a federation against its model and rows, before any site starts."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.federation.check import check_federation
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.specs import a_federation
from tests.tiny import chat_rows


def test_a_check_plans_one_site_and_partitions_the_rows(workspace):
    validated = check_federation(a_federation(workspace, cluster={"workers": 3}))
    assert validated.validated_run.spec.workers == 3
    assert validated.validated_run.plan.workers == 1
    assert validated.partition is not None
    assert validated.partition.sizes == (3, 3, 3, 3)


def test_a_quick_check_makes_no_partition(workspace):
    assert check_federation(a_federation(workspace), quick=True).partition is None


def test_too_few_rows_are_reported_by_the_check(workspace):
    chat_rows(workspace / "train.jsonl", 3)
    with pytest.raises(
        InputError, match="4 clients need at least one row each, but there are 3 rows"
    ):
        check_federation(a_federation(workspace))


def test_a_resumed_run_must_have_the_same_spec(workspace):
    runs = RunStore(open_store(f"file://{workspace}/store"), "tiny-1")
    pin_spec(a_federation(workspace), runs)
    pin_spec(a_federation(workspace), runs)
    assert "clients_per_round: 2" in runs.read_text(FEDERATION_FILE)
    with pytest.raises(InputError, match="a federation with a different spec"):
        pin_spec(a_federation(workspace, {"rounds": 11}), runs)
