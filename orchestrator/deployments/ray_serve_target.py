"""Ray Serve LLM: versions are folders below its `dynamic_lora_loading_path`.

Its replicas read `<path>/<name>/adapter_config.json` at the first request for `<base>:<name>`, and
keep what they read. A name that switched would be answered by both versions for a while, so that
clients ask for the versioned name, which the record of the deployment tells.
"""

from __future__ import annotations

import hashlib

from jobs.errors import DigestMismatch
from jobs.store.adapters.manifest import AdapterFile, Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.errors import TargetRefused, TargetUnreachable
from orchestrator.deployments.http_target import HttpTarget
from orchestrator.deployments.servable_forms import PEFT_CONFIG
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import TargetState
from orchestrator.deployments.stock_vllm import LORA_FORMS


class RayServeTarget(HttpTarget):
    """An application of Ray Serve LLM, and the store that it reads adapters from."""

    def __init__(
        self, http: ServerHttp, adapters: ObjectStore, model: str, base_digest: str | None
    ) -> None:
        super().__init__(http)
        self._adapters, self._model, self._base_digest = adapters, model, base_digest

    def read_state(self) -> TargetState:
        """Return the versions below the loading path. Raise TargetUnreachable or StoreError."""
        models = self._http.get("/v1/models").get("data")
        ids = [row.get("id") for row in models if isinstance(row, dict)] if models else []
        if self._model not in ids:
            reason = f"it serves no model {self._model!a}"
            raise TargetUnreachable(self.endpoint, reason)
        return TargetState(
            base_digest=self._base_digest,
            forms=LORA_FORMS,
            max_rank=None,
            adapters=dict.fromkeys(self._list_folders(), "lora"),
            model_prefix=f"{self._model}:",
        )

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        """Copy the version's files below the path, adapter_config.json last: it is looked for."""
        for file in sorted(manifest.files, key=lambda file: file.name == PEFT_CONFIG):
            data = store.get(manifest.prefix + file.name)
            _check_digest(store, manifest, file, data)
            self._adapters.put(f"{name}/{file.name}", data)

    def set_name(self, name: str, version: str | None) -> None:
        """Raise TargetRefused: the server has no public names."""
        raise TargetRefused(self.endpoint, "Ray Serve has no names that switch")

    def unload(self, name: str) -> None:
        """Delete the version's files, adapter_config.json first. Replicas forget it in time."""
        keys = sorted(self._adapters.list(f"{name}/"), key=lambda key: PEFT_CONFIG not in key)
        for key in keys:
            self._adapters.delete(key)

    def _list_folders(self) -> list[str]:
        keys = (key for key in self._adapters.list("") if key.endswith(f"/{PEFT_CONFIG}"))
        return [key.removesuffix(f"/{PEFT_CONFIG}") for key in keys]


def _check_digest(store: ObjectStore, manifest: Manifest, file: AdapterFile, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise DigestMismatch(store.url(manifest.prefix + file.name), file.sha256, digest)
