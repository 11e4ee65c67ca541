"""A stock vLLM server: LoRA only, and each version under its own name.

It has no name that switches without failed requests: `load_inplace` changes the weights of requests
in flight, and between an unload and a load of the same name requests get 404. Clients therefore ask
for the versioned name, which the record of the deployment tells.
"""

from __future__ import annotations

from pathlib import Path

from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.errors import TargetRefused
from orchestrator.deployments.http_target import HttpTarget
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import TargetState
from orchestrator.deployments.version_copies import make_copy, remove_copy

LORA_FORMS = frozenset({"lora"})
NOT_FOUND = "runtime LoRA loading is off: start the server with --enable-lora and "
NOT_FOUND += "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"


class StockVllmTarget(HttpTarget):
    """A vLLM server without the plug-in. `folder` is read by the server under the same path."""

    def __init__(self, http: ServerHttp, folder: Path, base_digest: str | None) -> None:
        super().__init__(http)
        self._folder, self._base_digest = folder, base_digest

    def read_state(self) -> TargetState:
        """Return the adapters among the models of the server. Raise TargetUnreachable."""
        return TargetState(
            base_digest=self._base_digest,
            forms=LORA_FORMS,
            max_rank=None,
            adapters=dict.fromkeys(self._list_adapters(), "lora"),
        )

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        """Pull the version into the shared folder, and let the server load it from there."""
        if name in self._list_adapters():
            return
        folder = make_copy(self._folder, name, store, manifest)
        self._change("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def set_name(self, name: str, version: str | None) -> None:
        """Raise TargetRefused: the server has no public names."""
        reason = "it has no names that switch: install slora in the server's environment"
        raise TargetRefused(self.endpoint, reason)

    def unload(self, name: str) -> None:
        """Unload a version, and delete its copy."""
        if name in self._list_adapters():
            self._change("/v1/unload_lora_adapter", {"lora_name": name})
        remove_copy(self._folder, name)

    def _list_adapters(self) -> list[str]:
        models = self._http.get("/v1/models").get("data")
        rows = [row for row in models if isinstance(row, dict)] if isinstance(models, list) else []
        return [str(row.get("id")) for row in rows if row.get("parent")]

    def _change(self, path: str, body: dict[str, str]) -> None:
        try:
            self._http.change(path, body)
        except TargetRefused as refusal:
            if refusal.reason == "Not Found":
                raise TargetRefused(self.endpoint, NOT_FOUND) from refusal
            raise
