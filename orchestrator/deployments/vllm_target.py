"""A vLLM server with slora's plug-in: LoRA and sparse adapters under names that switch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.errors import TargetUnreachable
from orchestrator.deployments.http_target import HttpTarget
from orchestrator.deployments.server_http import ServerHttp
from orchestrator.deployments.serving_target import TargetState
from orchestrator.deployments.version_copies import make_copy, remove_copy

STATE_PATH = "/slora/state"

Label = Annotated[str, Field(max_length=512)]


class _LoadedAdapter(BaseModel):
    """A loaded version as the plug-in reports it. Keys of a newer one are ignored."""

    model_config = ConfigDict(frozen=True)

    form: Label


class _PluginState(BaseModel):
    """The state as the plug-in reports it."""

    model_config = ConfigDict(frozen=True)

    base_digest: Label | None = None
    forms: tuple[Label, ...]
    max_rank: int | None = None
    adapters: dict[Label, _LoadedAdapter]
    names: dict[Label, Label | None]
    problem: str | None = None


class VllmTarget(HttpTarget):
    """A server with the plug-in. `folder` is read by the server under the same path."""

    def __init__(self, http: ServerHttp, folder: Path) -> None:
        super().__init__(http)
        self._folder = folder

    def read_state(self) -> TargetState:
        """Return what the plug-in reports. Raise TargetUnreachable."""
        return self.parse_state(self._http.get(STATE_PATH))

    def parse_state(self, body: Any) -> TargetState:
        """Return the state in a response. Raise TargetUnreachable if it is something else."""
        try:
            state = _PluginState.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{STATE_PATH} is not the state of the plug-in ({where}: {first['msg']})"
            raise TargetUnreachable(self.endpoint, reason) from None
        if state.base_digest is None:
            raise TargetUnreachable(self.endpoint, "it has not read all of its base yet")
        return TargetState(
            base_digest=state.base_digest,
            forms=frozenset(state.forms),
            max_rank=state.max_rank,
            adapters={name: adapter.form for name, adapter in state.adapters.items()},
            names={name: version for name, version in state.names.items() if version is not None},
            problem=state.problem,
        )

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        """Pull the version into the shared folder, and let the server load it from there."""
        folder = make_copy(self._folder, name, store, manifest)
        body = {"name": name, "path": str(folder), "base_digest": manifest.base.digest}
        self._http.change("/slora/load", body)

    def set_name(self, name: str, version: str | None) -> None:
        """Switch a public name."""
        self._http.change("/slora/names", {"name": name, "to": version})

    def unload(self, name: str) -> None:
        """Unload a version, and delete its copy."""
        self._http.change("/slora/unload", {"name": name})
        remove_copy(self._folder, name)

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        """Return the log-probability of the tokens at these indices, by one request."""
        return self._http.score(model, tokens, targets)
