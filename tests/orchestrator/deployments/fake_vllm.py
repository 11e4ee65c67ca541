"""An HTTP server with the routes of vLLM and of the plug-in, whose models only name themselves.

It stands for the server in tests of the rollout and of clients; the plug-in itself is tested with a
real one.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from tests.orchestrator.deployments.builders import BASE, LOSS

API_KEY = "key-of-the-fake"


class FakeVllm:
    """The state of the server. A switch waits for requests in flight only where it is sparse."""

    def __init__(self, *, has_plugin: bool = True) -> None:
        self.has_plugin = has_plugin
        self.adapters: dict[str, dict[str, Any]] = {}
        self.names: dict[str, str] = {}
        self.broken = set[str]()
        """Versioned names whose loss is not that of their run."""
        self.requests = 0
        self.lock = threading.Lock()

    def make_app(self) -> FastAPI:
        app = FastAPI()
        app.middleware("http")(self._check_key)
        app.get("/v1/models")(self.list_models)
        app.post("/v1/completions")(self.complete)
        app.post("/v1/chat/completions")(self.complete)
        if self.has_plugin:
            app.get("/slora/state")(self.get_state)
            app.post("/slora/load")(self.load)
            app.post("/slora/names")(self.set_name)
            app.post("/slora/unload")(self.unload)
        else:
            app.post("/v1/load_lora_adapter")(self.load_stock)
            app.post("/v1/unload_lora_adapter")(self.unload_stock)
        return app

    async def _check_key(self, request: Request, call_next: Any) -> Response:
        self.requests += 1
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        response: Response = await call_next(request)
        return response

    def get_state(self) -> dict[str, Any]:
        with self.lock:
            return {
                "version": 1,
                "base_digest": BASE,
                "forms": ["lora", "sparse"],
                "max_rank": 16,
                "adapters": {
                    name: {"form": value["form"], "digest": value["digest"]}
                    for name, value in self.adapters.items()
                },
                "names": dict(self.names),
                "active_sparse": None,
            }

    def load(self, body: dict[str, str]) -> dict[str, str]:
        adapter = read_folder(Path(body["path"]))
        with self.lock:
            known = self.adapters.get(body["name"])
            if known is not None and known["digest"] != adapter["digest"]:
                raise HTTPException(409, f"{body['name']} is another adapter")
            self.adapters[body["name"]] = adapter
        return {}

    def set_name(self, body: dict[str, str | None]) -> dict[str, str]:
        name, version = str(body["name"]), body["to"]
        with self.lock:
            if version is None:
                self.names.pop(name, None)
            elif version not in self.adapters:
                raise HTTPException(404, f"{version} is not loaded. Load it first")
            else:
                self.names[name] = version
        return {}

    def unload(self, body: dict[str, str]) -> dict[str, str]:
        with self.lock:
            if body["name"] in self.names.values():
                raise HTTPException(409, f"{body['name']} answers. Move that name first")
            self.adapters.pop(body["name"], None)
        return {}

    def load_stock(self, body: dict[str, str]) -> Response:
        if body["lora_name"] in self.adapters:
            message = f"The lora adapter '{body['lora_name']}' has already been loaded."
            return JSONResponse({"error": {"message": message, "code": 400}}, 400)
        self.adapters[body["lora_name"]] = read_folder(Path(body["lora_path"]))
        return Response("Success: it was added.")

    def unload_stock(self, body: dict[str, str]) -> Response:
        if self.adapters.pop(body["lora_name"], None) is None:
            return JSONResponse({"error": {"message": "it cannot be found", "code": 404}}, 404)
        return Response("Success: it was removed.")

    def list_models(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [{"id": "base", "root": "/models/base", "parent": None}]
        with self.lock:
            rows += [{"id": name, "parent": "base"} for name in self.adapters]
        return {"object": "list", "data": rows}

    def complete(self, body: dict[str, Any]) -> Any:
        model = str(body["model"])
        with self.lock:
            version = self.names.get(model, model)
            adapter = self.adapters.get(version)
        if adapter is None and version != "base":
            message = f"The model `{model}` does not exist."
            return JSONResponse({"error": {"message": message, "code": 404}}, 404)
        choice: dict[str, Any] = {"text": f"I am {version}"}
        choice["message"] = {"role": "assistant", "content": choice["text"]}
        loss = LOSS if adapter is None else adapter["loss"]
        loss += version in self.broken
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": [-loss]}
        if body.get("prompt_logprobs") is not None:
            scores = [{str(token): {"logprob": -loss}} for token in body["prompt"]]
            choice["prompt_logprobs"] = [None, *scores[1:]]
        return {"model": model, "choices": [choice]}

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve on a free port, and yield the URL."""
        config = uvicorn.Config(self.make_app(), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(64)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join(20)


def read_folder(folder: Path) -> dict[str, Any]:
    """Read a folder that a target copied, as the real server does before it takes it."""
    for form, name in (("lora", "adapter"), ("sparse", "sparse")):
        config = folder / f"{name}_config.json"
        if config.is_file() and (folder / f"{name}_model.safetensors").is_file():
            loss = json.loads(config.read_text()).get("loss", LOSS)
            return {"form": form, "digest": f"{loss}", "loss": loss}
    raise HTTPException(400, f"{folder} on the server's machine is not an adapter's folder")
