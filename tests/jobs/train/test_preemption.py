"""Ray Train's settings for workers that may be preempted, or hang."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.train.cluster.ray_backend import PreemptibleTorchConfig
from jobs.train.cluster.ray_train import choose_poll_interval


def test_a_worker_that_hangs_is_not_asked_to_shut_its_process_group_down():
    config = PreemptibleTorchConfig()
    # Without a worker group every call of a worker fails, as a hung one would.
    assert config.backend_cls().on_shutdown(None, config) is None


@pytest.mark.parametrize(("workers", "seconds"), [(1, 0.25), (12, 0.25), (50, 1.0), (4096, 2.0)])
def test_many_workers_are_looked_at_less_often(workers: int, seconds: float):
    assert choose_poll_interval(workers) == seconds


def test_the_driver_and_the_controller_load_no_torch():
    controller = "ray.train.v2._internal.execution.controller"
    code = f"import sys, jobs.train.cluster.ray_train, jobs.train.driver, {controller}"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"
