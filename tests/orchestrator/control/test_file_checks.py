"""A look refuses what a submission refuses, and nothing that a submission accepts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from jobs.errors import InputError
from jobs.places.boundary import restrict_places
from jobs.places.places import PROBLEM, Places
from jobs.spec.address_types import AddressKind
from orchestrator.control.looking.file_checks import NotChecked, check_data, check_model

PLACES = Places(
    data=("/data/lab/", "hf://rows/exact"), models=("org/*", "other/exact", "/models/shared")
)
IDS = ("org/any", "other/exact", "other/exact2", "organ/any", "rows/exact", "rows/other")


def is_refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except NotChecked:
        return False  # inside, but not in the cache of this machine
    except InputError as invalid:
        return [fault.problem for fault in invalid.faults] == [PROBLEM]
    return False


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def test_ids_of_the_hub_are_inside_where_a_submission_says_so():
    accepted = set[str]()
    with restrict_places(PLACES):
        for name in IDS:
            is_outside = is_refused(partial(check_model, name, 100))
            assert is_outside == (PLACES.find_fault("k", name, AddressKind.MODEL) is not None)
            accepted |= set() if is_outside else {name}
            for address in (name, f"hf://{name}"):
                is_outside = is_refused(partial(check_data, "k", address, 100))
                fault = PLACES.find_fault("k", address, AddressKind.DATA)
                assert is_outside == (fault is not None), address
    assert accepted == {"org/any", "other/exact", "rows/exact"}


def test_a_project_that_may_read_anything_reads_any_id():
    with restrict_places(None):
        assert not is_refused(partial(check_model, "org/any", 100))
