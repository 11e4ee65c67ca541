"""The loss on targets alone equals the loss over everything."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.data.collate import Batch
from jobs.objective import ask, correct, loss_sum
from tests.tiny import tiny_chat_model


class Plain(torch.nn.Module):
    """A model that can't be asked for some positions only."""

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


def test_computing_the_asked_positions_only_changes_no_loss_and_no_gradient(model):
    labels = torch.full((3, 12), -100)
    labels[0, 3:6] = 7
    labels[1, 9] = 3
    batch, cpu = _batch(labels), torch.device("cpu")
    found = []
    for one in (model, Plain(model)):
        model.zero_grad()
        loss = loss_sum(*ask(one, batch, device=cpu))
        loss.backward()
        found.append((loss.detach(), model.model.embed_tokens.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    whole = model(**batch.inputs).logits[:, :-1].reshape(-1, model.config.vocab_size)
    wanted = torch.nn.functional.cross_entropy(whole, labels[:, 1:].reshape(-1), reduction="sum")
    torch.testing.assert_close(found[0][0], wanted.detach())


def test_a_batch_of_filler_alone_adds_nothing_and_still_has_a_gradient(model):
    batch = _batch(torch.full((2, 8), -100))
    loss = loss_sum(*ask(model, batch, device=torch.device("cpu")))
    loss.backward()
    assert float(loss.detach()) == 0.0


def test_correct_counts_only_the_labels_that_count():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert correct(logits, torch.tensor([0, 0, -100])) == 1
