"""The command that starts a vLLM server with the plug-in. No torch, and no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PLUGIN = "slora"
WORKER_EXTENSION = "slora.serving.worker_extension.SparseWeightWorker"
MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""The `vllm` command fails under the name of the package for CPUs; its module does not."""


@dataclass(frozen=True)
class ServerOptions:
    """How to start a server. `model`: a folder or a hub id; `served_as`: the base's name.

    `eager`: compile nothing, which on CPUs takes minutes; `extra`: further arguments of vLLM.
    """

    model: str
    port: int
    host: str = "127.0.0.1"
    served_as: str = "base"
    dtype: str = "auto"
    max_rank: int = 64
    eager: bool = False
    extra: Sequence[str] = ()


def build_command(python: str, options: ServerOptions) -> tuple[str, ...]:
    """Return the command line of a server with LoRA and sparse adapters."""
    return (
        # -P: the working directory may be a checkout, whose metadata is not to be found.
        python, "-P", "-m", MODULE, "--model", options.model,
        f"--served-model-name={options.served_as}", f"--dtype={options.dtype}",
        f"--host={options.host}", f"--port={options.port}",
        # As long as the model's, or what the memory for the cache of keys and values allows.
        "--max-model-len=auto",
        "--enable-lora", f"--max-lora-rank={options.max_rank}",
        f"--worker-extension-cls={WORKER_EXTENSION}",
        *(("--enforce-eager",) if options.eager else ()), *options.extra,
    )  # fmt: skip


def build_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a server: its own, and the plug-in by name.

    `VLLM_PLUGINS` is a list of all plug-ins that load, so those of the environment stay.
    """
    plugins = [name for name in environment.get("VLLM_PLUGINS", "").split(",") if name]
    return {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **environment,
        "VLLM_PLUGINS": ",".join(dict.fromkeys([*plugins, PLUGIN])),
    }


def link_package(folder: Path) -> Path:
    """Let `folder` hold a link to this package and nothing else, and return it, for PYTHONPATH.

    A whole checkout there can hide the plug-in: metadata that an old build has left in it is found
    before that of the installed package, whose entry points vLLM then misses.
    """
    package = Path(__file__).resolve().parents[1]
    link = folder / package.name
    folder.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() != package:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(package, target_is_directory=True)
    return folder
