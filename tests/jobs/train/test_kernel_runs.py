"""Runs have the same losses whichever kernel computes the gradients of the sparse values, and the
same bits with the same one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from slora.kernels.choice import list_kernels
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

STEPS, SAVED, DIES = 12, 5, 7
RELATIVE = 1e-5


def _make_spec(folder: Path) -> Mapping[str, Any]:
    """Return the spec of a run whose model is just large enough for a probe."""
    tiny_chat_model(folder / "model", hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    chat_rows(folder / "train.jsonl", 60)
    return tiny_spec(
        folder,
        method={"kind": "sparse", "density": 0.01},
        data={"packing": True, "max_length": 96},
        train={"steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3,
               "checkpoint_every": SAVED},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_are_equal_with_every_kernel_resumed_or_not(tmp_path: Path, ranks: int, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("SLORA_CACHE", str(cache))
    spec = _make_spec(tmp_path)
    runs, kernels = tmp_path / "store" / "runs", list_kernels("cpu", torch.float32)
    probed = train_all([TrainingCase("probed", spec)], ranks)["probed"].losses
    assert len(probed) == STEPS and probed[-1] < probed[0]
    for kernel in kernels:
        for run in (kernel, f"{kernel}-resumed"):
            shutil.copytree(runs / "probed" / "kernels", runs / run / "kernels")
            _write_kernel(runs / run, kernel)
    deaths = [TrainingCase(f"{kernel}-resumed", spec, dies=f"step {DIES}") for kernel in kernels]
    results = train_all([*(TrainingCase(kernel, spec) for kernel in kernels), *deaths], ranks)
    # The kernels of a run stay, whatever later runs on the machine use.
    _write_kernel(cache, "sampled")
    resumed = train_all([TrainingCase(death.run, spec) for death in deaths], ranks)
    for kernel in kernels:
        losses, again = results[kernel].losses, resumed[f"{kernel}-resumed"].losses
        assert losses == pytest.approx(probed, rel=RELATIVE)
        assert again[SAVED - STEPS :] == losses[SAVED - STEPS :]
        for run in (kernel, f"{kernel}-resumed"):
            assert _list_kernels(runs / run) == {kernel}


def test_a_run_is_repeated_to_the_bit_with_the_kernels_of_its_folder(tmp_path: Path, monkeypatch):
    cache, runs = tmp_path / "cache", tmp_path / "store" / "runs"
    monkeypatch.setenv("SLORA_CACHE", str(cache))
    spec = _make_spec(tmp_path)
    first = train_all([TrainingCase("first", spec)], 2)["first"]
    (used,) = _list_kernels(runs / "first")
    other = "sampled" if used == "slabs" else "slabs"
    _write_kernel(cache, other)
    shutil.copytree(runs / "first" / "kernels", runs / "again" / "kernels")
    results = train_all([TrainingCase("again", spec), TrainingCase("other", spec)], 2)
    assert results["again"].files == first.files
    # A run without kernels of its own takes the machine's choice.
    assert _list_kernels(runs / "other") == {other}
    # The sums of another kernel differ in their last bits.
    assert results["other"].files != first.files


def _write_kernel(folder: Path, kernel: str) -> None:
    """Make the kernel the choice of a run or of the machine for every product."""
    (choices_file,) = (folder / "kernels").iterdir()
    choices = json.loads(choices_file.read_text())
    assert choices
    choices_file.write_text(
        json.dumps({kind: choice | {"kernel": kernel} for kind, choice in choices.items()})
    )


def _list_kernels(run: Path) -> set[str]:
    """Return the kernels that all attempts of a run used."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    chosen = [event["kernels"] for event in events if event["event"] == "kernels_chosen"]
    assert chosen
    return {choice["kernel"] for kernels in chosen for choice in kernels.values()}
