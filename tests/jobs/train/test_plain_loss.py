"""A loss that stays plain: the description of the model says why, and the plan has its memory."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.plan.estimate.activations import LOSS_CHUNK, estimate_logits
from jobs.train.data.collate import Batch
from jobs.train.engine.chunked_loss import PLAIN_LOSS
from jobs.train.engine.loss import compute_loss
from jobs.train.model.describe_model import describe_model
from jobs.train.model.settle_loss import probe_loss
from slora.layers.install import freeze
from tests.jobs.plan.estimate.inputs import WIDTHS, make_inputs

CPU = torch.device("cpu")
VOCABULARY, MICRO, LENGTH = 4096, 2, 48
REASON = "computes a loss of its own where it shifts the labels"


def make_blenderbot() -> Any:
    """Return an encoder-decoder that shifts the labels in its forward."""
    from transformers import BlenderbotConfig, BlenderbotForConditionalGeneration

    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 16)
    config = BlenderbotConfig(vocab_size=VOCABULARY, d_model=8, dropout=0.0, **sizes)
    return BlenderbotForConditionalGeneration(config).eval()


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, without those of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        tensors = (*model.parameters(), *model.buffers())
        self._known = {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize(("dtype", "dtype_bytes"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_logits_of_a_plain_loss_take_what_the_plan_counts(dtype, dtype_bytes):
    model = make_blenderbot().to(dtype)
    freeze(model, trainable=[model.model.decoder.layers])
    ids = torch.randint(5, VOCABULARY, (MICRO, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch = Batch(inputs, ids, targets=ids.numel(), tokens=ids.numel(), kind="completion")
    with _LiveBytes(model) as bytes_:
        compute_loss(model, batch, PLAIN_LOSS, device=CPU).backward()
    # The plan's micro-batch is so many times this one that its logits are more than a chunk.
    times = 2 * LOSS_CHUNK["cpu"] // (MICRO * LENGTH * VOCABULARY * 4) + 1
    planned = estimate_logits(
        make_inputs(
            base={"widths": replace(WIDTHS, vocab=VOCABULARY)},
            batching={"micro": MICRO * times, "length": LENGTH},
            dtype_bytes=dtype_bytes,
            keeps_logits=True,
        )
    )
    assert planned == pytest.approx(bytes_.peak * times, rel=0.05)


def test_the_reason_is_known_from_the_class_and_is_that_of_the_loaded_model(tmp_path: Path):
    model = make_blenderbot()
    model.save_pretrained(tmp_path / "model")
    assert describe_model(tmp_path / "model", "seq2seq").plain_loss == REASON
    assert probe_loss(model, CPU, kind="completion").reason.endswith(REASON)
