"""The loss on targets alone equals the loss over all positions."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.train.data.collate import Batch
from jobs.train.engine.loss import compute_logits, sum_loss
from tests.tiny import tiny_chat_model


class Plain(torch.nn.Module):
    """A model that computes all positions only."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_chat_model(tmp_path_factory.mktemp("model") / "model")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def _batch(labels: torch.Tensor) -> Batch:
    ids = torch.arange(labels.numel()).view(labels.shape) % 50
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Batch(inputs=inputs, labels=labels, targets=0, tokens=labels.numel())


def test_computing_target_positions_only_changes_no_loss_and_no_gradient(model):
    labels = torch.full((3, 12), -100)
    labels[0, 3:6] = 7
    labels[1, 9] = 3
    batch, cpu = _batch(labels), torch.device("cpu")
    results = []
    for variant in (model, Plain(model)):
        model.zero_grad()
        loss = sum_loss(*compute_logits(variant, batch, device=cpu))
        loss.backward()
        results.append((loss.detach(), model.model.embed_tokens.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])
    logits = model(**batch.inputs).logits[:, :-1].reshape(-1, model.config.vocab_size)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")
    torch.testing.assert_close(results[0][0], expected.detach())


def test_a_batch_of_filler_alone_adds_nothing_and_still_has_a_gradient(model):
    batch = _batch(torch.full((2, 8), -100))
    loss = sum_loss(*compute_logits(model, batch, device=torch.device("cpu")))
    loss.backward()
    assert float(loss.detach()) == 0.0
