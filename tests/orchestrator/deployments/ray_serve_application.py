"""An application of Ray Serve LLM with LoRAs, on CPUs and on a Ray of its own.

Runs in the environment of `infra/local/ray_serve_environment.py`, and imports nothing of this
repository. SIGTERM, and the end of the process that started it, end it with all its processes.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import threading

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    """Serve a model as `base`, with the adapters below a path, until a signal ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--path", required=True, help="dynamic_lora_loading_path")
    parser.add_argument(
        "--folder", required=True, help="folder of Ray's session, with a short name"
    )
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args()
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    ray.init(
        "local", num_cpus=8, include_dashboard=False, object_store_memory=100 << 20,
        _temp_dir=options.folder,
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    # A replica of the model takes two of the CPUs that Ray counts, one of the API takes one.
    single = {"num_replicas": 1}
    config = LLMConfig(
        model_loading_config={"model_id": "base", "model_source": options.model},
        lora_config={"dynamic_lora_loading_path": options.path, "max_num_adapters_per_replica": 4},
        engine_kwargs={
            "dtype": "float32", "enforce_eager": True, "enable_lora": True, "max_loras": 4,
            "max_lora_rank": 32,
        },
        # Bundles without a GPU make it an application for CPUs.
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config=single,
    )  # fmt: skip
    serve.run(build_openai_app({"llm_configs": [config], "ingress_deployment_config": single}))
    threading.Event().wait()


if __name__ == "__main__":
    main()
