"""A real vLLM with a LoRA loaded: the loss through it is that of our own evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.evaluate import main as evaluate
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.local import DirectoryStore
from tests.jobs.llama_cpp.cases import commit_adapter, make_adapter
from tests.ranks import find_free_port
from tests.tiny import chat_rows, tiny_chat_model
from tests.waiting import wait_for

PYTHON = Path(__file__).parents[3] / ".cache/serving/venv/bin/python"
PATIENCE_S = 500.0
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM in .cache/serving/venv"),
]


@contextmanager
def serve_vllm(base: Path, adapter: Path, log: Path) -> Iterator[str]:
    """Serve a base as `base` and an adapter as `chat`, in float32."""
    port = find_free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base),
        "--served-model-name", "base", "--dtype", "float32", "--max-model-len", "128",
        "--enforce-eager", "--enable-lora", "--max-lora-rank", "8", "--host", "127.0.0.1",
        "--port", str(port), "--lora-modules", f"chat={adapter}",
    ]  # fmt: skip
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: _answers(url, server, log) or None, timeout_s=PATIENCE_S)
            yield url
        finally:
            # A server that is starting does not hear a polite end, and its workers have its group.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _answers(url: str, server: subprocess.Popen[bytes], log: Path) -> bool:
    assert server.poll() is None, log.read_text(errors="replace")[-3000:]
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def make_opinionated_base(folder: Path) -> Path:
    """Make a random model with heads that vLLM has kernels for, and logits that differ."""
    tiny_chat_model(folder, hidden_size=128, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder)
    return folder


def read_report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the JSON of the last line: DeepSpeed may log before it."""
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_the_loss_through_vllm_is_that_of_our_own_evaluation(tmp_path: Path, capsys):
    base = make_opinionated_base(tmp_path / "base")
    store = DirectoryStore(tmp_path / "store")
    commit_adapter(
        store, base, make_adapter(base, "lora", alpha=60.0), "chat", tmp_path / "folders"
    )
    adapter = pull(store, resolve_adapter(store, "chat"), tmp_path / "pulled")
    rows = chat_rows(tmp_path / "rows.jsonl", 12)
    words = ["--adapter", "chat", "--store", store.url(""), "--data", str(rows)]
    words += ["--max-length", "64", "--json"]
    assert evaluate(words) == 0
    own = read_report(capsys)
    with serve_vllm(base, adapter, tmp_path / "vllm.log") as url:
        assert evaluate([*words, "--endpoint", url]) == 0
        served = read_report(capsys)
        assert evaluate([*words, "--endpoint", url, "--served-as", "base"]) == 0
        bare = read_report(capsys)
    print(f"own {own['loss']:.6f}, vLLM {served['loss']:.6f}, the base alone {bare['loss']:.6f}")
    assert served["tokens"] == own["tokens"]
    assert served["loss"] == pytest.approx(own["loss"], abs=1e-2)
    assert abs(bare["loss"] - own["loss"]) > 0.1
