"""`slora serve-model`: answer with a base model and adapters of the store, on this machine."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Fault, InputError
from jobs.inspect.model_folder import find_model_folder
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.adapters.pull import pull
from jobs.store.open import open_store
from orchestrator.cli.commands.serving.model_server import (
    ModelServer,
    find_vllm_python,
    interrupt_on_sigterm,
)
from orchestrator.cli.console import CommandGroup, note
from orchestrator.cli.options import DEFAULT_STORE, Store
from slora.serving.launch import ServerOptions

app = typer.Typer(cls=CommandGroup)
DEFAULT_PORT = 8330

Model = Annotated[
    str | None,
    typer.Argument(help="Folder or hub id of the base. Default: the base of the first adapter."),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapters", metavar="NAME[@vN]", help="Adapter of the store to load; may be repeated."
    ),
]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
Host = Annotated[str, typer.Option(help="Address to listen on; set VLLM_API_KEY beyond loopback.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights: auto, float32, bfloat16, float16.")]
MaxRank = Annotated[int, typer.Option(help="Largest rank of a LoRA.", min=1, max=512)]


@app.command("serve-model")
def serve_model(
    model: Model = None,
    adapters: Adapters = None,
    port: Port = DEFAULT_PORT,
    host: Host = "127.0.0.1",
    dtype: Dtype = "auto",
    max_lora_rank: MaxRank = 64,
    store: Store = DEFAULT_STORE,
) -> None:
    """Answer with a base model and adapters through vLLM on this machine; Ctrl-C stops it."""
    python = find_vllm_python()
    object_store = open_store(store)
    manifests = [resolve_adapter(object_store, name) for name in adapters or []]
    options = ServerOptions(
        _find_model(model, manifests),
        port,
        host=host,
        dtype=dtype,
        max_rank=max_lora_rank,
        # The environment beside this one is that for CPUs.
        eager=python != Path(sys.executable),
    )
    with tempfile.TemporaryDirectory(prefix="slora-served-") as scratch, interrupt_on_sigterm():
        folders = [
            pull(object_store, manifest, Path(scratch) / manifest.label) for manifest in manifests
        ]
        server = ModelServer(options, python, Path(scratch))
        try:
            server.wait_until_ready()
            for manifest, folder in zip(manifests, folders, strict=True):
                server.add_adapter(manifest.name, manifest.label, folder)
                note(f"{manifest.name} answers with {manifest.label}")
            note(f"Serving {options.model} as {options.served_as} at {server.url}/v1")
            raise typer.Exit(server.wait())
        except KeyboardInterrupt:
            note("Stopping the server")
        finally:
            server.stop()


def _find_model(model: str | None, manifests: list[Manifest]) -> str:
    """Return the base's folder, or its hub id if this machine does not have it yet."""
    if model is None and not manifests:
        problem = "neither a model nor an adapter is named"
        raise InputError([Fault("MODEL", problem, "Name a folder, a hub id, or --adapters NAME.")])
    path = model or manifests[0].base.path
    folder = find_model_folder(path, None if model else manifests[0].base.revision)
    return path if folder is None else str(folder)
