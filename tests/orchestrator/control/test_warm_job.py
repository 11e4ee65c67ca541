"""What a job is told about warm workers: how many, and which variables no idle one may have."""

from __future__ import annotations

import pytest

from jobs.errors import InputError
from orchestrator.control.config import parse_config
from orchestrator.control.job_spec import make_warm_environment
from tests.orchestrator.control.control import ControlHarness

CLUSTER = {"address": "http://ray:8265"}


def test_a_job_keeps_warm_workers_only_where_its_cluster_is_configured_so(
    control: ControlHarness,
):
    warm = ControlHarness(control.database, control.store, warm_workers=2)
    warm.make_environment = lambda run: {"SLORA_PROJECT": run.project, "HF_TOKEN": "s3cr3t"}
    warm.submit()
    warm.reconcile()
    (job,) = warm.cluster.started_jobs
    assert job.environment["SLORA_WARM_WORKERS"] == "2"
    assert job.environment["SLORA_SECRET_NAMES"] == "HF_TOKEN"


def test_the_names_of_secrets_are_told_and_warm_workers_are_off_by_default():
    environment = {"AWS_PROFILE": "", "SLORA_PROJECT": "lab", "Z_KEY": "z", "HF_TOKEN": "t"}
    assert make_warm_environment(0, environment) == {}
    assert make_warm_environment(3, {"SLORA_PROJECT": "lab"}) == {"SLORA_WARM_WORKERS": "3"}
    named = make_warm_environment(3, environment)
    assert named == {"SLORA_WARM_WORKERS": "3", "SLORA_SECRET_NAMES": "HF_TOKEN,Z_KEY"}


def test_the_number_of_warm_workers_is_bounded():
    clusters = {"default": {**CLUSTER, "warm_workers": 2}, "other": CLUSTER}
    config = parse_config({"clusters": clusters})
    numbers = {name: cluster.warm_workers for name, cluster in config.clusters.items()}
    assert numbers == {"default": 2, "other": 0}
    for number in (-1, 65, "many"):
        with pytest.raises(InputError, match=r"clusters.default.warm_workers"):
            parse_config({"clusters": {"default": {**CLUSTER, "warm_workers": number}}})
