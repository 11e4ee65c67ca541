"""A run with `model.dtype: auto` settles its dtype on the cluster, once. The run of
`test_cluster.py` does so too, and keeps it through the death of a worker.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from jobs.plan.dtype_choice import DtypeChoice
from jobs.plan.settled_dtype import DTYPE_FILE, read_settled_dtype
from jobs.spec.load import parse_spec
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
from jobs.store.runs.run_store import PLAN, SPEC, RunStore
from slora.kernels.processor import read_processor
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FORCED = DtypeChoice("bfloat16", is_auto=True, reason="recorded by an earlier attempt")


@pytest.fixture(scope="module", autouse=True)
def _agent(head):
    head.wait_for_agent()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dtype")
    tiny_chat_model(path / "model")
    chat_rows(path / "train.jsonl", 20)
    return path


def run_job(head, folder: Path, run: str, *, recorded: DtypeChoice | None = None) -> RunStore:
    spec = tiny_spec(folder, name=run.partition("-")[0], model={"dtype": "auto"})
    spec["train"]["steps"] = 2
    runs = RunStore(open_store(spec["store"]), run)
    if recorded is not None:
        runs.store.put(runs.key(DTYPE_FILE), TypeAdapter(DtypeChoice).dump_json(recorded))
    path = write_spec(folder / f"{run}.yaml", spec)
    job = head.submit("jobs.finetune", "--spec", str(path), "--run", run)
    output, _ = job.communicate(timeout=280)
    assert job.returncode == 0, output
    return runs


def list_recorded_dtypes(runs: RunStore, name: str) -> set[str | None]:
    """Return the dtype wherever a run tells it."""
    return {
        parse_spec(runs.read_text(SPEC), SPEC).model.dtype,
        runs.read_json(PLAN)["dtype"]["dtype"],
        resolve_adapter(runs.store, name).base.dtype,
    }


@pytest.mark.long
def test_a_run_settles_and_records_its_dtype(head, folder):
    runs = run_job(head, folder, "settled-20260101-000000-0a1b")
    choice = read_settled_dtype(runs)
    assert choice and choice.is_auto
    assert list_recorded_dtypes(runs, "settled") == {choice.dtype}
    events, _ = runs.events.tail(0)
    assert [event["dtype"] for event in events if event["event"] == "dtype_settled"] == [
        choice.dtype
    ]


@pytest.mark.long
def test_a_later_attempt_takes_the_recorded_dtype_whatever_its_machine_says(head, folder):
    runs = run_job(head, folder, "resumed-20260101-000000-0a1b", recorded=FORCED)
    assert list_recorded_dtypes(runs, "resumed") == {"bfloat16"}


def test_every_machine_of_a_cluster_answers(head):
    output, _ = head.run("tests.ray.dtype_driver").communicate(timeout=200)
    line = next(line for line in output.splitlines() if line.startswith("answers "))
    answers = json.loads(line.removeprefix("answers "))
    assert len(answers) == 1 and None not in answers.values()
    if not read_processor().flags:
        assert set(answers.values()) == {"float32"}
