"""The process group of Ray Train's workers, which save after a SIGTERM and may hang.

Ray Train's own configuration for torch loads torch in the driver and in the controller too, which
need it for nothing: a second each, before a worker starts. This one loads it in the workers only.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.util import TrainingFramework

from jobs.train.preemption import SIGTERM


class CudaDeviceContext:
    """Selects a worker's GPU while its function runs, as Ray Train's own configuration does."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *_: object) -> None: ...


@dataclass
class PreemptibleTorchConfig(BackendConfig):  # type: ignore[misc]  # Ray is untyped.
    """Ray Train's process group, for workers that save after a SIGTERM, and that may hang."""

    backend: str = "gloo"
    """gloo | nccl"""
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the backend that Ray Train starts on the workers."""
        return _PreemptibleBackend

    @property
    def train_func_context(self) -> type[CudaDeviceContext | nullcontext[None]]:
        """Return the context that the workers' function runs in."""
        return CudaDeviceContext if self.backend == "nccl" else nullcontext

    @property
    def framework(self) -> TrainingFramework:
        """Return the name that Ray Train records."""
        return TrainingFramework.TORCH


class _PreemptibleBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: PreemptibleTorchConfig) -> None:
        """Let the workers join one process group, and listen for SIGTERM."""
        # Here, because only a process's main thread can set a handler, and training runs in
        # another one.
        worker_group.execute(_listen_for_sigterm)
        address = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_join_process_group, address, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: PreemptibleTorchConfig) -> None:
        """Do nothing: Ray kills the workers next, and their process group with them.

        To shut it down first, Ray would wait 30 s for a worker that hangs.
        """


def is_preemption_requested() -> bool:
    """Return whether this process was sent SIGTERM, or Ray drains a machine of this run.

    Reads only what this process has. Ray's public `get_preemption_info` is a broadcast that all
    ranks must join, at every step; ours agree by a number that travels with the gradients.
    """
    return SIGTERM.is_set() or get_train_context().preemption_context.preemption_info is not None


def _listen_for_sigterm() -> None:
    SIGTERM.listen()


def _join_process_group(address: tuple[str, int], config: PreemptibleTorchConfig) -> None:
    """Join this worker's process group, by Ray Train's own functions."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address[0], MASTER_PORT=str(address[1]))
    _set_torch_distributed_env_vars()
    context = get_train_context()
    _setup_torch_process_group(
        backend=config.backend,
        world_rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        init_method="env://",
        timeout_s=config.timeout_s,
    )
