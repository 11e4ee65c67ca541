"""Due times of schedules: cron, time zones, daylight saving, offsets."""

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


def format_time(moment: float | None, zone: str = BERLIN) -> str:
    assert moment is not None
    return datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat()


def test_a_due_time_is_in_its_time_zone():
    assert find_next_time("0 3 * * *", BERLIN, at("2026-01-10T12:00")) == at("2026-01-11T03:00")
    assert find_next_time("0 3 * * *", "UTC", at("2026-01-10T12:00", "UTC")) == at(
        "2026-01-11T03:00", "UTC"
    )


def test_a_due_time_is_after_the_given_time():
    assert find_next_time("0 3 * * *", BERLIN, at("2026-01-11T03:00")) == at("2026-01-12T03:00")


def test_a_time_that_the_clock_skips_fires_right_after():
    due = find_next_time("30 2 * * *", BERLIN, at("2026-03-28T12:00"))
    assert format_time(due) == "2026-03-29T03:00:00+02:00"


def test_a_time_that_occurs_twice_fires_once():
    first = find_next_time("30 2 * * *", BERLIN, at("2026-10-24T12:00"))
    assert format_time(first) == "2026-10-25T02:30:00+02:00"
    assert (
        format_time(find_next_time("30 2 * * *", BERLIN, first or 0)) == "2026-10-26T02:30:00+01:00"
    )


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
def test_an_expression_that_matches_no_time_is_refused_by_its_key(cron: str, zone: str, key: str):
    with pytest.raises(InputError) as error:
        check_cron(cron, zone)
    assert [fault.key for fault in error.value.faults] == [key]


@pytest.mark.parametrize("cron", ["* * * * *", "*/15 9-17 * * 1-5", "0 0 1 1 *", "0 12 L * *"])
def test_a_cron_expression_is_accepted(cron: str):
    check_cron(cron, BERLIN)


@given(st.integers(0, 2_000_000_000), st.integers(1, 10_000))
def test_the_times_up_to_a_limit_are_the_successive_next_times(start: int, minutes: int):
    first = find_next_time("*/7 * * * *", "UTC", start)
    assert first is not None
    until = start + minutes * 60.0
    times = list_times_until("*/7 * * * *", "UTC", first, until)
    assert times[0] == first and times == sorted(set(times)) and len(times) <= MAX_MISSED_TIMES
    assert all(find_next_time("*/7 * * * *", "UTC", a) == b for a, b in pairwise(times))
    following = find_next_time("*/7 * * * *", "UTC", times[-1])
    assert len(times) == MAX_MISSED_TIMES or first > until or (following or 0) > until


@given(st.text(max_size=20), st.text(max_size=20), st.floats(0, 86400))
def test_an_offset_is_always_the_same_and_within_the_jitter(project: str, name: str, jitter: float):
    offset = compute_jitter_offset(project, name, jitter)
    assert offset == compute_jitter_offset(project, name, jitter)
    assert 0 <= offset <= jitter


def test_two_schedules_have_different_offsets():
    assert compute_jitter_offset("a", "b", 600) != compute_jitter_offset("a", "c", 600)
