"""Which jobs share a pool, and what of a job's environment no idle worker has."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.train.pool.pool_identity import (
    MAX_WARM_WORKERS,
    SECRET_NAMES,
    WARM_WORKERS,
    identify_pool,
    read_warm_workers,
    select_attempt_variables,
)

OF_LAB = {
    "SLORA_PROJECT": "lab",
    "AWS_ACCESS_KEY_ID": "key-1",
    "OMP_NUM_THREADS": "2",
    "WANDB_API_KEY": "secret-1",
    SECRET_NAMES: "WANDB_API_KEY",
}


def _identify(variables: dict[str, str], *, gpu: bool = False, **others: Any) -> str:
    return identify_pool({"env_vars": variables, **others}, gpu=gpu).name


def test_attempts_of_one_project_share_a_pool_whatever_their_credentials():
    next_attempt = {**OF_LAB, "AWS_ACCESS_KEY_ID": "key-2", "WANDB_API_KEY": "secret-2"}
    assert _identify(OF_LAB) == _identify(next_attempt)


def test_a_trial_that_ray_tune_starts_has_the_pool_of_its_search():
    of_trial = {**OF_LAB, "PL_DISABLE_FORK": "1", "TUNE_GLOBAL_CHECKPOINT_S": "3600"}
    assert _identify(of_trial) == _identify(OF_LAB)


def test_a_pool_is_of_one_project_code_environment_and_kind():
    others = {
        "project": _identify({**OF_LAB, "SLORA_PROJECT": "library"}),
        "no project": _identify({**OF_LAB, "SLORA_PROJECT": ""}),
        "read at import": _identify({**OF_LAB, "OMP_NUM_THREADS": "1"}),
        "another variable": _identify({**OF_LAB, "HF_HOME": "/data"}),
        "a credential more": _identify({**OF_LAB, "AWS_SESSION_TOKEN": "t"}),
        "package": _identify(OF_LAB, working_dir="gcs://_ray_pkg_1.zip"),
        "other package": _identify(OF_LAB, working_dir="gcs://_ray_pkg_2.zip"),
        "pip": _identify(OF_LAB, pip=["six"]),
        "GPU": _identify(OF_LAB, gpu=True),
    }
    assert len({_identify(OF_LAB), *others.values()}) == 1 + len(others), others


def test_a_changed_module_makes_another_pool(tmp_path: Path):
    module = tmp_path / "slora" / "layer.py"
    module.parent.mkdir()
    module.write_text("RANK = 8")
    before = identify_pool({}, gpu=False, root=tmp_path)
    assert identify_pool({}, gpu=False, root=tmp_path) == before
    os.utime(module, ns=(1, 1))
    assert identify_pool({}, gpu=False, root=tmp_path) != before


def test_credentials_and_secrets_belong_to_the_attempt():
    attempt = select_attempt_variables(OF_LAB)
    assert sorted(attempt) == [
        "AWS_ACCESS_KEY_ID",
        "SLORA_PROJECT",
        SECRET_NAMES,
        "WANDB_API_KEY",
    ]


def test_warm_workers_are_off_unless_a_number_says_otherwise():
    cases = [({}, {}, 0), ({WARM_WORKERS: "2"}, {}, 2), ({}, {WARM_WORKERS: "3"}, 3)]
    cases += [({WARM_WORKERS: "0"}, {WARM_WORKERS: "3"}, 0)]
    for variables, environment, number in cases:
        assert read_warm_workers(variables, environment) == number
    for text in ("two", "-1", "1.5", str(MAX_WARM_WORKERS + 1)):
        with pytest.raises(InputError, match="is not a whole number from 0 to 64"):
            read_warm_workers({WARM_WORKERS: text}, {})
