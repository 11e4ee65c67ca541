"""How ranks that Ray Train did not start find each other: one torch process group by TCP."""

from __future__ import annotations

import datetime
import os
import socket


def find_free_address() -> str:
    """Return a free host:port of this node, for the process group of which this is rank 0."""
    import ray

    with socket.socket() as free_socket:
        free_socket.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free_socket.getsockname()[1]}"


def join_process_group(
    address: str, rank: int, world_size: int, *, local_rank: int, gpu: bool, timeout_s: float
) -> None:
    """Join the process group of all ranks. A collective."""
    # Imported here, so that an actor can set the environment that the libraries read.
    import torch

    # DeepSpeed reads the ranks from the environment, whatever group it is given.
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank))
    backend = "nccl" if gpu else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"tcp://{address}", rank=rank, world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
    )  # fmt: skip


def join_own_group() -> None:
    """Make this process a group of one, which DeepSpeed's engine needs, unless it is in a group."""
    import torch

    if torch.distributed.is_initialized():
        return
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
