"""Which version answers under a public name, and what a change of a name asks of the server.

Decisions only: the controller acts on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from slora.serving.adapter_folder import Form
from slora.serving.refusals import ServingRefused


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that the server holds under its versioned name."""

    form: Form
    digest: str


@dataclass(frozen=True)
class ServedNames:
    """What the server holds: `names` are public ones; a sparse adapter is active if it is in the
    weights.
    """

    adapters: Mapping[str, LoadedAdapter] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    active_sparse: str | None = None

    def with_adapter(self, name: str, adapter: LoadedAdapter) -> ServedNames:
        """Return the state with another adapter."""
        return replace(self, adapters={**self.adapters, name: adapter})

    def without_adapter(self, name: str) -> ServedNames:
        """Return the state without an adapter. Raise ServingRefused while it is in use."""
        users = sorted(public for public, version in self.names.items() if version == name)
        if users:
            raise ServingRefused(409, f"{name} answers as {users[0]}. Move that name first")
        if self.active_sparse == name:
            raise ServingRefused(409, f"{name} is in the weights. Move its name away first")
        return replace(
            self, adapters={key: value for key, value in self.adapters.items() if key != name}
        )


def plan_name(state: ServedNames, name: str, version: str | None) -> ServedNames:
    """Return the state in which `name` answers with `version`, or with nothing.

    If its active sparse adapter differs, the weights have to be swapped. Raise ServingRefused: all
    names answer from the same weights, so one sparse adapter at a time answers, and no LoRA beside
    it.
    """
    if version is not None and version not in state.adapters:
        raise ServingRefused(404, f"{version} is not loaded. Load it first")
    if name in state.adapters:
        raise ServingRefused(409, f"{name} is the name of a loaded version, not a public one")
    names = {public: target for public, target in state.names.items() if public != name}
    others = set(names.values())
    if version is not None:
        names[name] = version
    used = set(names.values())
    sparse = sorted(target for target in used if state.adapters[target].form == "sparse")
    if sparse and len(used) > 1:
        other = min(others - {version}) if others - {version} else sparse[0]
        raise ServingRefused(
            409,
            f"{other} answers too, and a sparse adapter changes the weights that all names answer "
            "from. Move the other names away first",
        )
    return replace(state, names=names, active_sparse=sparse[0] if sparse else None)
