"""Searches on a real Ray: what they find, share and refuse."""

from __future__ import annotations

import pytest

from jobs.spec.load import load_spec
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.jobs.search.builders import read_parquet
from tests.ray.search.builders import assert_nothing_remains, run_search, start_search

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
BAD = ("broken", "deadly", "lonely")


def test_a_search_rejects_a_trial_by_its_plan_and_commits_its_best(head, folder):
    search = {"space": {"method.rank": {"choice": [2, 64]}}, "algorithm": "grid", "samples": 2}
    code, output, rows = run_search(head, folder, "pair", {**search, "scheduler": "none"})
    assert code == 0, output
    done, rejected = sorted(rows, key=lambda row: row.config["method.rank"])
    assert (done.status, rejected.status) == ("done", "rejected")
    manifest = resolve_adapter(DirectoryStore(folder / "store"), "pair")
    assert (manifest.search, manifest.run) == ("pair", done.run)
    assert manifest.evaluation["end"]["loss"] == pytest.approx(done.metric)


@pytest.mark.long
def test_a_search_shares_rejects_survives_a_killed_worker_and_writes_its_files(head, folder):
    """One search of every kind of trial: on two workers, some bad, some rejected by their plan."""
    grid = {
        "method.rank": {"choice": [2, 64, 4]},
        "method.mask": {"choice": ["fisher", *BAD]},
    }
    # The ninth is a good one, after workers were lost.
    search = {"space": grid, "algorithm": "grid", "scheduler": "none", "samples": 9}
    code, output, rows = run_search(
        head, folder, "kinds", search, cluster={"workers": 2, "max_failures": 0}
    )
    assert code == 0, output
    by = {(row.config["method.mask"], row.config["method.rank"]): row for row in rows}
    assert len(by) == 9
    assert {by["fisher", rank].status for rank in (2, 4)} == {"done"}
    broken, dead, alone = (by[bad, 2] for bad in BAD)
    assert broken.status == "failed" and "this score never works" in broken.reason
    assert dead.status == "failed" and "Check whether it was killed" in dead.reason
    assert alone.status == "failed" and "fails one worker of two" in alone.reason
    # The other worker waits for it, and not until cluster.timeout, which is 600 s.
    assert alone.seconds < 120
    rejected = [row for row in rows if row.config["method.rank"] == 64]
    assert len(rejected) == 4 and {row.status for row in rejected} == {"rejected"}
    assert all(row.reason.startswith("method.rank: ") for row in rejected)
    assert set(by["fisher", 4].shared) == {"first_evaluation", "sparse_stage"}

    store = DirectoryStore(folder / "store")
    best = min((row for row in rows if row.status == "done"), key=lambda row: row.metric or 9)
    manifest = resolve_adapter(store, "kinds")
    assert (manifest.search, manifest.run) == ("kinds", best.run)
    assert manifest.evaluation["end"]["loss"] == pytest.approx(best.metric)
    runs = RunStore(store, "kinds")
    assert read_parquet(store.local_path(runs.key("results.parquet"))) == rows
    page = runs.read_text("report.html")
    assert all(row.reason.split(": ")[0] in page for row in rows if row.reason)
    spec = load_spec(store.local_path(runs.key("next.yaml")))
    assert spec.method.rank == best.config["method.rank"]
    assert not [key for key in store.list("runs/kinds/") if "/tune/" in key]
    assert_nothing_remains(head)


@pytest.mark.long
def test_shared_results_are_computed_once_and_change_no_metric(head, folder):
    space = {"method.density": {"choice": [0.05, 0.1]}, "method.alpha": {"choice": [2.0, 4.0]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    fisher = {"method": {"mask": "fisher"}}
    code, output, rows = run_search(head, folder, "shared", search, **fisher)
    assert code == 0, output
    by = {(row.config["method.density"], row.config["method.alpha"]): row for row in rows}
    assert {values: set(row.shared) for values, row in by.items()} == {
        (0.05, 2.0): set(),
        (0.1, 2.0): {"first_evaluation", "scores"},
        (0.05, 4.0): {"first_evaluation", "sparse_stage"},
        (0.1, 4.0): {"first_evaluation", "sparse_stage"},
    }
    # The last one again, alone: it does everything by itself.
    single = {key: {"choice": [value]} for key, value in rows[3].config.items()}
    _, _, [alone] = run_search(head, folder, "alone", {**search, "space": single}, **fisher)
    assert alone.shared == ()
    assert alone.metric == rows[3].metric


def test_a_resumed_search_must_have_the_same_spec(head, folder):
    driver = start_search(head, folder, "pair", {"samples": 2}, "--resume", "pair")
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 2
    assert "the spec differs from that of pair" in output


@pytest.mark.parametrize(
    ("search", "key"),
    [
        pytest.param({"constraints": {"adapter_mb": 1e-9}}, "search.constraints.adapter_mb",
                     id="impossible"),
        pytest.param({"space": {"method.rnak": {"choice": [1]}}}, "search.space.method.rnak",
                     id="unknown"),
    ],
)  # fmt: skip
def test_an_infeasible_search_costs_no_cluster_time(head, folder, search, key):
    code, output, rows = run_search(head, folder, "refused", search)
    assert code == 2, output
    assert output.strip().splitlines()[-1].startswith(key)
    assert rows == []
