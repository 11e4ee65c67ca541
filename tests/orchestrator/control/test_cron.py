"""When schedules fire: cron, time zones, summer time, offsets."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from orchestrator.control.cron import (
    MAX_MISSED_TIMES,
    check_cron,
    compute_jitter_offset,
    find_next_time,
    list_times_until,
)

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def told(moment: float | None, zone: str = BERLIN) -> str:
    assert moment is not None
    return datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat()


def test_a_moment_is_one_of_its_time_zone():
    assert find_next_time("0 3 * * *", BERLIN, at("2026-01-10T12:00")) == at("2026-01-11T03:00")
    assert find_next_time("0 3 * * *", "UTC", at("2026-01-10T12:00", "UTC")) == at(
        "2026-01-11T03:00", "UTC"
    )


def test_a_moment_itself_is_not_the_next_one():
    assert find_next_time("0 3 * * *", BERLIN, at("2026-01-11T03:00")) == at("2026-01-12T03:00")


def test_a_moment_that_the_clock_leaps_over_fires_after_the_leap():
    found = find_next_time("30 2 * * *", BERLIN, at("2026-03-28T12:00"))
    assert told(found) == "2026-03-29T03:00:00+02:00"


def test_a_moment_that_comes_twice_fires_once():
    first = find_next_time("30 2 * * *", BERLIN, at("2026-10-24T12:00"))
    assert told(first) == "2026-10-25T02:30:00+02:00"
    assert told(find_next_time("30 2 * * *", BERLIN, first or 0)) == "2026-10-26T02:30:00+01:00"


@pytest.mark.parametrize(
    ("cron", "zone", "key"),
    [
        ("0 3 * *", "UTC", "cron"),
        ("* * * * * *", "UTC", "cron"),
        ("61 * * * *", "UTC", "cron"),
        ("0 0 31 4 *", "UTC", "cron"),
        ("hello", "UTC", "cron"),
        ("0 3 * * *", "Mars/Olympus", "time_zone"),
        ("0 3 * * *", "../etc/passwd", "time_zone"),
        ("0 3 * * *", "", "time_zone"),
    ],
)
def test_what_names_no_moment_is_refused_by_its_key(cron: str, zone: str, key: str):
    with pytest.raises(InputError) as refused:
        check_cron(cron, zone)
    assert [fault.key for fault in refused.value.faults] == [key]


@pytest.mark.parametrize("cron", ["* * * * *", "*/15 9-17 * * 1-5", "0 0 1 1 *", "0 12 L * *"])
def test_what_cron_knows_is_taken(cron: str):
    check_cron(cron, BERLIN)


@given(st.integers(0, 2_000_000_000), st.integers(1, 10_000))
def test_the_moments_up_to_a_time_are_those_that_come_one_by_one(start: int, minutes: int):
    first = find_next_time("*/7 * * * *", "UTC", start)
    assert first is not None
    until = start + minutes * 60.0
    found = list_times_until("*/7 * * * *", "UTC", first, until)
    assert found[0] == first and found == sorted(set(found)) and len(found) <= MAX_MISSED_TIMES
    assert all(find_next_time("*/7 * * * *", "UTC", a) == b for a, b in pairwise(found))
    following = find_next_time("*/7 * * * *", "UTC", found[-1])
    assert len(found) == MAX_MISSED_TIMES or first > until or (following or 0) > until


@given(st.text(max_size=20), st.text(max_size=20), st.floats(0, 86400))
def test_an_offset_is_always_the_same_and_within_the_jitter(project: str, name: str, jitter: float):
    found = compute_jitter_offset(project, name, jitter)
    assert found == compute_jitter_offset(project, name, jitter)
    assert 0 <= found <= jitter


def test_two_schedules_have_offsets_of_their_own():
    assert compute_jitter_offset("a", "b", 600) != compute_jitter_offset("a", "c", 600)
