"""Bounds of products, and of integers that Python refuses to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.spec.kinds import count_tokens, count_workers
from jobs.spec.limits import (
    MAX_BYTES,
    MAX_CPUS,
    MAX_GPUS,
    MAX_INT32,
    MAX_INT64,
    MAX_TOKENS,
    MAX_TOTAL_WORKERS,
)
from jobs.spec.load import load_spec, validate_spec
from tests.tiny import merge_spec, tiny_spec

SEARCH = {
    "space": {"method.rank": {"choice": [1, 2]}}, "scheduler": "none", "samples": 10**6,
    "max_concurrent": 10**3,
}  # fmt: skip
HELD_OUT = {"eval_fraction": 0.5}
FEDERATION = {"clients": 10**6, "clients_per_round": 10**6, "rounds": 10**5, "local_steps": 1}


def make_fault_text(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(InputError) as error:
        validate_spec(merge_spec(tiny_spec(tmp_path), changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"train": {"steps": 10**9, "batch_size": 10**6}, "data": {"max_length": 1024}},
            ["train.steps x train.batch_size x data.max_length", "1,024,000,000,000,000,000"],
        ),
        (
            {"train": {"epochs": 3, "steps": None, "batch_size": 10**7},
             "data": {"max_length": 2**24}, "federation": FEDERATION},
            ["federation.clients_per_round", "tokens"],
        ),
        ({"cluster": {"workers": 10**5, "cpus_per_worker": 10**5}}, ["10,000,000,000 CPUs"]),
        (
            {"cluster": {"workers": {"min": 10**5, "max": 1}, "cpus_per_worker": 10**5}},
            ["10,000,000,000 CPUs"],
        ),
        ({"cluster": {"workers": 10**5, "machine": {"memory_gb": 1e15}}}, ["bytes"]),
        (
            {"search": SEARCH, "data": HELD_OUT, "cluster": {"workers": 10**5}},
            ["cluster.workers x search.max_concurrent are 100,000,000 workers"],
        ),
        (
            {"search": SEARCH, "data": HELD_OUT, "train": {"steps": 10**9}},
            ["search.samples are 256,000,000,000,000,000 tokens"],
        ),
    ],
)  # fmt: skip
def test_a_product_above_its_bound_is_refused_by_name_and_value(
    tmp_path: Path, changes: dict[str, Any], parts: list[str]
):
    text = make_fault_text(tmp_path, **changes)
    assert all(part in text for part in [*parts, "above the limit of"]), text


def test_what_is_accepted_fits_the_columns_of_the_database(tmp_path: Path):
    changes = {"train": {"steps": 10**9, "batch_size": 1000}, "data": {"max_length": 1000},
               "cluster": {"workers": 100, "cpus_per_worker": 10**5}}  # fmt: skip
    spec = validate_spec(merge_spec(tiny_spec(tmp_path), changes))
    assert count_tokens(spec) == MAX_TOKENS
    assert count_workers(spec) * spec.cluster.cpus_per_worker == MAX_CPUS
    assert MAX_TOTAL_WORKERS <= MAX_INT32
    assert max(MAX_TOKENS, MAX_CPUS, MAX_GPUS, MAX_BYTES) <= MAX_INT64


LONG_INTEGERS = ["9" * 4301, "0x" + "f" * 5000, "-0x" + "f" * 5000, "0b" + "1" * 20000,
                 "1" + "0" * 4299, "1:" * 3000 + "1"]  # fmt: skip
KEYS = ["train.steps", "train.learning_rate", "name", "method.targets", "cluster.workers",
        "search.space", "retrain"]  # fmt: skip


@pytest.mark.parametrize("value", LONG_INTEGERS, ids=range(len(LONG_INTEGERS)))
@pytest.mark.parametrize("key", KEYS)
def test_no_integer_is_too_long_for_a_message(tmp_path: Path, key: str, value: str):
    file = tmp_path / "spec.yaml"
    file.write_text("name: tiny\nmodel: {path: /m}\ndata: {train: /d}\ntrain: {steps: 1}\n")
    with pytest.raises(InputError) as error:
        load_spec(file, [f"{key}={value}"])
    assert 0 < len(str(error.value)) < 2000
    section, _, leaf = key.partition(".")
    text = f"{{{leaf}: {value}}}" if leaf else value
    file.write_text(f"{section}: {text}\n")
    with pytest.raises(InputError):
        load_spec(file)


def test_a_domain_of_all_integers_is_counted(tmp_path: Path):
    space = {"train.seed": {"randint": [-(2**63), 2**63 - 1]}}
    section = {"space": space, "algorithm": "grid", "scheduler": "none"}
    text = make_fault_text(tmp_path, search=section, data=HELD_OUT)
    assert "18,446,744,073,709,551,616 trials" in text
