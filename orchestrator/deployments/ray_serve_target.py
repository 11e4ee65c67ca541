"""Ray Serve LLM: versions are folders below its `dynamic_lora_loading_path`.

A replica reads `<path>/<name>/adapter_config.json` at its first request for `<base>:<name>`,
fetches the folder, and keeps what it read: it looks at no name twice, and answers on after the
folder is gone. So a name is never used for other weights, and clients ask for the versioned name,
which the record of the deployment tells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from jobs.errors import NotInStore
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.pull import pull
from jobs.store.base import ObjectStore
from orchestrator.deployments.errors import TargetRefused, TargetUnreachable, VersionNotSeen
from orchestrator.deployments.http_target import HttpTarget
from orchestrator.deployments.servable_forms import PEFT_CONFIG
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import Answer, Prompt, TargetState
from orchestrator.deployments.stock_vllm import LORA_FORMS

ABSENT = "Unable to find LoRA adapter config file"
"""How a replica says that it found no folder; ray/llm/_internal/serve/utils/lora_serve_utils.py."""
DIGEST = ".sha256"
"""Of the object beside a folder that tells which weights its name stands for."""


class RayServeTarget(HttpTarget):
    """An application of Ray Serve LLM, and the store that it reads adapters from."""

    def __init__(
        self, http: ServerHttp, adapters: ObjectStore, model: str, base_digest: str | None
    ) -> None:
        super().__init__(http)
        self._adapters, self._model, self._base_digest = adapters, model, base_digest

    def read_state(self) -> TargetState:
        """Return the versions below the loading path. Raise TargetUnreachable or StoreError."""
        if not self._serves_model():
            raise TargetUnreachable(self.endpoint, f"it serves no model {self._model!a}")
        return TargetState(
            base_digest=self._base_digest,
            forms=LORA_FORMS,
            max_rank=None,
            adapters=dict.fromkeys(self._list_folders(), "lora"),
            model_prefix=f"{self._model}:",
        )

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        """Copy the version's verified files below the path, adapter_config.json last: it is what
        replicas look for. Raise TargetRefused if the name stood for other weights.
        """
        self._claim_name(name, manifest)
        if self._adapters.head(f"{name}/{PEFT_CONFIG}") is not None:
            return
        with tempfile.TemporaryDirectory(prefix="slora-deploy-") as scratch:
            folder = pull(store, manifest, Path(scratch) / "copy")
            for file in sorted(manifest.files, key=lambda file: file.name == PEFT_CONFIG):
                self._adapters.put_file(f"{name}/{file.name}", folder / file.name)

    def set_name(self, name: str, version: str | None) -> None:
        """Raise TargetRefused: the server has no public names."""
        raise TargetRefused(self.endpoint, "Ray Serve has no names that switch")

    def unload(self, name: str) -> None:
        """Delete the version's files, adapter_config.json first. Replicas keep what they read."""
        keys = sorted(self._adapters.list(f"{name}/"), key=lambda key: PEFT_CONFIG not in key)
        for key in keys:
            self._adapters.delete(key)

    def ask(self, model: str, prompt: Prompt, *, max_tokens: int, is_chat: bool = False) -> Answer:
        """Return the greedy answer to a prompt. Raise VersionNotSeen, too."""
        with self._notice_absence(model):
            return super().ask(model, prompt, max_tokens=max_tokens, is_chat=is_chat)

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the log-probability of the tokens at these indices. Raise VersionNotSeen, too."""
        with self._notice_absence(model):
            return super().score(model, tokens, targets)

    @contextmanager
    def _notice_absence(self, model: str) -> Iterator[None]:
        """Raise VersionNotSeen for a refusal that says nothing about the version."""
        try:
            yield
        except TargetRefused as refusal:
            if ABSENT in refusal.reason:
                raise VersionNotSeen(self.endpoint, model) from refusal
            raise

    def _claim_name(self, name: str, manifest: Manifest) -> None:
        """Write down which weights a name stands for. Raise TargetRefused if others had it."""
        files = sorted((file.name, file.sha256) for file in manifest.files)
        digest = sha256(repr(files).encode()).hexdigest().encode()
        key = f"{name}{DIGEST}"
        try:
            known = self._adapters.read(key, 0, len(digest) + 1)
        except NotInStore:
            # One rollout at a time acts on a name. A conditional write would probe the store, in
            # a folder that Ray takes for an adapter.
            self._adapters.put(key, digest)
            return
        if known != digest:
            reason = (
                f"{name} stood for another adapter, which its replicas may still hold. Deploy "
                "under another name with --as, or restart the application and delete "
                f"{self._adapters.url(key)}"
            )
            raise TargetRefused(self.endpoint, reason)

    def _serves_model(self) -> bool:
        """Return whether the application has the base."""
        # The list of all models reads a file of each adapter.
        if self._http.send("GET", f"/v1/models/{quote(self._model)}").status == 200:
            return True
        # An id with two hyphens is found in the list alone: Ray takes them for a slash.
        models = self._http.get("/v1/models").get("data")
        rows = [row for row in models if isinstance(row, dict)] if isinstance(models, list) else []
        return self._model in [row.get("id") for row in rows]

    def _list_folders(self) -> list[str]:
        keys = (key for key in self._adapters.list("") if key.endswith(f"/{PEFT_CONFIG}"))
        return [key.removesuffix(f"/{PEFT_CONFIG}") for key in keys]
