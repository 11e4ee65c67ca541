"""`make up ARGS=--serving` with the real components, on a random Llama: train, promote, answer."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.paths import StackPaths
from infra.local.serving_environment import find_serving_python
from tests.infra.local_stack import RunningStack
from tests.orchestrator.deployments.steady_client import SteadyClient
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec
from tests.vllm_server import MAKE_IT

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.storage,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not find_serving_python().exists(), reason=f"no vLLM here: {MAKE_IT}"),
]
LOSS_ERROR = 0.01
"""In float32 the loss through the server is the run's."""
MAX_FOLLOWING_S = 600.0


class ServingStack(RunningStack):
    """A stack whose server answers to the adapter chat of a tiny model."""

    @property
    def folder(self) -> Path:
        return self.paths.folder.parent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.state.ports['serving']}"

    @property
    def key(self) -> str:
        return self.paths.serving_key.read_text().strip()

    def read_state(self) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.get(f"{self.url}/slora/state", headers=headers, timeout=60)

    def ask(self, *arguments: str, timeout: float = 300) -> str:
        """Run the command line through the service, which has to accept it."""
        service = self.environment["SLORA_SERVICE"]
        result = self.run_slora(*arguments, "--service", service, timeout=timeout)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def train(self, seed: int) -> None:
        self.ask(
            "submit", str(self.folder / "spec.yaml"), "--follow", "--set", f"train.seed={seed}",
            timeout=900,
        )  # fmt: skip

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.ask("deployments", "show", "chat", "--json"))
        return shown

    def wait_for(self, version: int) -> dict[str, Any]:
        """Return the deployment once the service made it answer with the version."""
        end = time.monotonic() + MAX_FOLLOWING_S
        while (shown := self.show())["live"] != version:
            assert time.monotonic() < end and shown["status"] != "declined", shown
        return shown


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingStack]:
    folder = tmp_path_factory.mktemp("served")
    # Heads of 64: vLLM has no attention for smaller ones on CPUs.
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = tiny_chat_model(folder / "model", **sizes)
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 9)
    spec = tiny_spec(folder, name="chat", data={"eval": str(folder / "eval.jsonl")})
    write_spec(folder / "spec.yaml", {key: spec[key] for key in spec if key != "store"})
    running = ServingStack(StackPaths(folder / "up"))
    try:
        result = running.run_up("--serving", str(model))
        assert result.returncode == 0, result.stderr
        assert running.url in result.stdout and running.key not in result.stdout
        yield running
    finally:
        processes = running.list_processes()
        stopped = running.run_down().stdout.strip()
    assert processes and running.list_processes() == set()
    assert stopped == "stopped serving, service, ray, storage"


def test_a_model_server_starts_beside_the_service(stack: ServingStack):
    assert httpx.get(f"{stack.url}/slora/state", timeout=60).status_code == 401
    assert stack.read_state().json()["forms"] == ["lora", "sparse"]
    # Without the option a second call leaves the server as it is.
    assert stack.run_up().returncode == 0
    assert httpx.get(f"{stack.url}/health", timeout=60).status_code == 200


def test_what_is_trained_and_promoted_answers_until_it_is_rolled_back(stack: ServingStack):
    stack.train(seed=1)
    stack.ask("adapters", "promote", "chat@v1")
    stack.ask("deploy", "chat", "--to", "local", timeout=900)
    live = stack.wait_for(1)
    assert stack.read_state().json()["names"] == {"chat": "chat@v1"}
    figures = read_figures(live)
    assert abs(figures["loss"] - figures["run_loss"]) < LOSS_ERROR, figures
    with SteadyClient(stack.url, key=stack.key).run() as client:
        client.wait_for_answer()
        stack.train(seed=2)
        stack.ask("adapters", "promote", "chat@v2")
        stack.wait_for(2)
        assert stack.read_state().json()["names"] == {"chat": "chat@v2"}
        os.kill(stack.state.components["service"].pid, signal.SIGKILL)
        client.wait_for_answer()
        assert stack.run_up().returncode == 0
        assert stack.show()["live"] == 2
        stack.ask("deployments", "rollback", "chat")
        assert stack.read_state().json()["names"] == {"chat": "chat@v1"}
        client.wait_for_answer()
    assert client.answers and client.failures == []


def read_figures(shown: dict[str, Any]) -> dict[str, float]:
    """Return what the canary measured, from the entry of the last version that went live."""
    detail = next(
        entry["detail"] for entry in reversed(shown["history"]) if entry["event"] == "live"
    )
    pairs = (part.rsplit(" ", 1) for part in detail.split(", "))
    return {name: float(value) for name, value in pairs}
