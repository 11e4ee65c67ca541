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

STEPS = 20
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
               "checkpoint_every": 8},
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_are_equal_with_every_kernel_resumed_or_not(tmp_path: Path, ranks: int, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("SLORA_CACHE", str(cache))
    spec = _make_spec(tmp_path)
    probed = train_all([TrainingCase("probed", spec)], ranks)["probed"].losses
    assert len(probed) == STEPS and probed[-1] < probed[0]
    for kernel in list_kernels("cpu", torch.float32):
        _write_kernel(cache, kernel)
        resumed, dies = f"{kernel}-resumed", TrainingCase(f"{kernel}-resumed", spec, dies="step 11")
        results = train_all([TrainingCase(kernel, spec), dies], ranks)
        # The kernels of a run stay, whatever later runs on the machine use.
        _write_kernel(cache, "slabs" if kernel != "slabs" else "sampled")
        losses = train_all([TrainingCase(resumed, spec)], ranks)[resumed].losses
        assert results[kernel].losses == pytest.approx(probed, rel=RELATIVE)
        assert losses[-8:] == results[kernel].losses[-8:]
        for run in (kernel, resumed):
            assert _list_kernels(tmp_path / "store" / "runs" / run) == {kernel}


def test_a_run_is_repeated_to_the_bit_with_the_kernels_of_its_folder(tmp_path: Path, monkeypatch):
    cache, runs = tmp_path / "cache", tmp_path / "store" / "runs"
    monkeypatch.setenv("SLORA_CACHE", str(cache))
    spec = _make_spec(tmp_path)
    first = train_all([TrainingCase("first", spec)], 2)["first"]
    (used,) = _list_kernels(runs / "first")
    _write_kernel(cache, "sampled" if used == "slabs" else "slabs")
    shutil.copytree(runs / "first" / "kernels", runs / "again" / "kernels")
    results = train_all([TrainingCase("again", spec), TrainingCase("other", spec)], 2)
    assert results["again"].files == first.files
    # The sums of another kernel differ in their last bits.
    assert results["other"].files != first.files


def _write_kernel(cache: Path, kernel: str) -> None:
    """Make the kernel the machine's choice for every product."""
    (choices_file,) = (cache / "kernels").iterdir()
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
