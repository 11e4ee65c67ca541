"""PEFT's own layers in a plain torch loop, on the batches and the schedule of the product's runs.

Nothing of the product's layers or engine is used: PEFT adapts the model, torch's AdamW steps over
PEFT's parameters, clipped as a whole, with the head as a group of its own rate. The batches, the
loss of a batch and the evaluation are the product's, so that figures differ by the method alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, ShiraConfig, get_peft_model
from torch import nn

from jobs.errors import TrainingFailed
from jobs.train.data.worker_feeds import make_eval_feed, make_train_feed
from jobs.train.engine.learning_rate import compute_rate
from jobs.train.engine.loss import compute_loss
from jobs.train.evaluation import evaluate
from jobs.train.model.load_base import LoadedBase
from jobs.train.request import TrainingRequest
from tests.benchmarks.quality.corpora import RANK
from tests.benchmarks.quality.setting import Setting


def _make_lora(method: Mapping[str, Any], targets: list[str], **more: Any) -> PeftConfig:
    return LoraConfig(
        r=method["rank"], lora_alpha=method["alpha"], target_modules=targets, lora_dropout=0.0,
        bias="none", **more,
    )  # fmt: skip


CONFIGS: Mapping[str, Callable[[Mapping[str, Any], list[str], int], PeftConfig]] = {
    "lora": lambda method, targets, seed: _make_lora(method, targets),
    "dora": lambda method, targets, seed: _make_lora(method, targets, use_dora=True),
    "pissa": lambda method, targets, seed: _make_lora(method, targets, init_lora_weights="pissa"),
    # FFA-LoRA (Sun et al., 2024): A stays as it was drawn.
    "ffa": lambda method, targets, seed: _make_lora(method, targets),
    "shira": lambda method, targets, seed: ShiraConfig(
        r=RANK, target_modules=targets, mask_type="random", random_seed=seed
    ),
}
"""The adapter of each of PEFT's methods: from the method, the layers to adapt and the seed."""


class PeftTraining:
    """One training by PEFT's code, on one process."""

    def __init__(
        self,
        setting: Setting,
        request: TrainingRequest,
        base: LoadedBase,
        device: torch.device,
    ) -> None:
        self._setting, self._request, self._base, self._device = setting, request, base, device
        self.model = base.model
        """Its layers become PEFT's; PEFT's own wrapper around it is not needed."""
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.evaluations: dict[str, dict[str, float]] = {}
        head = list(request.plan.head_modules)
        torch.manual_seed(setting.seed)
        name = str(setting.variant.peft)
        config = CONFIGS[name](setting.variant.method, list(base.targets), setting.seed)
        get_peft_model(self.model, config)
        heads = [self.model.get_submodule(module) for module in head]
        for module in heads:
            module.requires_grad_(True)
        if name == "ffa":
            for key, parameter in self.model.named_parameters():
                if "lora_A" in key:
                    parameter.requires_grad_(False)
        self._head = {id(parameter) for module in heads for parameter in module.parameters()}
        self._learnt = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.trained = sum(weight.numel() for weight in self._learnt)

    def run(self) -> tuple[list[dict[str, Any]], float]:
        """Train. Return lines as the product's metrics have them, and the seconds of the steps.

        Raise TrainingFailed if a loss is not finite.
        """
        setting, request, base = self._setting, self._request, self._base
        train, lines, tokens, seconds = request.spec.train, list[dict[str, Any]](), 0, 0.0
        steps = setting.corpus.steps
        weights = MasterWeights(self._learnt, self._head, setting.point)
        feed = make_train_feed(request, base.tokenizer, rank=0, world_size=1)
        for step, batch in enumerate(feed.iter_steps(start=0, steps=steps, epochs=None)):
            start_time = time.monotonic()
            for micro in batch.micros:
                loss = compute_loss(self.model, micro, base.loss, device=self._device)
                loss = loss / batch.targets
                loss.backward()
                if not bool(torch.isfinite(loss)):
                    raise TrainingFailed("PEFT", f"the loss of step {step + 1} is {loss}", "")
            share = compute_rate(
                step, steps=steps, peak=1.0, warmup=train.warmup, schedule=train.schedule
            )
            weights.step(share, max_norm=train.max_grad_norm)
            seconds += time.monotonic() - start_time
            tokens += batch.tokens
            lines.append({"stage": "peft", "step": step + 1, "tokens": tokens})
            if (step + 1) % setting.corpus.eval_every == 0 or step + 1 == steps:
                self._evaluate("end" if step + 1 == steps else f"step {step + 1}", step + 1, lines)
        return lines, seconds

    def _evaluate(self, name: str, step: int, lines: list[dict[str, Any]]) -> None:
        feed = make_eval_feed(self._request, self._base.tokenizer, rank=0, world_size=1)
        assert feed is not None
        metrics = evaluate(self.model, feed, device=self._device, choice=self._base.loss)
        if name == "end":
            self.evaluations[name] = metrics
        lines.append({"evaluation": name, "step": step, **metrics})


class MasterWeights:
    """AdamW over float32 weights, of which a bfloat16 head holds rounded copies."""

    def __init__(
        self, learnt: list[nn.Parameter], head: set[int], rates: Mapping[str, float]
    ) -> None:
        self._learnt = learnt
        self._masters = [nn.Parameter(parameter.detach().float().clone()) for parameter in learnt]
        pairs = list(zip(learnt, self._masters, strict=True))
        adapter = [master for parameter, master in pairs if id(parameter) not in head]
        heads = [master for parameter, master in pairs if id(parameter) in head]
        groups = [{"params": adapter, "peak": rates["adapter"]}]
        if heads:
            groups.append({"params": heads, "peak": rates["head"]})
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)

    def step(self, share: float, *, max_norm: float) -> None:
        """Take one step at this share of the peak rates, and clear the gradients."""
        for parameter, master in zip(self._learnt, self._masters, strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, max_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._learnt, self._masters, strict=True):
                parameter.copy_(master)
