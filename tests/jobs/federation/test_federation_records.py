"""What a federation records: its traffic, its rounds and its adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.runs.run_store import LOW_RANK_INIT
from jobs.train.method.low_rank_start import unpack_inits
from tests.jobs.federation.runs import Run, run_federation

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def plain(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A federation with all defaults, for the tests that only read what it left."""
    return run_federation(folder, {}, tmp_path_factory.mktemp("plain").name)


@pytest.mark.parametrize("compress", ["none", "bf16", "int8", "topk"])
def test_the_ledger_has_every_byte_of_every_client_and_round(folder, tmp_path, plain, compress):
    section = {"compress": compress}
    run = plain if compress == "none" else run_federation(folder, section, tmp_path.name)
    rounds, traffic = run.read_rounds(), run.ledger["wire"]
    for stage in ("sparse", "low-rank"):
        clients = [
            client for line in rounds if line["stage"] == stage for client in line["clients"]
        ]
        assert len(clients) == 2 * 2
        for cause in ("down", "up"):
            assert sum(client[cause] for client in clients) == traffic[stage][cause]["bytes"]
    metrics, _ = run.runs.metrics.tail(0)
    steps = [line for line in metrics if "evaluation" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["clients"] == line["answered"] == 2 for line in steps)


def test_a_random_mask_is_never_sent_and_a_scored_one_once(folder, tmp_path, plain):
    assert set(plain.ledger["wire"]["sparse"]) == {"install", "evaluation", "down", "up"}
    section = {"clients": 3, "clients_per_round": 3}
    scored = run_federation(folder, section, f"{tmp_path.name}-scored", method={"mask": "gradient"})
    masks = scored.ledger["wire"]["sparse"]["masks"]
    # To the site that opens the stage, and to each client with its first task.
    assert masks["calls"] == 4
    assert scored.ledger["wire"]["sparse"]["calibration"]["calls"] == 3


def test_the_rounds_are_written_as_json_lines(plain):
    rounds = plain.read_rounds()
    assert json.loads(json.dumps(rounds))[0]["clients"][0].keys() >= {"name", "up", "down", "loss"}


def test_the_committed_adapter_has_the_weights_of_the_last_round(plain, tmp_path):
    run, store = plain, plain.runs.store
    manifest = resolve_adapter(store, "tiny")
    assert manifest.ledger["clients"] == 4
    # As in the plan, these are the steps of a client that is sampled in every round.
    assert (manifest.ledger["rounds"], manifest.ledger["steps"]) == (4, 8)
    saved = load_file(pull(store, manifest, tmp_path / "adapter") / "adapter_model.safetensors")
    for name, tensor in run.weights.items():
        if name.endswith(".b_OR"):
            layer = name.removesuffix(".b_OR")
            factor = next(saved[key] for key in saved if layer in key and "lora_B" in key)
            assert torch.equal(factor.float(), tensor)


def test_masked_factors_after_a_hand_off_are_committed_whole_with_the_last_rounds_values(
    folder, tmp_path, plain
):
    run = run_federation(folder, {}, tmp_path.name, method={"factor_density": 0.25})
    sent = [each.ledger["wire"]["low-rank"]["up"]["bytes"] for each in (run, plain)]
    assert sent[0] < sent[1] / 2
    starts = unpack_inits(run.runs.store.get(run.runs.key(LOW_RANK_INIT)))
    saved = load_file(
        pull(run.runs.store, resolve_adapter(run.runs.store, "tiny"), tmp_path / "adapter")
        / "adapter_model.safetensors"
    )
    for layer, start in starts.items():
        factor = next(saved[key] for key in saved if layer in key and "lora_B" in key)
        values = run.weights[f"{layer}.b_values"]
        assert int((factor != start.b_OR).sum()) == values.numel() == start.b_OR.numel() / 4
        assert torch.equal(factor[factor != start.b_OR], values)


def test_a_frozen_a_is_not_sent_but_is_in_the_adapter(folder, tmp_path):
    lora = {"kind": "lora"}
    trained = run_federation(folder, {}, f"{tmp_path.name}-lora", method=lora)
    frozen = run_federation(folder, {"freeze_a": True}, f"{tmp_path.name}-ffa", method=lora)
    sent = [run.ledger["wire"]["low-rank"]["up"]["bytes"] for run in (trained, frozen)]
    assert sent[1] < 0.75 * sent[0]
    store = frozen.runs.store
    adapter = pull(store, resolve_adapter(store, "tiny"), tmp_path / "adapter")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for name, tensor in saved.items() if "lora_A" in name)
