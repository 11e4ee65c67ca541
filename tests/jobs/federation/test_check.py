"""Checks of a federation against its model and rows, before any site starts."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from jobs.federation.artifacts import FEDERATION_FILE, pin_spec
from jobs.federation.check import check_federation
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.specs import a_federation
from tests.tiny import chat_rows


def test_a_federation_can_be_checked_whole(place):
    validated = check_federation(a_federation(place, cluster={"workers": 3}))
    assert validated.validated_run.spec.workers == 3
    assert validated.validated_run.plan.workers == 1
    assert validated.partition is not None
    assert validated.partition.sizes == (3, 3, 3, 3)


def test_a_quick_look_deals_no_rows(place):
    assert check_federation(a_federation(place), quick=True).partition is None


def test_the_check_deals_the_rows_and_tells_where_that_fails(place):
    chat_rows(place / "train.jsonl", 3)
    with pytest.raises(InputError, match="4, while there are 3 rows"):
        check_federation(a_federation(place))


def test_a_run_that_goes_on_is_asked_the_same(place):
    runs = RunStore(open_store(f"file://{place}/store"), "tiny-1")
    pin_spec(a_federation(place), runs)
    pin_spec(a_federation(place), runs)
    assert "clients_per_round: 2" in runs.read_text(FEDERATION_FILE)
    with pytest.raises(InputError, match="a federation with a different spec"):
        pin_spec(a_federation(place, {"rounds": 11}), runs)
