"""Runs on four workers of two machines: sharding, traffic, elastic workers and preemption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.long import cases, long_asked
from tests.tiny import chat_rows, merge_spec, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, TrainingResult, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

MACHINES = ("north", "north", "south", "south")
STEPS, SPARSE = 10, 3
WAYS: dict[str, dict[str, Any]] = {
    "replicate": {},
    "node": {"sharding": "node"},
    "cluster": {"sharding": "cluster"},
    "bfloat16": {"exchange_dtype": "bfloat16"},
    "local": {"sync_every": 3},
    "local nesterov": {"sync_every": 3, "outer": "nesterov"},
    "local product": {"sync_every": 3, "average": "product"},
}
LATER = ("local nesterov", "local product")
SHARDINGS = ("replicate", "node", "cluster")
SHORT = ("replicate", "cluster")
"""The shardings for which `make test` runs scored masks and full training."""
SCORED = {"mask": "fisher", "calibration_batches": 2, "handoff": {"residual": "keep"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 60)
    chat_rows(path / "eval.jsonl", 9)
    return path


def _make_case(folder: Path, run: str, *, dies: str = "", notices: int = 0, four: bool = True,
           **changes: Any) -> TrainingCase:  # fmt: skip
    spec = tiny_spec(
        folder,
        name=run.replace(" ", "-"),
        data={"eval": str(folder / "eval.jsonl")},
        train={"steps": STEPS, "checkpoint_every": None, "batch_size": 8, "micro_batch_size": 2},
        cluster={"sharding": "replicate"},
    )
    machines = MACHINES if four else ()
    return TrainingCase(
        run.replace(" ", "-"), merge_spec(spec, changes), dies=dies, machines=machines,
        notices=notices,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results(folder: Path, request: pytest.FixtureRequest) -> dict[str, TrainingResult]:
    """Run a group of four, then groups of other sizes that resume some of its runs."""
    is_long = long_asked(request)
    ways = {way: cluster for way, cluster in WAYS.items() if is_long or way not in LATER}
    shardings = SHARDINGS if is_long else SHORT
    every = {"train": {"checkpoint_every": 2}}
    single_rows = {"train": {"checkpoint_every": 2, "micro_batch_size": 1}}
    full = {"method": {"kind": "full"}}
    four = train_all(
        [
            *(_make_case(folder, way, cluster=cluster) for way, cluster in ways.items()),
            *(_make_case(folder, f"scored {s}", method=SCORED, cluster={"sharding": s})
              for s in shardings),
            *(_make_case(folder, f"full {s}", **full, cluster={"sharding": s})
              for s in shardings),
            _make_case(folder, "moves", dies="step 7", **every, cluster={"sharding": "node"}),
            *([_make_case(folder, "shrinks", dies="step 2", **single_rows,
                          cluster={"sync_every": 2})]
              if is_long else []),
            _make_case(folder, "preempted", dies="step 5", notices=5),
            _make_case(folder, "local died", dies="step 5",
                   train={"checkpoint_every": 4}, cluster={"sync_every": 3}),
            _make_case(folder, "local whole", train={"checkpoint_every": 4},
                   cluster={"sync_every": 3}),
        ],
        4,
    )  # fmt: skip
    again = train_all([_make_case(folder, "local died", train={"checkpoint_every": 4},
                              cluster={"sync_every": 3})], 4)  # fmt: skip
    two = train_all([_make_case(folder, "moves", four=False, **every)], 2)
    elastic = {"cluster": {"workers": {"min": 1, "max": 4}}}
    shrunk = [_make_case(folder, "shrinks", four=False, **merge_spec(single_rows, elastic))]
    three = train_all(shrunk, 3) if is_long else {}
    return {**four, **again, **two, **three}


def _get_traffic(results: TrainingResult, stage: str, cause: str) -> dict[str, int]:
    return results.ledger["wire"][stage].get(cause, {"calls": 0, "bytes": 0, "between": 0})


@pytest.mark.parametrize("way", ["node", "cluster"])
def test_the_run_is_the_same_for_every_sharding_of_the_base(results, way):
    assert results[way].losses == pytest.approx(results["replicate"].losses, rel=1e-5)
    assert results[way].base_untouched


@pytest.mark.parametrize("way", cases(["node", "cluster"], SHORT))
def test_masks_and_full_training_are_the_same_for_every_sharding(results, way):
    assert results[f"scored-{way}"].losses == pytest.approx(
        results["scored-replicate"].losses, rel=1e-5
    )
    assert results[f"scored-{way}"].masks == results["scored-replicate"].masks
    assert results[f"full-{way}"].losses == pytest.approx(
        results["full-replicate"].losses, rel=1e-4
    )


@pytest.mark.parametrize("way", ["replicate", "node", "cluster"])
def test_gradients_cost_one_ring_a_step_and_no_more(results, way):
    for stage, steps in (("sparse", SPARSE), ("low-rank", STEPS - SPARSE)):
        trained = results[way].ledger[f"{stage}_trainable"]
        ring = 2 * 3 * 4 * (trained + 4) // 4
        traffic = _get_traffic(results[way], stage, "gradients")
        assert traffic == {"calls": steps, "bytes": steps * ring, "between": steps * ring}


def test_the_base_is_sent_between_machines_only_if_it_is_sharded_over_all(results):
    for stage in ("sparse", "low-rank"):
        assert _get_traffic(results["replicate"], stage, "base")["bytes"] == 0
        assert _get_traffic(results["node"], stage, "base")["bytes"] > 0
        assert _get_traffic(results["node"], stage, "base")["between"] == 0
        cluster = _get_traffic(results["cluster"], stage, "base")
        assert cluster["between"] == cluster["bytes"] > 0


def test_a_bfloat16_exchange_costs_half(results):
    trained = results["bfloat16"].ledger["sparse_trainable"]
    traffic = _get_traffic(results["bfloat16"], "sparse", "gradients")
    assert traffic["bytes"] == SPARSE * (2 * 3 * 2 * trained // 4 + 2 * 3 * 4 * 4 // 4)
    assert results["bfloat16"].losses == pytest.approx(results["replicate"].losses, rel=2e-2)


@pytest.mark.parametrize("way", cases(["local", "local-nesterov", "local-product"], ["local"]))
def test_local_steps_exchange_once_in_so_many(results, way):
    assert _get_traffic(results[way], "sparse", "gradients")["calls"] == 1
    assert len(results[way].losses) == STEPS
    assert results[way].losses[-1] < results[way].losses[0]
    # Before the first exchange every worker trains on its own rows alone, from the same weights.
    assert results[way].losses[0] == pytest.approx(results["replicate"].losses[0], rel=1e-6)
    assert results[way].losses != results["replicate"].losses


@pytest.mark.long
def test_ways_to_average_differ(results):
    assert results["local"].losses[-1] != results["local-nesterov"].losses[-1]
    assert results["local"].losses[-1] != results["local-product"].losses[-1]


@pytest.mark.long
def test_a_mean_of_products_reports_the_error_of_its_rank(results, folder):
    for way, exchanges in (("local-product", 3), ("local", 0)):
        runs = RunStore(open_store(f"file://{folder / 'store'}"), way)
        errors = [m["average_error"] for m in runs.metrics.tail(0)[0] if "average_error" in m]
        # Four workers' factors of rank 2 have a mean of a higher rank; values have no rank.
        assert len(errors) == exchanges
        assert all(0 < error < 1 for error in errors)


def test_local_steps_resume_to_the_same_bits(results):
    assert results["local-died"].losses[-5:] == results["local-whole"].losses[-5:]
    assert results["local-died"].files == results["local-whole"].files


@pytest.mark.parametrize("run", ["moves"])
def test_a_run_resumes_with_other_workers_and_another_sharding(results, run):
    assert results[run].losses[-1] == pytest.approx(results["replicate"].losses[-1], rel=1e-4)


@pytest.mark.long
def test_a_run_resumes_with_a_number_of_workers_that_divides_nothing(results):
    assert results["shrinks"].files
    assert len({*range(1, STEPS + 1)}) == STEPS <= len(results["shrinks"].losses)


def test_a_preempted_worker_makes_a_checkpoint_at_once(results, folder):
    runs = RunStore(open_store(f"file://{folder / 'store'}"), "preempted")
    # And the one at the end of the sparse stage.
    assert runs.list_checkpoint_steps() == [SPARSE, 5]
    events, _ = runs.events.tail(0)
    assert [e["step"] for e in events if e["event"] == "preempting"] == [5]


def test_a_checkpoint_is_three_times_what_is_trained(results, folder):
    runs = RunStore(open_store(f"file://{folder / 'store'}"), "local-whole")
    events, _ = runs.events.tail(0)
    trained = {stage: results["local-whole"].ledger[f"{stage}_trainable"]
               for stage in ("sparse", "low-rank")}  # fmt: skip
    for event in (e for e in events if e["event"] == "checkpoint_saved"):
        stage = "sparse" if event["step"] <= SPARSE else "low-rank"
        names = 12_000  # the header, which grows with the layers and not with their sizes
        assert 0 < event["bytes"] - 3 * 4 * trained[stage] < names
    state = json.loads(runs.store.get(runs.checkpoint_key(8, "state.json")))
    assert state["step"] == 8
