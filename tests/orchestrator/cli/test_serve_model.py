"""`slora serve-model` and the server's command line, without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import NotInstalled
from orchestrator.cli.commands.serving import model_server
from orchestrator.cli.commands.serving.model_server import find_vllm_python, make_server_environment
from slora.serving.launch import ServerOptions, build_command, build_environment


def test_a_server_has_loras_sparse_workers_and_the_plug_in():
    command = build_command("python", ServerOptions("model", 1234, max_rank=32))
    assert command[:3] == ("python", "-m", "vllm.entrypoints.launchers.api_server.entry")
    assert "--max-lora-rank=32" in command and "--port=1234" in command
    assert "--worker-extension-cls=slora.serving.worker_extension.SparseWeightWorker" in command


def test_the_plug_in_is_added_to_those_of_the_environment():
    assert build_environment({})["VLLM_PLUGINS"] == "slora"
    assert build_environment({"VLLM_PLUGINS": "other,slora"})["VLLM_PLUGINS"] == "other,slora"
    assert build_environment({"VLLM_PLUGINS": "other"})["VLLM_PLUGINS"] == "other,slora"
    assert build_environment({"VLLM_CPU_KVCACHE_SPACE": "9"})["VLLM_CPU_KVCACHE_SPACE"] == "9"
    # The packages of this environment are not those of the server's.
    assert make_server_environment({"PYTHONPATH": "/site"})["PYTHONPATH"] != "/site"


def test_without_vllm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_server, "CHECKOUT", tmp_path)
    with pytest.raises(NotInstalled, match=r"\[serve\]"):
        find_vllm_python()
