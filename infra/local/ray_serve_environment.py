"""`python -m infra.local.ray_serve_environment`: Ray Serve LLM on CPUs, over that of vLLM.

The `ray[llm]` of this release of Ray pins vLLM 0.29 for GPUs and brings CUDA. So only `ray[serve]`
and what Ray Serve LLM imports besides is installed, in an environment of its own, which finds vLLM
0.32 and torch in the other one: 570 MB and a minute. That pair runs, but for Ray's KV-aware router,
which imports a module that vLLM 0.32 has moved (`vllm.entrypoints.chat_utils`).
"""

from __future__ import annotations

import sys
from pathlib import Path

from infra.local.paths import ROOT
from infra.local.pip_environment import (
    EnvironmentNotMade,
    has_package,
    install_packages,
    lock_folder,
    run_step,
)
from infra.local.serving_environment import (
    FOLDER,
    find_serving_python,
    make_serving_environment,
)

RAY_SERVE_FOLDER = ROOT / ".cache/ray-serve"
RAY = "2.60.0"
READERS = ("pyarrow", "boto3")
"""Ray's readers of buckets import pyarrow, and boto3 for those of S3."""
LINK = "serving.pth"
"""File that lets the environment find the packages of the other one."""


def make_ray_serve_environment(folder: Path = RAY_SERVE_FOLDER, below: Path = FOLDER) -> Path:
    """Return the Python of the environment in `folder`; build what is missing, and first the one of
    vLLM in `below`.

    Raise EnvironmentNotMade.
    """
    serving, python = make_serving_environment(below), find_serving_python(folder)
    with lock_folder(folder):
        if not python.exists():
            step = "making the environment of Ray Serve"
            run_step(str(serving), "-m", "venv", str(folder / "venv"), step=step)
        _link_packages(python, serving)
        if not has_package(python, "ray", RAY):
            install_packages(python, *READERS, step="installing what reads buckets")
            # The last one that pip installs is ray itself: without it all this is repeated.
            step = f"installing Ray Serve {RAY} (1 minute)"
            install_packages(python, f"ray[serve]=={RAY}", step=step)
    return python


def _link_packages(python: Path, other: Path) -> None:
    """Let an environment find the packages of another one of the same Python, after its own."""
    [own], [packages] = (list(path.parents[1].glob("lib/python*/site-packages"))
                         for path in (python, other))  # fmt: skip
    (own / LINK).write_text(f"{packages}\n")


def main() -> int:
    """Print the Python of the environment. Exit with 3 if it can't be made."""
    try:
        print(make_ray_serve_environment())
    except EnvironmentNotMade as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
