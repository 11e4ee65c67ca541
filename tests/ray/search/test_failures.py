"""Trials that fail and searches that are killed, on a real Ray."""

from __future__ import annotations

import json

import pytest

from tests.ray.search.builders import (
    RATE,
    assert_nothing_remains,
    read_records,
    run_search,
    start_search,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.mark.long
def test_when_all_trials_fail_the_most_frequent_reason_is_reported(head, folder):
    space = {
        "method.mask": {"choice": ["broken"]},
        RATE: {"choice": [1e-3, 2e-3]},
    }
    code, output, rows = run_search(head, folder, "hopeless", {"space": space, "algorithm": "grid"})
    assert code == 1
    assert "this score never works" in output and "2 of them ended for this reason" in output
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "Traceback" not in output


@pytest.mark.long
def test_pbt_continues_if_a_trial_fails_that_the_others_wait_for(head, folder):
    space = {RATE: {"choice": [1e-2, 1e-3, 1e15]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "pbt"}
    code, output, rows = run_search(
        head, folder, "bereft", search, train={"steps": 24}, method={"kind": "lora"}
    )
    assert code == 0, output
    assert [row.status for row in rows] == ["done", "done", "failed"]
    assert rows[2].reason


@pytest.mark.long
def test_kinds_and_workers_may_differ_between_trials(head, folder):
    space = {
        "method.kind": {"choice": ["slora", "full"]},
        "cluster.workers": {"choice": [1, 2]},
    }
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    code, output, rows = run_search(head, folder, "mixed", search)
    assert code == 0, output
    assert [row.status for row in rows] == ["done"] * 4, [row.reason for row in rows]
    assert_nothing_remains(head)


@pytest.mark.long
@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_killed_search_resumes_and_repeats_no_trial(head, folder, killed_at):
    name = f"killed{killed_at}"
    search = {"scheduler": "none", "samples": killed_at + 2, "max_concurrent": 2}
    driver = start_search(head, folder, name, search)
    assert driver.stdout is not None
    ends = 0
    for line in driver.stdout:
        ends += line.startswith("trial ") and " done" in line
        if ends == killed_at:
            driver.kill()
            break
    driver.communicate(timeout=60)
    before = {row.number: row for row in read_records(folder, name) if row.is_finished}
    assert len(before) >= killed_at
    again = start_search(head, folder, name, search, "--resume", name)
    output, _ = again.communicate(timeout=500)
    assert again.returncode == 0, output
    after = read_records(folder, name)
    assert [row.number for row in after] == list(range(killed_at + 2))
    assert all(row.status == "done" for row in after)
    assert all(after[number] == row for number, row in before.items())
    assert len({json.dumps(row.config) for row in after}) == killed_at + 2
