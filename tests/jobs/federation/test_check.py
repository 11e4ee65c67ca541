"""Checks of a federation against its model and rows, before any site starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import InputError
from jobs.federation.artifacts import FEDERATION_FILE
from jobs.federation.check import check_federation
from jobs.store.open import open_store
from jobs.store.runs.pinned_spec import pin_spec
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.specs import a_federation
from tests.tiny import chat_rows

ANSWER = {"role": "assistant", "content": "It is red."}


def test_a_check_plans_one_site_and_partitions_the_rows(workspace):
    validated = check_federation(a_federation(workspace, cluster={"workers": 3}))
    assert validated.validated_run.spec.workers == 3
    assert validated.validated_run.plan.workers == 1
    assert validated.partition is not None
    assert validated.partition.sizes == (3, 3, 3, 3)


def test_a_quick_check_makes_no_partition(workspace):
    assert check_federation(a_federation(workspace), quick=True).partition is None


def test_too_few_rows_are_reported_by_the_check(workspace):
    chat_rows(workspace / "train.jsonl", 3)
    with pytest.raises(
        InputError, match="4 clients need at least one row each, but there are 3 rows"
    ):
        check_federation(a_federation(workspace))


def test_a_resumed_run_must_have_the_same_spec(workspace):
    runs = RunStore(open_store(f"file://{workspace}/store"), "tiny-1")
    pin_spec(a_federation(workspace), runs)
    pin_spec(a_federation(workspace), runs)
    assert "clients_per_round: 2" in runs.read_text(FEDERATION_FILE)
    with pytest.raises(InputError, match="a federation with a different spec"):
        pin_spec(a_federation(workspace, {"rounds": 11}), runs)


def add_bad_rows(workspace: Path) -> None:
    """Put a line that is no JSON first, and a row whose answer is cut off last."""
    path = workspace / "train.jsonl"
    long = {"messages": [{"role": "user", "content": "x" * 500}, ANSWER]}
    path.write_text("{\n" + path.read_text() + json.dumps(long) + "\n")


@pytest.mark.parametrize("section", [{}, {"partition": "by", "column": "who", "clients": None}])
def test_bad_and_cut_rows_are_given_to_no_client(workspace: Path, section: dict[str, object]):
    path = workspace / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "who": n % 3}) + "\n" for n, row in enumerate(rows)))
    add_bad_rows(workspace)
    spec = a_federation(workspace, section, data={"on_bad_row": "skip", "max_dropped": 0.3})
    validated = check_federation(spec)
    assert validated.partition is not None
    assert sum(validated.partition.sizes) == 12
    numbers = np.concatenate(validated.partition.rows)
    assert sorted(numbers) == list(range(12)), "the line that is no row has no number"
    with pytest.raises(InputError, match=r"train\.jsonl:1: "):
        check_federation(a_federation(workspace, section))


def test_a_federation_is_not_streamed(workspace: Path):
    with pytest.raises(InputError, match=r"data\.streaming: the rows are divided"):
        a_federation(workspace, data={"streaming": True})
