"""A look refuses what a submission refuses, and nothing that a submission accepts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

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


def test_files_behind_a_link_to_a_folder_are_checked_as_its_reader_reads_them(tmp_path: Path):
    for name in ("rows", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "state.json").write_text("x" * 101)
    (tmp_path / "rows" / "more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "around").symlink_to(tmp_path / "rows")
    with pytest.raises(NotChecked, match="101 bytes"):
        check_data("data.train", str(tmp_path / "rows"), 100)
