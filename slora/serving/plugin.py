"""The entry points by which vLLM finds us. Both do nothing unless VLLM_PLUGINS names `slora`."""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from slora.serving.adapter_folder import Form
from slora.serving.adapter_server import AdapterServer, ServerLimits
from slora.serving.cpu_logits import skip_lora_logits
from slora.serving.cpu_weights import keep_cpu_weights
from slora.serving.launch import PLUGIN, WORKER_EXTENSION
from slora.serving.request_gate import GateMiddleware, RequestGate
from slora.serving.routes import add_routes
from slora.serving.vllm_engine import VllmEngine, list_models


def prepare_process() -> None:
    """Prepare a process of vLLM: on CPUs, keep the weights where patches reach them."""
    from vllm import envs

    if PLUGIN in (envs.VLLM_PLUGINS or ()):
        keep_cpu_weights()
        skip_lora_logits()


class AdapterRoutes:
    """vLLM's endpoint plug-in: the routes of an adapter server, and the gate before answers."""

    name = PLUGIN
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._gate = RequestGate()
        self._server: AdapterServer | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; vLLM calls it once."""
        args = app.state.args

        def find_server() -> AdapterServer:
            assert self._server is not None, "vLLM calls init_state before it serves"
            return self._server

        @app.get("/v1/models")
        async def show_models(request: Request) -> JSONResponse:
            cards = await list_models(request.app.state.openai_serving_models)
            return JSONResponse({"object": "list", "data": cards})

        add_routes(app, find_server, _make_key_check(args))
        app.add_middleware(GateMiddleware, gate=self._gate)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Make the adapter server; vLLM calls it once, before it serves."""
        if getattr(args, "api_server_count", None) not in (None, 1):
            raise ValueError(
                f"--api-server-count {args.api_server_count} is not possible with the plug-in "
                f"{PLUGIN}: names and the gate live in one process. Use 1."
            )
        config = engine_client.vllm_config
        lora, model = config.lora_config, config.model_config
        models = state.openai_serving_models
        self._scratch = tempfile.TemporaryDirectory(prefix="slora-serving-")
        self._server = AdapterServer(
            VllmEngine(engine_client, models),
            self._gate,
            base=_find_folder(model.model, model.revision),
            scratch=Path(self._scratch.name),
            limits=ServerLimits(
                forms=_list_forms(config),
                max_rank=0 if lora is None else int(lora.max_lora_rank),
                dtype=model.dtype,
                base_names=tuple(path.name for path in models.base_model_paths),
            ),
        )


def _list_forms(config: Any) -> tuple[Form, ...]:
    """Return what the server can hold. Sparse adapters need workers that patch, weights that are
    not quantized, and that nobody else loads LoRAs, which would answer over patched weights.
    """
    from vllm import envs

    forms: list[Form] = [] if config.lora_config is None else ["lora"]
    has_workers = config.parallel_config.worker_extension_cls == WORKER_EXTENSION
    is_ours_alone = not envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING
    if has_workers and is_ours_alone and config.model_config.quantization is None:
        forms.append("sparse")
    return tuple(forms)


def _find_folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _make_key_check(args: Namespace) -> Any:
    """Return whether headers have the key of --api-key or VLLM_API_KEY, if there is one."""
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    keys = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if not keys:
        return lambda headers: True

    async def answer_nothing(scope: Any, receive: Any, send: Any) -> None:
        """Stand behind the check, which is all that is used of the middleware."""

    guard = AuthenticationMiddleware(answer_nothing, tokens=keys)

    def has_key(headers: Mapping[str, str]) -> bool:
        return bool(guard.verify_token(headers))

    return has_key
