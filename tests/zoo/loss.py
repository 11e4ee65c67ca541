"""`python -m tests.zoo.loss [FILE.py]`: the loss of each model in chunks, beside the plain one.

The exit code is 1 where the two differ. A model whose loss stays plain is named with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jobs.train.data.collate import Batch
from jobs.train.data.tokenization import IGNORE_INDEX
from jobs.train.engine.chunked_loss import PLAIN_LOSS, LossChoice
from jobs.train.engine.loss import compute_loss
from jobs.train.model.settle_loss import probe_loss
from tests.zoo.load_models import OWN, load_groups

CPU = torch.device("cpu")
CHUNK_ROWS = 3
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LossComparison:
    """How the loss of a model is computed, and how far it is from the plain one."""

    choice: LossChoice
    loss_error: float = 0.0
    """Relative."""
    gradient_error: float = 0.0
    """The norm of the difference of the gradients of all parameters, as a share of their norm."""

    @property
    def is_equal(self) -> bool:
        """Return whether both losses, and their gradients, are the same."""
        return self.loss_error <= TOLERANCE and self.gradient_error <= TOLERANCE


def iter_comparisons(path: str = OWN) -> Iterator[tuple[str, LossComparison]]:
    """Yield the comparison of each model of a zoo that has logits of tokens, by name."""
    for group, makers in load_groups(path).items():
        # RWKV has no gradient in this version of transformers, with either loss, and is refused.
        names = [name for name in makers if group != "CLASSIFY" and name != "rwkv"]
        for name in names:
            torch.manual_seed(0)
            yield name, compare_losses(makers[name]().float(), group)


def compare_losses(model: Any, group: str) -> LossComparison:
    """Return both losses of rows with gaps between their targets, all parameters trained."""
    kind = "completion" if group == "SEQ2SEQ" else "tokens"
    model.eval()
    vocabulary = model.config.get_text_config().vocab_size
    choice = probe_loss(model, CPU, kind=kind, chunk_bytes=CHUNK_ROWS * vocabulary * 4)
    if not choice.is_chunked:
        return LossComparison(choice)
    batch = make_batch(vocabulary, kind)
    loss, gradients = compute_gradients(model, batch, PLAIN_LOSS)
    own_loss, own_gradients = compute_gradients(model, batch, choice)
    assert gradients.keys() == own_gradients.keys()
    names = sorted(gradients)
    plain, own = (
        torch.cat([part[name].flatten().double() for name in names])
        for part in (gradients, own_gradients)
    )
    gradient_error = float((own - plain).norm() / plain.norm())
    return LossComparison(choice, abs(own_loss / loss - 1), gradient_error)


def make_batch(vocabulary: int, kind: str = "tokens", *, seed: int = 1) -> Batch:
    """Return two rows of tokens: not every position is a target, and not of both rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, min(vocabulary, 250), (2, 11), generator=generator)
    labels = ids.clone()
    labels[0, :4], labels[1, 6:8] = IGNORE_INDEX, IGNORE_INDEX
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "completion":
        inputs["labels"] = ids
    targets = int((labels[:, 1:] != IGNORE_INDEX).sum())
    batch = Batch(inputs=inputs, labels=labels, targets=targets, tokens=ids.numel())
    return replace(batch, kind=kind)  # type: ignore[arg-type]


def compute_gradients(
    model: Any, batch: Batch, choice: LossChoice
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss, and the gradient of each parameter that has one, by name."""
    model.zero_grad()
    loss = compute_loss(model, batch, choice, device=CPU)
    loss.backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def main() -> int:
    """Print a line for each model. Return 1 if a loss differs."""
    failures = 0
    for name, comparison in iter_comparisons(*sys.argv[1:2]):
        choice = comparison.choice
        errors = f"{comparison.loss_error:.1e}, gradient {comparison.gradient_error:.1e}"
        text = f"chunks: {errors}" if choice.is_chunked else f"plain: {choice.reason}"
        failures += not comparison.is_equal
        print(f"{name}: {text}{'' if comparison.is_equal else ' DIFFERS'}", flush=True)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
