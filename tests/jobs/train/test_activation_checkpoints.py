"""Layers that are computed again in the backward: the same bits, in a fraction of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jobs.errors import InputError
from jobs.train.model.activation_checkpoints import checkpoint_activations
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec
from tests.training_runs import TrainingCase, train_all


def _make_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _compute(model: Any) -> tuple[float, dict[str, torch.Tensor], int]:
    """Return the loss, the gradients, and the numbers that autograd kept of the forward."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.arange(24).view(2, 12) % 32
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, sum(kept.values())


def test_gradients_are_the_same_bits_and_little_is_kept():
    plain, checkpointed = _make_llama(), _make_llama()
    assert checkpoint_activations(checkpointed) == 3
    loss, gradients, kept = _compute(plain)
    same_loss, same_gradients, less = _compute(checkpointed)
    assert same_loss == loss and same_gradients.keys() == gradients.keys()
    assert all(torch.equal(same_gradients[name], gradients[name]) for name in gradients)
    assert less < kept / 2


def test_nothing_is_computed_again_without_a_backward():
    model, calls = _make_llama(), []
    checkpoint_activations(model)
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    assert len(calls) == 1
    _compute(model)
    assert len(calls) == 3


def test_a_model_without_layers_of_its_own_is_refused():
    with pytest.raises(InputError, match="Linear has no layers that can be computed again"):
        checkpoint_activations(nn.Linear(2, 2))


Method = tuple[dict[str, Any], str]
SHORT: list[Method] = [
    ({"kind": "slora", "density": 0.05}, "replicate"),
    ({"kind": "full"}, "cluster"),
]
OTHERS: list[Method] = [
    ({"kind": "slora", "density": 0.05}, "cluster"),
    ({"kind": "sparse", "mask": "rows"}, "node"),
    ({"kind": "full"}, "replicate"),
]


@pytest.mark.ranks
@pytest.mark.timeout(600)
@pytest.mark.parametrize("methods", [SHORT, pytest.param(OTHERS, marks=pytest.mark.long)])
def test_runs_of_every_kind_have_the_same_losses_with_it(tmp_path: Path, methods: list[Method]):
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 40)
    cases = []
    for method, sharding in methods:
        for again in (False, True):
            spec = tiny_spec(
                tmp_path,
                method=method,
                train={"steps": 4, "batch_size": 4, "activation_checkpointing": again},
                cluster={"sharding": sharding},
            )
            cases.append(TrainingCase(f"{method['kind']}-{sharding}-{again}".lower(), spec))
    results = train_all(cases, 2)
    for case in cases[::2]:
        plain, again = (
            results[case.run.removesuffix("false") + word] for word in ("false", "true")
        )
        assert again.losses == plain.losses, case.run
        assert again.files == plain.files, case.run
