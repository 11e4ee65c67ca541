"""A real application of Ray Serve LLM for tests: started, asked over HTTP, and stopped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.ray_serve_environment import RAY_SERVE_FOLDER
from infra.local.serving_environment import find_serving_python
from tests.vllm_server import VllmServer, choose_port

MAKE_RAY_SERVE = "python -m infra.local.ray_serve_environment"
PROGRAM = Path(__file__).with_name("ray_serve_application.py")
REMOVED = ("PYTHONPATH", "RAY_ADDRESS")
"""Variables of the tests that would bring their packages, or their Ray, into the application."""


class RayServeServer(VllmServer):
    """The process that started Ray and the application."""

    def is_ready(self) -> bool:
        try:
            return self.ask("/v1/models/base")[0] == 200
        except (OSError, ValueError):
            return False  # before the application is there Ray's proxy answers in plain text


def find_ray_serve_python() -> Path:
    """Return where the Python that has Ray Serve LLM is, or would be."""
    return find_serving_python(RAY_SERVE_FOLDER)


@contextmanager
def run_ray_serve(model: Path, folder: Path, path: str) -> Iterator[RayServeServer]:
    """Serve a model as `base`, with the adapters below `path`; the log is in `folder`.

    The bucket is found by the variables of this process.
    """
    port = choose_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name not in REMOVED},
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    # Ray's sockets lie below it, and their names may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="slora-ray-", dir="/tmp") as session:
        # -P: without the folders of the tests, one of which is called ray.
        command = [
            str(find_ray_serve_python()), "-P", str(PROGRAM), f"--model={model}", f"--path={path}",
            f"--folder={session}", f"--port={port}",
        ]  # fmt: skip
        server = RayServeServer(command, environment, port, folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
