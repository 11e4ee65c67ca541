"""Run a task of lm-eval-harness on an adapter: in this process, or through a server.

lm-eval is an extra of its own (`suite`), imported here and nowhere else. A task is a name that it
knows, or a YAML file of its form, whose data may be a local file.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jobs.errors import Fault, InputError
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.base import ObjectStore
from jobs.tools.adapter_base import find_base
from jobs.tools.endpoint.completions_client import KEY_VARIABLE, CompletionsClient
from jobs.tools.endpoint.endpoint_evaluation import check_task, choose_model
from jobs.train.job_main import require_extra

MAX_LENGTH = 2048
"""Tokens of a prompt that a server is asked for, as lm-eval's own default."""


def run_suite(store: ObjectStore, options: argparse.Namespace) -> tuple[str, dict[str, float]]:
    """Return the adapter's label and the metrics of the task `options.suite`, by lm-eval's names.

    Raise NotInstalled, Unreachable, and InputError for an unknown task.
    """
    with require_extra("suite"):
        import lm_eval
        from lm_eval.tasks import TaskManager
    name, folder = _find_task(options.suite)
    manager = TaskManager(include_path=folder)
    if name not in manager.all_tasks:
        remedy = "Use a name of `lm_eval ls tasks`, or the path of a task's YAML file."
        raise InputError([Fault("--suite", f"lm-eval has no task {name!r}", remedy)])
    label, model = _make_model(store, options)
    try:
        results = lm_eval.simple_evaluate(
            model=model, tasks=[name], task_manager=manager, log_samples=False, bootstrap_iters=0
        )
    except (OSError, ValueError) as error:
        # Data that no file or cache has: a hub is not asked.
        reason = " ".join(str(error).split())[:300]
        remedy = "Its data must be a local file, or in the cache of `datasets`."
        raise InputError([Fault("--suite", f"{name} can't be run: {reason}", remedy)]) from error
    return label, _read_metrics(results["results"])


def _find_task(suite: str) -> tuple[str, str | None]:
    """Return a task's name, and the folder with its file if it is one of ours. Raise InputError."""
    path = Path(suite)
    if path.suffix not in (".yaml", ".yml"):
        return suite, None
    try:
        # Tasks have tags of lm-eval's own, such as !function: only the name is read.
        tokens = [line for line in path.read_text("utf-8").splitlines() if line[:5] == "task:"]
        name = yaml.safe_load("\n".join(tokens[:1]))["task"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        problem = f"{suite} is not a task's file"
        raise InputError([Fault("--suite", problem, "It needs a line `task: NAME`.")]) from error
    return str(name), str(path.resolve().parent)


def _make_model(store: ObjectStore, options: argparse.Namespace) -> tuple[str, Any]:
    """Return the adapter's label, and a model that lm-eval asks."""
    if options.endpoint is None:
        from lm_eval.models.huggingface import HFLM

        from jobs.tools.load_adapter import load_adapted_model

        adapted = load_adapted_model(store, options.adapter, base=options.base, merged=True)
        model = HFLM(pretrained=adapted.model, tokenizer=adapted.tokenizer, device="cpu")
        return adapted.manifest.label, model
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    manifest = resolve_adapter(store, options.adapter)
    check_task(store, manifest)
    with CompletionsClient(options.endpoint) as client:
        served = choose_model(client, options.served_as or options.adapter)
    model = LocalCompletionsAPI(
        model=served,
        base_url=f"{client.url}/v1/completions",
        tokenizer=str(find_base(manifest, options.base)),
        tokenizer_backend="huggingface",
        auth_token=os.environ.get(KEY_VARIABLE) or None,
        max_length=options.max_length or MAX_LENGTH,
    )
    return manifest.label, model


def _read_metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the numbers of all tasks; those of a group have the task's name before them."""
    metrics = {}
    for task, values in results.items():
        for key, value in values.items():
            name = key.removesuffix(",none").replace(",", " ")
            if isinstance(value, int | float) and "stderr" not in name:
                metrics[name if len(results) == 1 else f"{task} {name}"] = float(value)
    return metrics
