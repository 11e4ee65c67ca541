"""`slora serve-model` and the server's command line, without vLLM."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest

from jobs.errors import NotInstalled
from orchestrator.cli.commands.serving import model_server
from orchestrator.cli.commands.serving.model_server import find_vllm_python, make_server_environment
from slora.serving.launch import ServerOptions, build_command, build_environment, link_package


def test_a_server_has_loras_sparse_workers_and_the_plug_in():
    command = build_command("python", ServerOptions("model", 1234, max_rank=32))
    assert command[:4] == ("python", "-P", "-m", "vllm.entrypoints.launchers.api_server.entry")
    assert "--max-lora-rank=32" in command and "--port=1234" in command
    assert "--worker-extension-cls=slora.serving.worker_extension.SparseWeightWorker" in command


def test_the_plug_in_is_added_to_those_of_the_environment(tmp_path: Path):
    assert build_environment({})["VLLM_PLUGINS"] == "slora"
    assert build_environment({"VLLM_PLUGINS": "other,slora"})["VLLM_PLUGINS"] == "other,slora"
    assert build_environment({"VLLM_PLUGINS": "other"})["VLLM_PLUGINS"] == "other,slora"
    assert build_environment({"VLLM_CPU_KVCACHE_SPACE": "9"})["VLLM_CPU_KVCACHE_SPACE"] == "9"
    # The packages of this environment are not those of the server's.
    variables = make_server_environment(tmp_path, {"PYTHONPATH": "/site"})
    assert variables["PYTHONPATH"] == str(tmp_path / "code")


def test_without_vllm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_server, "CHECKOUT", tmp_path)
    with pytest.raises(NotInstalled, match=r"\[serve\]"):
        find_vllm_python()


def test_a_server_finds_this_package_in_a_folder_without_metadata(tmp_path: Path):
    folder = link_package(tmp_path / "code")
    assert [path.name for path in link_package(folder).iterdir()] == ["slora"]
    assert (folder / "slora/serving/plugin.py").is_file()
    # The link of a checkout that was moved.
    (folder / "slora").unlink()
    (folder / "slora").symlink_to(tmp_path / "gone")
    assert (link_package(folder) / "slora/serving/plugin.py").is_file()
    # What an old build leaves in a checkout would hide the plug-in.
    assert not list(distributions(path=[str(folder)]))
