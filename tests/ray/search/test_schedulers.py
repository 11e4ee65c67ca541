"""Schedulers and budgets on a real Ray: what they stop, hand over, and leave behind."""

from __future__ import annotations

import pytest

from tests.ray.search.builders import RATE, assert_nothing_remains, run_search

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.long
@pytest.mark.parametrize("bad", [9, 31])
def test_trials_that_are_stopped_early_leave_nothing_behind(head, folder, bad):
    space = {RATE: {"choice": [1e-2, *(1e-6 * number for number in range(bad, 0, -1))]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "asha", "max_concurrent": 2}
    code, output, rows = run_search(head, folder, f"early{bad}", search)
    assert code == 0, output
    assert len(rows) == 1 + bad
    stopped = [row for row in rows if row.status == "stopped"]
    assert len(stopped) >= bad - 5, [row.status for row in rows]
    assert all(row.steps < 12 and "stopped by asha" in row.reason for row in stopped)
    assert_nothing_remains(head)


@pytest.mark.long
def test_pbt_hands_the_better_state_to_the_worse_trial(head, folder):
    space = {RATE: {"choice": [1e-2, 1e-9]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "pbt"}
    code, output, rows = run_search(
        head, folder, "exchange", search, train={"steps": 24}, method={"kind": "lora"}
    )
    assert code == 0, output
    good, bad = rows
    assert "state of trial 0" in bad.shared
    # By its own rate it would have stayed where it was; it has the very state of the other.
    values = [value for _, value in bad.curve]
    assert values[1] < values[0]
    assert good.curve[0][1] == values[1]


@pytest.mark.long
def test_hyperband_pauses_and_resumes_trials(head, folder):
    search = {"scheduler": "hyperband", "samples": 4, "max_concurrent": 2}
    code, output, rows = run_search(head, folder, "bands", search)
    assert code == 0, output
    assert {row.status for row in rows} <= {"done", "stopped"}


@pytest.mark.long
def test_a_budget_of_tokens_ends_a_search(head, folder):
    search = {"scheduler": "none", "samples": 8, "budget": {"tokens": 10_000}, "max_concurrent": 1}
    code, output, rows = run_search(head, folder, "thrifty", search)
    assert code == 0, output
    assert rows[0].status == "done"
    assert len([row for row in rows if row.tokens]) < 8
    assert sum(row.tokens for row in rows) < 10_000 + max(row.tokens for row in rows)
    assert all(row.is_finished for row in rows)
    assert "the budget of 10,000 tokens is spent" in {row.reason for row in rows}
