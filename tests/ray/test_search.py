"""Searches on a real Ray: what they find, share and leave, and what failing trials do to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from jobs.search.diary import Diary
from jobs.search.results import read_parquet
from jobs.search.rows import Row
from jobs.spec_file import load_spec
from jobs.store.adapters import resolve
from jobs.store.directory import DirectoryStore
from jobs.store.runs import RunStore
from tests.jobs.search.asked import raw_search
from tests.ray_head import Head, ray_head
from tests.tiny import chat_rows, tiny_chat_model

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
RATE = "train.learning_rate"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("search-head", numbered=True)) as ready:
        yield ready


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("search")
    tiny_chat_model(made / "model")
    chat_rows(made / "train.jsonl", 60)
    chat_rows(made / "eval.jsonl", 6)
    return made


def _started(
    head: Head, folder: Path, name: str, search: dict[str, Any], *words: str, **spec: Any
) -> subprocess.Popen[str]:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw_search(folder, search, name=name, **spec)))
    return head.run("jobs.search", "--spec", str(path), *(words or ("--run", name)))


def _searched(
    head: Head, folder: Path, name: str, search: dict[str, Any], **spec: Any
) -> tuple[int, str, list[Row]]:
    driver = _started(head, folder, name, search, **spec)
    said, _ = driver.communicate(timeout=500)
    return driver.returncode, said, _rows(folder, name)


def _rows(folder: Path, name: str) -> list[Row]:
    return Diary(RunStore(DirectoryStore(folder / "store"), name)).rows


def _nothing_left(head: Head) -> None:
    """No trial, worker, or held part of the cluster some seconds after a search is over."""
    left = [p for title in ("ray::Seat", "ray::TrialActor", "Trainable") for p in
            head.family(title)]  # fmt: skip
    _, alive = psutil.wait_procs(left, timeout=15)
    assert alive == []
    asked = "import ray, json; ray.init(address='auto', logging_level='ERROR'); print(json.dumps("
    asked += "[t['state'] for t in ray.util.placement_group_table().values()]))"
    there = {**head.environment, "RAY_ADDRESS": head.address}
    told = subprocess.run(
        [sys.executable, "-c", asked], env=there, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert set(json.loads(told.stdout.splitlines()[-1])) <= {"REMOVED"}


def test_a_search_finds_shares_rejects_survives_and_leaves_everything_in_its_place(head, folder):
    """One search of every kind of trial: on two workers, some bad, one rejected by its plan."""
    grid = {
        "method.mask": {"choice": ["fisher", "tests.own_score:BROKEN", "tests.own_score:DEADLY"]},
        "method.rank": {"choice": [2, 4, 64]},
    }
    code, said, rows = _searched(
        head, folder, "kinds", {"space": grid, "algorithm": "grid", "scheduler": "none"},
        cluster={"workers": 2, "max_failures": 0},
    )  # fmt: skip
    assert code == 0, said
    by = {(row.config["method.mask"], row.config["method.rank"]): row for row in rows}
    assert len(by) == 9
    for rank in (2, 4):
        assert by["fisher", rank].status == "done"
        broken, dead = (by[f"tests.own_score:{kind}", rank] for kind in ("BROKEN", "DEADLY"))
        assert broken.status == "failed" and "this score never works" in broken.reason
        assert dead.status == "failed" and "Was it killed" in dead.reason
    rejected = [row for row in rows if row.config["method.rank"] == 64]
    assert {row.status for row in rejected} == {"rejected"}
    assert all(row.reason.startswith("method.rank: ") for row in rejected)
    assert set(by["fisher", 4].shared) == {"first evaluation", "sparse stage"}

    store = DirectoryStore(folder / "store")
    best = min((row for row in rows if row.status == "done"), key=lambda row: row.metric or 9)
    manifest = resolve(store, "kinds")
    assert (manifest.search, manifest.run) == ("kinds", best.run)
    assert manifest.evaluation["end"]["loss"] == pytest.approx(best.metric)
    runs = RunStore(store, "kinds")
    assert read_parquet(store.path(runs.key("results.parquet"))) == rows
    page = runs.read_text("report.html")
    assert all(row.reason.split(": ")[0] in page for row in rows if row.reason)
    spec = load_spec(store.path(runs.key("next.yaml")))
    assert spec.method.rank == best.config["method.rank"]
    assert not [key for key in store.list("runs/kinds/") if "/tune/" in key]
    _nothing_left(head)


def test_what_trials_have_in_common_is_done_once_and_changes_no_result(head, folder):
    space = {"method.density": {"choice": [0.05, 0.1]}, "method.alpha": {"choice": [2.0, 4.0]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    fisher = {"method": {"mask": "fisher"}}
    code, said, rows = _searched(head, folder, "shared", search, **fisher)
    assert code == 0, said
    by = {(row.config["method.density"], row.config["method.alpha"]): row for row in rows}
    assert {values: set(row.shared) for values, row in by.items()} == {
        (0.05, 2.0): set(),
        (0.1, 2.0): {"first evaluation", "scores"},
        (0.05, 4.0): {"first evaluation", "sparse stage"},
        (0.1, 4.0): {"first evaluation", "sparse stage"},
    }
    # The last one again, alone: it does everything by itself.
    one = {key: {"choice": [value]} for key, value in rows[3].config.items()}
    _, _, [alone] = _searched(head, folder, "alone", {**search, "space": one}, **fisher)
    assert alone.shared == ()
    assert alone.metric == rows[3].metric


def test_thirty_trials_that_are_stopped_early_leave_nothing_behind(head, folder):
    space = {RATE: {"choice": [1e-2, *(1e-6 * number for number in range(31, 0, -1))]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "asha", "max_concurrent": 2}
    code, said, rows = _searched(head, folder, "early", search)
    assert code == 0, said
    assert len(rows) == 32
    stopped = [row for row in rows if row.status == "stopped"]
    assert len(stopped) >= 30 - 4, [row.status for row in rows]
    assert all(row.steps < 12 and "asha stopped it" in row.reason for row in stopped)
    _nothing_left(head)


def test_when_all_trials_fail_the_commonest_reason_is_told(head, folder):
    space = {"method.mask": {"choice": ["tests.own_score:BROKEN"]}, RATE: {"choice": [1e-3, 2e-3]}}
    code, said, rows = _searched(head, folder, "hopeless", {"space": space, "algorithm": "grid"})
    assert code == 1
    assert "this score never works" in said and "So it was in 2 of them" in said
    assert [row.status for row in rows] == ["failed", "failed"]
    assert "Traceback" not in said


def test_pbt_hands_the_better_state_to_the_worse_trial(head, folder):
    space = {RATE: {"choice": [1e-2, 1e-9]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "pbt"}
    code, said, rows = _searched(
        head, folder, "exchange", search, train={"steps": 24}, method={"kind": "lora"}
    )
    assert code == 0, said
    good, bad = rows
    assert "state of trial 0" in bad.shared
    # By its own rate it would have stayed where it was; it has the very state of the other.
    values = [value for _, value in bad.curve]
    assert values[1] < values[0]
    assert good.curve[0][1] == values[1]


def test_pbt_goes_on_where_a_trial_fails_that_the_others_wait_for(head, folder):
    space = {RATE: {"choice": [1e-2, 1e-3, 1e30]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "pbt"}
    code, said, rows = _searched(
        head, folder, "bereft", search, train={"steps": 24}, method={"kind": "lora"}
    )
    assert code == 0, said
    assert [row.status for row in rows] == ["done", "done", "failed"]
    assert rows[2].reason


def test_a_worker_that_fails_alone_ends_its_trial_soon_and_with_its_own_reason(head, folder):
    space = {"method.mask": {"choice": ["tests.own_score:LONELY", "random"]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    code, said, rows = _searched(head, folder, "lonely", search, cluster={"workers": 2})
    assert code == 0, said
    assert [row.status for row in rows] == ["failed", "done"]
    assert "fails one worker of two" in rows[0].reason
    # Far below cluster.timeout, which is 600.
    assert rows[0].seconds < 120
    _nothing_left(head)


def test_kinds_and_workers_may_differ_between_trials(head, folder):
    space = {
        "method.kind": {"choice": ["slora", "sparse", "lora", "full"]},
        "cluster.workers": {"choice": [1, 2]},
    }
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    code, said, rows = _searched(head, folder, "mixed", search)
    assert code == 0, said
    assert [row.status for row in rows] == ["done"] * 8, [row.reason for row in rows]
    _nothing_left(head)


def test_hyperband_pauses_and_goes_on(head, folder):
    search = {"scheduler": "hyperband", "samples": 4, "max_concurrent": 2}
    code, said, rows = _searched(head, folder, "bands", search)
    assert code == 0, said
    assert {row.status for row in rows} <= {"done", "stopped"}


def test_a_budget_of_tokens_ends_a_search(head, folder):
    search = {"scheduler": "none", "samples": 8, "budget": {"tokens": 10_000}, "max_concurrent": 1}
    code, said, rows = _searched(head, folder, "thrifty", search)
    assert code == 0, said
    assert rows[0].status == "done"
    assert len([row for row in rows if row.tokens]) < 8
    assert sum(row.tokens for row in rows) < 10_000 + max(row.tokens for row in rows)
    assert all(row.ended for row in rows)
    assert "the budget of 10,000 tokens is spent" in {row.reason for row in rows}


@pytest.mark.parametrize("killed_at", [1, 3])
def test_a_search_that_was_killed_goes_on_and_repeats_no_trial(head, folder, killed_at):
    name = f"killed{killed_at}"
    search = {"scheduler": "none", "samples": 5, "max_concurrent": 2}
    driver = _started(head, folder, name, search)
    assert driver.stdout is not None
    ends = 0
    for line in driver.stdout:
        ends += line.startswith("trial ") and " done" in line
        if ends == killed_at:
            driver.kill()
            break
    driver.communicate(timeout=60)
    before = {row.number: row for row in _rows(folder, name) if row.ended}
    assert len(before) >= killed_at
    again = _started(head, folder, name, search, "--resume", name)
    said, _ = again.communicate(timeout=500)
    assert again.returncode == 0, said
    after = _rows(folder, name)
    assert [row.number for row in after] == list(range(5))
    assert all(row.status == "done" for row in after)
    assert all(after[number] == row for number, row in before.items())
    assert len({json.dumps(row.config) for row in after}) == 5


def test_a_resumed_search_must_be_the_same_one(head, folder):
    driver = _started(head, folder, "shared", {"samples": 2}, "--resume", "shared")
    said, _ = driver.communicate(timeout=100)
    assert driver.returncode == 2
    assert "was another search" in said


@pytest.mark.parametrize(
    ("search", "key"),
    [
        pytest.param({"constraints": {"adapter_mb": 1e-9}}, "search.constraints.adapter_mb",
                     id="impossible"),
        pytest.param({"space": {"method.rnak": {"choice": [1]}}}, "search.space.method.rnak",
                     id="unknown"),
    ],
)  # fmt: skip
def test_what_can_not_be_searched_costs_no_cluster_time(head, folder, search, key):
    code, said, rows = _searched(head, folder, "refused", search)
    assert code == 2, said
    assert said.strip().splitlines()[-1].startswith(key)
    assert rows == []
