"""The command that starts a vLLM server with the plug-in. No torch, and no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PLUGIN = "slora"
WORKER_EXTENSION = "slora.serving.worker_extension.SparseWeightWorker"
MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The `vllm` command fails under the name of the package for CPUs; its module does not."""


@dataclass(frozen=True)
class ServerOptions:
    """How to start a server. `model`: a folder or a hub id; `served_as`: the base's name.

    `extra`: further arguments of vLLM, as they are.
    """

    model: str
    port: int
    host: str = "127.0.0.1"
    served_as: str = "base"
    dtype: str = "auto"
    max_length: int | None = None
    max_rank: int = 64
    extra: Sequence[str] = ()


def build_command(python: str, options: ServerOptions) -> tuple[str, ...]:
    """Return the command line of a server with LoRA and sparse adapters."""
    length = () if options.max_length is None else (f"--max-model-len={options.max_length}",)
    return (
        python, "-m", MODULE, "--model", options.model, f"--served-model-name={options.served_as}",
        f"--host={options.host}", f"--port={options.port}", f"--dtype={options.dtype}", *length,
        "--enable-lora", f"--max-lora-rank={options.max_rank}",
        f"--worker-extension-cls={WORKER_EXTENSION}", *options.extra,
    )  # fmt: skip


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a server: its own, the plug-in by name, and no hub.

    `VLLM_PLUGINS` is a list of all plug-ins that load, so those of the environment stay.
    """
    plugins = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **environment,
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*plugins, PLUGIN])),
    }
