"""Full fine-tuning, the baseline: DeepSpeed's engine as it is, ZeRO-1 or ZeRO-3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from deepspeed.utils.tensor_fragment import (
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from jobs.train.comm.collectives import GRADIENTS, WorkerContext
from jobs.train.comm.deepspeed_comm import count_deepspeed_traffic, init_deepspeed
from jobs.train.engine.bucket import MOMENTS
from jobs.train.engine.engine import EngineOptions, ExchangeResult
from jobs.train.engine.learning_rate import IS_HEAD, StepRates, set_rates
from jobs.train.model.base_model import is_within
from jobs.train.model.shard_access import gather_for_writing

ZERO_STAGE = {"replicate": 1, "node": 3, "cluster": 3}


class FullEngine:
    """Trains all of a model under DeepSpeed."""

    def __init__(self, model: nn.Module, options: EngineOptions, context: WorkerContext) -> None:
        self._context, self._has_pending_step = context, False
        init_deepspeed()
        count_deepspeed_traffic(
            context.collectives, context.world_size, spans_nodes=context.node_count > 1
        )
        self._parameters = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self._accumulation = options.accumulation
        self._sharded = options.sharding != "replicate"
        # Use torch's AdamW: DeepSpeed's own would be compiled here first, and gains nothing on
        # parameters this small.
        optimizer = torch.optim.AdamW(
            _group_parameters(self._parameters, options.head),
            lr=0.0,
            weight_decay=options.weight_decay,
        )
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=_make_config(options, context)
        )

    @property
    def model(self) -> Any:
        """Return the model to call; under ZeRO-3 a call gathers what it needs."""
        return self._engine

    @property
    def module(self) -> Any:
        """Return the model itself, for its own methods; its layers still gather what they need."""
        return self._engine.module

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient. The sum over a step's micro-batches and workers counts.

        DeepSpeed averages over both; a loss that is already divided by the global number of targets
        must be summed, so the two divisions are undone here.
        """
        if self._has_pending_step:
            self._engine.step()
        self._engine.backward(loss * (self._accumulation * self._context.world_size))
        self._has_pending_step = True

    def step(
        self, *, rates: StepRates, loss: Tensor, preempted: bool, sync: bool
    ) -> ExchangeResult:
        """End the step: the last micro-step is the optimizer's. Every step is an exchange."""
        set_rates(self._engine.optimizer.param_groups, rates)
        self._engine.step()
        self._has_pending_step = False
        values = torch.stack((loss.float(), loss.new_tensor(float(preempted))))
        self._context.collectives.all_reduce(values, GRADIENTS)
        return ExchangeResult((float(values[0]),), preemption_notices=float(values[1]))

    def get_grad_norm(self) -> float:
        """Return the last optimizer step's gradient norm before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    def gather_weights(self) -> dict[str, Tensor]:
        """Return the trained weights, float32 on the CPU, complete on every rank. A collective."""
        return {
            name: _copy_full_tensor(safe_get_full_fp32_param(parameter), parameter)
            for name, parameter in self._parameters.items()
        }

    def gather_moments(self) -> dict[str, dict[str, Tensor]]:
        """Return AdamW's two moments by name, complete on every rank, after a first step. A
        collective.
        """
        self._link_moments()
        return {
            moment: {
                name: _copy_full_tensor(safe_get_full_optimizer_state(parameter, moment), parameter)
                for name, parameter in self._parameters.items()
            }
            for moment in MOMENTS
        }

    def restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the optimizer's float32 weights, which a bfloat16 model would have rounded."""
        for name, tensor in weights.items():
            parameter = self._parameters[name]
            if self._sharded:
                _fill_partition(self._engine.optimizer, parameter, None, tensor)
            else:
                safe_set_full_fp32_param(parameter, tensor.to(self._context.device))

    def find_non_finite(self) -> str | None:
        """Return the first weight that is NaN or infinite. A collective."""
        for name, tensor in self.gather_weights().items():
            if not bool(torch.isfinite(tensor).all()):
                return name
        return None

    def write_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set some of the trained weights, between two steps, in the optimizer and in the model."""
        self.restore_weights(weights)
        for name, tensor in weights.items():
            parameter = self._parameters[name]
            with gather_for_writing(parameter):
                parameter.data.copy_(tensor.to(self._context.device))

    def restore_moments(self, moments: Mapping[str, Mapping[str, Tensor]], *, steps: int) -> None:
        """Set saved moments, whatever the number of workers that saved them."""
        zero_optimizer = self._engine.optimizer
        for flat in _list_flat_partitions(zero_optimizer):
            zero_optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(steps)),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if self._sharded:
            for moment, tensors in moments.items():
                for name, parameter in self._parameters.items():
                    _fill_partition(zero_optimizer, parameter, moment, tensors[name])
            return
        self._link_moments()
        for moment, tensors in moments.items():
            for name, parameter in self._parameters.items():
                safe_set_full_optimizer_state(
                    parameter, tensors[name].to(self._context.device), moment
                )

    def _link_moments(self) -> None:
        """Let DeepSpeed find the moments of each parameter under ZeRO-1.

        DeepSpeed 0.19 does it once, after the first step of its first group: before a second group
        has any.
        """
        if not self._sharded:
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the model; its parameters stay where they are."""
        self._engine.destroy()


def _group_parameters(
    parameters: Mapping[str, nn.Parameter], head: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: the head apart, and no empty group."""
    groups: list[dict[str, Any]] = [{"params": [], IS_HEAD: is_head} for is_head in (False, True)]
    for name, parameter in parameters.items():
        groups[is_within(name, head)]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def _make_config(options: EngineOptions, context: WorkerContext) -> dict[str, Any]:
    stage = ZERO_STAGE[options.sharding]
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if options.sharding == "node" and context.node_count > 1:
        zero["zero_hpz_partition_size"] = len(context.list_node_peers())
    return {
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "gradient_clipping": options.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": options.bfloat16},
        "steps_per_print": 2**31,
    }


def _copy_full_tensor(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return tensor.detach().float().cpu().clone().view(shape)


def _list_flat_partitions(zero_optimizer: Any) -> list[Tensor]:
    """Return this rank's flat float32 partitions, the keys of the optimizer's state."""
    if hasattr(zero_optimizer, "single_partition_of_fp32_groups"):
        return list(zero_optimizer.single_partition_of_fp32_groups)
    return list(zero_optimizer.fp32_partitioned_groups_flat)


def _fill_partition(
    zero_optimizer: Any, parameter: nn.Parameter, moment: str | None, full_tensor: Tensor
) -> None:
    # DeepSpeed 0.19's own setter reads past the end of a tensor whose size the ranks don't divide.
    part, _ = zero_optimizer._get_fp32_opt_state_partition(
        parameter, release_swap_buffers=False, optim_state_key=moment
    )
    rank, length = torch.distributed.get_rank(), part.numel()
    own_part = full_tensor.flatten()[rank * length : (rank + 1) * length]
    with torch.no_grad():
        part.zero_()
        part[: own_part.numel()].copy_(own_part)
