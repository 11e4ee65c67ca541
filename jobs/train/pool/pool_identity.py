"""Which runs may borrow from which pool: one project, one version of the code, one environment.

The variables of a job are of two kinds. Those of the attempt (credentials, the project's secrets,
whatever the service sets) are set in a worker when it is borrowed, and no idle process has their
values. All others are part of the pool's identity, because libraries read them when they are
imported. No Ray.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jobs.errors import Fault, InputError
from jobs.store.settings import PROJECT

WARM_WORKERS = "SLORA_WARM_WORKERS"
"""Variable of a job: how many idle workers its project keeps on the cluster; unset means none."""
SECRET_NAMES = "SLORA_SECRET_NAMES"
"""Variable of a job: the names of its project's secrets, separated by commas."""
MAX_WARM_WORKERS = 64
NAMESPACE = "slora-pool"
"""Ray's namespace of all pools."""
ATTEMPT_PREFIXES = ("AWS_", "SLORA_")
RAY_PREFIXES = ("RAY_", "TUNE_", "PL_DISABLE_FORK")
"""Variables that Ray Tune adds to those of the job for its trials; ours read none of them."""
CODE_PACKAGES = ("slora", "jobs")
LIBRARIES = ("datasets", "deepspeed", "numpy", "peft", "ray", "safetensors", "tokenizers", "torch",
             "transformers")  # fmt: skip
"""Distributions of which an idle worker has imported a version."""

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class PoolIdentity:
    """The pool that a job may borrow from."""

    project: str
    """Empty for jobs of no project, which the operator runs."""
    gpu: bool
    digest: str
    """Of the code, the environment and the names of the attempt's variables."""

    @property
    def family(self) -> str:
        """Return the start of the names of all pools that this one replaces."""
        return f"{self.project or 'operator'}/{'gpu' if self.gpu else 'cpu'}/"

    @property
    def name(self) -> str:
        """Return the name of the pool's actor."""
        return f"{self.family}{self.digest}"


def identify_pool(runtime_env: Mapping[str, Any], *, gpu: bool, root: Path = _ROOT) -> PoolIdentity:
    """Return the identity of the pool for a job with this runtime environment of Ray.

    `root` is the folder of our packages; it counts unless they are in the job's `working_dir`.
    """
    variables: Mapping[str, str] = runtime_env.get("env_vars") or {}
    attempt = select_attempt_variables(variables)
    facts = {
        "runtime_env": {key: runtime_env[key] for key in sorted(runtime_env) if key != "env_vars"},
        "variables": {
            name: variables[name]
            for name in sorted(variables.keys() - attempt.keys())
            if not name.startswith(RAY_PREFIXES)
        },
        "attempt": sorted(attempt),
        # Not the path of the interpreter: workers have that of their node.
        "python": sys.version,
        "libraries": {name: _find_version(name) for name in LIBRARIES},
        "code": [] if runtime_env.get("working_dir") else _stamp_code(root),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    project = variables.get(PROJECT, "")
    return PoolIdentity(project, gpu, hashlib.sha256(text.encode()).hexdigest()[:32])


def select_attempt_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a job that belong to its attempt."""
    secrets = variables.get(SECRET_NAMES, "").split(",")
    return {
        name: value
        for name, value in variables.items()
        if name.startswith(ATTEMPT_PREFIXES) or name in secrets
    }


def read_warm_workers(
    variables: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> int:
    """Return how many idle workers to keep for this job's project; 0 switches the pool off.

    Raise InputError for anything but a number up to MAX_WARM_WORKERS.
    """
    text = (variables.get(WARM_WORKERS) or environment.get(WARM_WORKERS) or "0").strip()
    if not (text.isascii() and text.isdigit()) or int(text) > MAX_WARM_WORKERS:
        problem = f"{text[:40]!a} is not a whole number from 0 to {MAX_WARM_WORKERS}"
        raise InputError([Fault(WARM_WORKERS, problem, "Use a number such as 2, or unset it.")])
    return int(text)


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _stamp_code(root: Path) -> list[tuple[str, int, int]]:
    """Return path, size and time of each module: a changed one makes another pool."""
    files = (path for name in CODE_PACKAGES for path in (root / name).rglob("*.py"))
    stats = ((path.relative_to(root).as_posix(), path.stat()) for path in sorted(files))
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
