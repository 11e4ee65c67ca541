"""A server in memory that keeps the contract of real ones, and fails as a test tells it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from orchestrator.deployments.errors import TargetRefused, TargetUnreachable
from orchestrator.deployments.servable_forms import get_served_form
from orchestrator.deployments.serving_target import Answer, Prompt, TargetState
from tests.orchestrator.deployments.builders import BASE

FORMS = frozenset({"lora", "sparse"})


class FakeTarget:
    """A server whose answers name the version, and whose losses are those of the adapters."""

    endpoint = "local"

    def __init__(self, *, forms: frozenset[str] = FORMS, has_names: bool = True) -> None:
        self.forms, self.has_names = forms, has_names
        self.adapters: dict[str, tuple[str, float]] = {}
        """Form and loss by versioned name."""
        self.names: dict[str, str] = {}
        self.is_down = False
        self.problem: str | None = None
        """Why all requests are refused; a switch that succeeds ends it."""
        self.refuses: Callable[[str, str], str | None] = lambda method, name: None
        """Returns why a method refuses a name, if it does."""
        self.served_loss: dict[str, float] = {}
        """Losses that differ from those of the runs, by versioned name."""
        self.texts: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.calls: list[str] = []
        self.answering: list[str | None] = []
        """What the public name chat answered with after each change."""

    def restart(self) -> None:
        """Lose everything, as a server does that is started again."""
        self.adapters, self.names = {}, {}

    def read_state(self) -> TargetState:
        self._check("read_state", "")
        return TargetState(
            base_digest=BASE,
            forms=self.forms,
            max_rank=16,
            adapters={name: form for name, (form, _) in self.adapters.items()},
            names=dict(self.names) if self.has_names else None,
            problem=self.problem,
        )

    def load(self, name: str, store: ObjectStore, manifest: Manifest) -> None:
        self._check("load", name)
        form = get_served_form(manifest)
        config = manifest.prefix + ("adapter" if form == "lora" else "sparse") + "_config.json"
        self.adapters[name] = (form, float(json.loads(store.get(config))["loss"]))

    def set_name(self, name: str, version: str | None) -> None:
        self._check("set_name", version or "")
        self.problem = None
        if version is None:
            self.names.pop(name, None)
        elif version not in self.adapters:
            raise TargetRefused(self.endpoint, f"{version} is not loaded")
        else:
            self.names[name] = version
        self.answering.append(self.names.get("chat"))

    def unload(self, name: str) -> None:
        self._check("unload", name)
        if name in self.names.values():
            raise TargetRefused(self.endpoint, f"a public name answers with {name}")
        self.adapters.pop(name, None)

    def ask(self, model: str, prompt: Prompt, *, max_tokens: int, is_chat: bool = False) -> Answer:
        version = self._find(model)
        return Answer(self.texts.get(version, f"I am {version}"), self.seconds.get(version, 0.1))

    def score(self, model: str, tokens: Sequence[int], targets: Sequence[int]) -> list[float]:
        version = self._find(model)
        loss = self.served_loss.get(version, self.adapters[version][1])
        return [-loss for _ in targets]

    def close(self) -> None:
        pass

    def _find(self, model: str) -> str:
        """Return the version behind a model. While a sparse one is active, only that answers."""
        version = self.names.get(model, model)
        self._check("ask", version)
        if version not in self.adapters:
            raise TargetRefused(self.endpoint, f"there is no model {model}")
        is_sparse = any(self.adapters[name][0] == "sparse" for name in self.names.values())
        if (is_sparse or self.adapters[version][0] == "sparse") and (
            version not in self.names.values()
        ):
            raise TargetRefused(self.endpoint, f"{version} is not active")
        return version

    def _check(self, method: str, name: str) -> None:
        self.calls.append(f"{method} {name}".strip())
        if self.is_down:
            raise TargetUnreachable(self.endpoint, "no connection")
        if reason := self.refuses(method, name):
            raise TargetRefused(self.endpoint, reason)
