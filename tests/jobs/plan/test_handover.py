"""The command validates in full, the job reuses the result, and no change goes unnoticed."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.inspect.base_digest import digest_base
from jobs.inspect.datasets.scan import scan_dataset
from jobs.plan.handover import HANDOVER_FILE, validate_or_reuse, write_validated
from jobs.plan.plan import make_plan
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.load import dump_spec, load_spec, validate_spec
from jobs.store.open import open_store
from jobs.store.runs.run_store import SPEC, RunStore
from tests.tiny import chat_rows, hollow_model, tiny_spec, write_spec

RUN = "tiny-20260101-000000-0a1b"
COUNTED: dict[CodeType, str] = {
    validate_spec.__code__: "parses",
    scan_dataset.__code__: "full reads",
    make_plan.__code__: "plans",
    digest_base.__code__: "digests of the base",
}


@contextmanager
def count_calls() -> Iterator[Counter[str]]:
    """Count the calls of the functions that read, parse and plan."""
    calls = Counter[str]()

    def record(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in COUNTED:
            calls[COUNTED[frame.f_code]] += 1

    previous = sys.getprofile()
    sys.setprofile(record)
    try:
        yield calls
    finally:
        sys.setprofile(previous)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "rows/a.jsonl", 8)
    chat_rows(tmp_path / "eval.jsonl", 4)
    data = {"train": str(tmp_path / "rows"), "eval": str(tmp_path / "eval.jsonl")}
    write_spec(tmp_path / "spec.yaml", tiny_spec(tmp_path, data=data))
    return tmp_path


def run_command(folder: Path) -> ValidatedRun:
    """Do what `slora train` does before it submits the job."""
    validated = validate_run(load_spec(folder / "spec.yaml"))
    runs = open_runs(folder)
    runs.write_text(SPEC, dump_spec(validated.spec))
    write_validated(validated, runs)
    return validated


def run_job(folder: Path) -> ValidatedRun:
    """Do what the job does before it starts its workers."""
    spec = load_spec(folder / f"store/runs/{RUN}/{SPEC}")
    validated = validate_or_reuse(spec, RUN)
    validated.make_request(RUN)
    return validated


def open_runs(folder: Path) -> RunStore:
    return RunStore(open_store(f"file://{folder}/store"), RUN)


def test_a_run_is_parsed_once_per_process_and_read_and_planned_once(folder: Path):
    with count_calls() as command:
        validated = run_command(folder)
    # The training and the evaluation rows.
    assert command == {"parses": 1, "full reads": 2, "plans": 1, "digests of the base": 1}
    with count_calls() as job:
        reused = run_job(folder)
    assert job == {"parses": 1}
    assert (reused.spec, reused.model, reused.plan) == (
        validated.spec, validated.model, validated.plan,
    )  # fmt: skip
    assert (reused.train_scan, reused.eval_scan) == (validated.train_scan, validated.eval_scan)
    assert reused.base == digest_base(folder / "model")


def test_a_job_without_a_hand_over_validates_in_full_by_itself(folder: Path):
    with count_calls() as job:
        validate_or_reuse(load_spec(folder / "spec.yaml"), RUN).make_request(RUN)
    assert job == {"parses": 1, "full reads": 2, "plans": 1, "digests of the base": 1}


def replace_silently(path: Path) -> None:
    """Replace the content, but keep the size and the time of the last change."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"0", b"1"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip_weights(folder: Path) -> None:
    path = folder / "model/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], object]] = {
    "another row": lambda at: chat_rows(at / "rows/a.jsonl", 9),
    "another file": lambda at: chat_rows(at / "rows/b.jsonl", 1),
    "a copy of the same size and time": lambda at: replace_silently(at / "rows/a.jsonl"),
    "other rows to evaluate by": lambda at: chat_rows(at / "eval.jsonl", 5),
    "other weights": flip_weights,
    "another spec": lambda at: open_runs(at).write_text(
        SPEC, open_runs(at).read_text(SPEC).replace("rank: 2", "rank: 1")
    ),
    "a torn hand-over": lambda at: open_runs(at).write_text(HANDOVER_FILE, '{"spec'),
    "a hand-over of another form": lambda at: open_runs(at).write_text(HANDOVER_FILE, "{}"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_has_changed_is_validated_in_full(change: Callable[[Path], object], folder: Path):
    before = run_command(folder)
    change(folder)
    with count_calls() as job:
        after = run_job(folder)
    assert (job["full reads"], job["plans"], job["digests of the base"]) == (2, 1, 1)
    assert after.train_scan.sha256 is not None and before.train_scan.sha256 is not None


def test_a_change_that_is_a_fault_is_reported_by_the_job(folder: Path):
    run_command(folder)
    (folder / "rows/a.jsonl").write_text("{}\n")
    with pytest.raises(InputError):
        run_job(folder)
    (folder / "rows/a.jsonl").unlink()
    with pytest.raises(InputError, match=r"data\.train"):
        run_job(folder)


def test_a_change_while_the_command_validates_is_noticed(folder: Path):
    validated = validate_run(load_spec(folder / "spec.yaml"))
    chat_rows(folder / "rows/a.jsonl", 9)
    runs = open_runs(folder)
    runs.write_text(SPEC, dump_spec(validated.spec))
    write_validated(validated, runs)
    assert run_job(folder).train_scan.rows == 9
