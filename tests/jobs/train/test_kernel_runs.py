"""Runs have the same losses whichever kernel computes the gradients of the sparse values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from slora.kernels.choice import list_kernels
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_all

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

STEPS = 20
RELATIVE = 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_are_equal_with_every_kernel_resumed_or_not(tmp_path: Path, ranks: int, monkeypatch):
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    # Just large enough for a probe.
    tiny_chat_model(tmp_path / "model", hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    chat_rows(tmp_path / "train.jsonl", 60)
    spec = tiny_spec(
        tmp_path,
        method={"kind": "sparse", "density": 0.01},
        data={"packing": True, "max_length": 96},
        train={"steps": STEPS, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3,
               "checkpoint_every": 8},
    )  # fmt: skip
    probed = train_all([TrainingCase("probed", spec)], ranks)["probed"].losses
    assert len(probed) == STEPS and probed[-1] < probed[0]
    (choices_file,) = (tmp_path / "cache" / "kernels").iterdir()
    for kernel in list_kernels("cpu", torch.float32):
        choices = json.loads(choices_file.read_text())
        choices_file.write_text(
            json.dumps({kind: choice | {"kernel": kernel} for kind, choice in choices.items()})
        )
        dying = TrainingCase(f"{kernel}-resumed", spec, dies="step 11")
        results = train_all([TrainingCase(kernel, spec), dying], ranks)
        resumed = train_all([TrainingCase(f"{kernel}-resumed", spec)], ranks)
        assert results[kernel].losses == pytest.approx(probed, rel=RELATIVE)
        assert resumed[f"{kernel}-resumed"].losses[-8:] == pytest.approx(probed[-8:], rel=RELATIVE)
        assert _list_chosen(tmp_path / "store" / "runs" / kernel) == {kernel}


def _list_chosen(run: Path) -> set[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    (chosen,) = (event["kernels"] for event in events if event["event"] == "kernels_chosen")
    return {choice["kernel"] for choice in chosen.values()}
