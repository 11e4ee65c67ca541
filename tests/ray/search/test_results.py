"""Searches on a real Ray: what they find, share and refuse."""

from __future__ import annotations

import pytest

from jobs.search.report.results import read_parquet
from jobs.spec.load import load_spec
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.local import DirectoryStore
from jobs.store.runs.run_store import RunStore
from tests.ray.search.builders import nothing_left, searched, started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
BAD = ("BROKEN", "DEADLY", "LONELY")


def test_a_search_finds_shares_rejects_survives_and_leaves_everything_in_its_place(head, folder):
    """One search of every kind of trial: on two workers, some bad, one rejected by its plan."""
    grid = {
        "method.mask": {"choice": ["fisher", *(f"tests.custom_scorer:{bad}" for bad in BAD)]},
        "method.rank": {"choice": [2, 4, 64]},
    }
    code, said, rows = searched(
        head, folder, "kinds", {"space": grid, "algorithm": "grid", "scheduler": "none"},
        cluster={"workers": 2, "max_failures": 0},
    )  # fmt: skip
    assert code == 0, said
    by = {(row.config["method.mask"], row.config["method.rank"]): row for row in rows}
    assert len(by) == 12
    for rank in (2, 4):
        assert by["fisher", rank].status == "done"
        broken, dead = (by[f"tests.custom_scorer:{bad}", rank] for bad in BAD[:2])
        assert broken.status == "failed" and "this score never works" in broken.reason
        assert dead.status == "failed" and "Was it killed" in dead.reason
    alone = by["tests.custom_scorer:LONELY", 2]
    assert alone.status == "failed" and "fails one worker of two" in alone.reason
    # The other worker waits for it, and not until cluster.timeout, which is 600 s.
    assert alone.seconds < 120
    rejected = [row for row in rows if row.config["method.rank"] == 64]
    assert {row.status for row in rejected} == {"rejected"}
    assert all(row.reason.startswith("method.rank: ") for row in rejected)
    assert set(by["fisher", 4].shared) == {"first evaluation", "sparse stage"}

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
    nothing_left(head)


@pytest.mark.long
def test_what_trials_have_in_common_is_done_once_and_changes_no_result(head, folder):
    space = {"method.density": {"choice": [0.05, 0.1]}, "method.alpha": {"choice": [2.0, 4.0]}}
    search = {"space": space, "algorithm": "grid", "scheduler": "none", "max_concurrent": 1}
    fisher = {"method": {"mask": "fisher"}}
    code, said, rows = searched(head, folder, "shared", search, **fisher)
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
    _, _, [alone] = searched(head, folder, "alone", {**search, "space": one}, **fisher)
    assert alone.shared == ()
    assert alone.metric == rows[3].metric


def test_a_resumed_search_must_be_the_same_one(head, folder):
    driver = started(head, folder, "kinds", {"samples": 2}, "--resume", "kinds")
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
    code, said, rows = searched(head, folder, "refused", search)
    assert code == 2, said
    assert said.strip().splitlines()[-1].startswith(key)
    assert rows == []
