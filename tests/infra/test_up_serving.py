"""`make up ARGS=--serving` with the real components, on a random Llama."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from infra.local.paths import StackPaths
from infra.local.serving_environment import find_serving_python
from tests.infra.local_stack import RunningStack
from tests.tiny import tiny_chat_model
from tests.vllm_server import MAKE_IT

pytestmark = [
    pytest.mark.long,
    pytest.mark.ray,
    pytest.mark.storage,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not find_serving_python().exists(), reason=f"no vLLM here: {MAKE_IT}"),
]


def test_a_model_server_starts_beside_the_service_and_stops_with_it(tmp_path: Path):
    stack = RunningStack(StackPaths(tmp_path / "up"))
    model = tiny_chat_model(tmp_path / "model", hidden_size=128, intermediate_size=256)
    try:
        result = stack.run_up("--serving", str(model))
        assert result.returncode == 0, result.stderr
        url = f"http://127.0.0.1:{stack.state.ports['serving']}"
        key = stack.paths.serving_key.read_text().strip()
        assert url in result.stdout and key not in result.stdout
        assert httpx.get(f"{url}/slora/state", timeout=60).status_code == 401
        state = httpx.get(
            f"{url}/slora/state", headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        assert state.json()["forms"] == ["lora", "sparse"]
        # Without the option a second call leaves the server as it is.
        assert stack.run_up().returncode == 0
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    finally:
        running = stack.list_processes()
        stopped = stack.run_down().stdout.strip()
    assert running and stack.list_processes() == set()
    assert stopped == "stopped serving, service, ray, storage"
