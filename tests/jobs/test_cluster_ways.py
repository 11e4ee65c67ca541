"""Runs on four workers of two machines: how the base is held, what travels, who comes and goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.store.objects import open_store
from jobs.store.runs import RunStore
from tests.long import cases, long_asked
from tests.tiny import chat_rows, laid_over, tiny_chat_model, tiny_spec
from tests.training_runs import Asked, Left, train_all

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
"""How the base is held that `make test` runs masks by score and full training on."""
SCORED = {"mask": "fisher", "calibration_batches": 2, "handoff": {"residual": "keep"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    tiny_chat_model(made / "model")
    chat_rows(made / "train.jsonl", 60)
    chat_rows(made / "eval.jsonl", 9)
    return made


def _asked(folder: Path, run: str, *, dies: str = "", notices: int = 0, four: bool = True,
           **changes: Any) -> Asked:  # fmt: skip
    spec = tiny_spec(
        folder,
        name=run.replace(" ", "-"),
        data={"eval": str(folder / "eval.jsonl")},
        train={"steps": STEPS, "checkpoint_every": None, "batch_size": 8},
        cluster={"sharding": "replicate"},
    )
    machines = MACHINES if four else ()
    return Asked(
        run.replace(" ", "-"), laid_over(spec, changes), dies=dies, machines=machines,
        notices=notices,
    )  # fmt: skip


@pytest.fixture(scope="module")
def left(folder: Path, request: pytest.FixtureRequest) -> dict[str, Left]:
    """One group of four, then groups of other sizes that go on from where some of them died."""
    whole = long_asked(request)
    ways = {way: cluster for way, cluster in WAYS.items() if whole or way not in LATER}
    shardings = SHARDINGS if whole else SHORT
    every = {"train": {"checkpoint_every": 2}}
    full = {"method": {"kind": "full"}}
    four = train_all(
        [
            *(_asked(folder, way, cluster=cluster) for way, cluster in ways.items()),
            *(_asked(folder, f"scored {s}", method=SCORED, cluster={"sharding": s})
              for s in shardings),
            *(_asked(folder, f"full {s}", **full, cluster={"sharding": s})
              for s in shardings),
            _asked(folder, "moves", dies="step 7", **every, cluster={"sharding": "node"}),
            *([_asked(folder, "shrinks", dies="step 2", **every, cluster={"sync_every": 2})]
              if whole else []),
            _asked(folder, "noticed", dies="step 5", notices=5),
            _asked(folder, "local died", dies="step 5",
                   train={"checkpoint_every": 4}, cluster={"sync_every": 3}),
            _asked(folder, "local whole", train={"checkpoint_every": 4},
                   cluster={"sync_every": 3}),
        ],
        4,
    )  # fmt: skip
    again = train_all([_asked(folder, "local died", train={"checkpoint_every": 4},
                              cluster={"sync_every": 3})], 4)  # fmt: skip
    two = train_all([_asked(folder, "moves", four=False, **every)], 2)
    elastic = {"cluster": {"workers": {"min": 1, "max": 4}}}
    shrunk = [_asked(folder, "shrinks", four=False, **laid_over(every, elastic))]
    three = train_all(shrunk, 3) if whole else {}
    return {**four, **again, **two, **three}


def _sent(left: Left, stage: str, cause: str) -> dict[str, int]:
    return left.ledger["wire"][stage].get(cause, {"calls": 0, "bytes": 0, "between": 0})


@pytest.mark.parametrize("way", ["node", "cluster"])
def test_however_the_base_is_held_the_run_is_the_same(left, way):
    assert left[way].losses == pytest.approx(left["replicate"].losses, rel=1e-5)
    assert left[way].base_untouched


@pytest.mark.parametrize("way", cases(["node", "cluster"], SHORT))
def test_however_the_base_is_held_masks_and_full_training_are_the_same(left, way):
    assert left[f"scored-{way}"].losses == pytest.approx(left["scored-replicate"].losses, rel=1e-5)
    assert left[f"scored-{way}"].masks == left["scored-replicate"].masks
    assert left[f"full-{way}"].losses == pytest.approx(left["full-replicate"].losses, rel=1e-4)


@pytest.mark.parametrize("way", ["replicate", "node", "cluster"])
def test_gradients_cost_one_ring_a_step_and_no_more(left, way):
    for stage, steps in (("sparse", SPARSE), ("low-rank", STEPS - SPARSE)):
        trained = left[way].ledger[f"{stage}_trainable"]
        ring = 2 * 3 * 4 * (trained + 4) // 4
        told = _sent(left[way], stage, "gradients")
        assert told == {"calls": steps, "bytes": steps * ring, "between": steps * ring}


def test_the_base_travels_between_machines_only_where_it_is_cut_over_all(left):
    for stage in ("sparse", "low-rank"):
        assert _sent(left["replicate"], stage, "base")["bytes"] == 0
        assert _sent(left["node"], stage, "base")["bytes"] > 0
        assert _sent(left["node"], stage, "base")["between"] == 0
        cluster = _sent(left["cluster"], stage, "base")
        assert cluster["between"] == cluster["bytes"] > 0


def test_a_bfloat16_exchange_costs_half(left):
    trained = left["bfloat16"].ledger["sparse_trainable"]
    told = _sent(left["bfloat16"], "sparse", "gradients")
    assert told["bytes"] == SPARSE * (2 * 3 * 2 * trained // 4 + 2 * 3 * 4 * 4 // 4)
    assert left["bfloat16"].losses == pytest.approx(left["replicate"].losses, rel=2e-2)


@pytest.mark.parametrize("way", cases(["local", "local-nesterov", "local-product"], ["local"]))
def test_local_steps_exchange_once_in_so_many(left, way):
    assert _sent(left[way], "sparse", "gradients")["calls"] == 1
    assert len(left[way].losses) == STEPS
    assert left[way].losses[-1] < left[way].losses[0]
    # Until the first exchange every worker has seen its own rows alone, from the same weights.
    assert left[way].losses[0] == pytest.approx(left["replicate"].losses[0], rel=1e-6)
    assert left[way].losses != left["replicate"].losses


@pytest.mark.long
def test_ways_to_average_differ(left):
    assert left["local"].losses[-1] != left["local-nesterov"].losses[-1]
    assert left["local"].losses[-1] != left["local-product"].losses[-1]


@pytest.mark.long
def test_a_mean_of_products_states_what_its_rank_could_not_hold(left, folder):
    for way, exchanges in (("local-product", 3), ("local", 0)):
        runs = RunStore(open_store(f"file://{folder / 'store'}"), way)
        told = [m["average_error"] for m in runs.metrics.tail(0)[0] if "average_error" in m]
        # Four workers' factors of rank 2 have a mean of a higher rank; values have no rank at all.
        assert len(told) == exchanges
        assert all(0 < error < 1 for error in told)


def test_local_steps_go_on_to_the_same_bits(left):
    assert left["local-died"].losses[-5:] == left["local-whole"].losses[-5:]
    assert left["local-died"].files == left["local-whole"].files


@pytest.mark.parametrize("run", ["moves"])
def test_a_run_goes_on_at_another_size_and_sharding(left, run):
    assert left[run].losses[-1] == pytest.approx(left["replicate"].losses[-1], rel=1e-4)


@pytest.mark.long
def test_a_run_goes_on_with_a_number_of_workers_that_divides_nothing(left):
    assert left["shrinks"].files
    assert len({*range(1, STEPS + 1)}) == STEPS <= len(left["shrinks"].losses)


def test_a_notice_to_one_worker_makes_a_checkpoint_at_once(left, folder):
    runs = RunStore(open_store(f"file://{folder / 'store'}"), "noticed")
    # And the one at the end of the sparse stage.
    assert runs.checkpoint_steps() == [SPARSE, 5]
    events, _ = runs.events.tail(0)
    assert [e["step"] for e in events if e["event"] == "noticed"] == [5]


def test_a_checkpoint_is_three_times_what_is_trained(left, folder):
    runs = RunStore(open_store(f"file://{folder / 'store'}"), "local-whole")
    events, _ = runs.events.tail(0)
    trained = {stage: left["local-whole"].ledger[f"{stage}_trainable"]
               for stage in ("sparse", "low-rank")}  # fmt: skip
    for event in (e for e in events if e["event"] == "checkpoint"):
        stage = "sparse" if event["step"] <= SPARSE else "low-rank"
        names = 12_000  # the header, which grows with the layers and not with their sizes
        assert 0 < event["bytes"] - 3 * 4 * trained[stage] < names
    state = json.loads(runs.store.get(runs.checkpoint_key(8, "state.json")))
    assert state["step"] == 8
