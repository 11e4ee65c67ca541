"""The partition in a run's folder: made once, read by everybody, checked by its digest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import DigestMismatch
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.federation.partition_file import PARTITION_FILE, read_partition
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from tests.jobs.federation.specs import a_federation
from tests.tiny import chat_rows

RUN = "tiny-1"


@pytest.fixture
def runs(workspace):
    return RunStore(open_store(f"file://{workspace}/store"), RUN)


def check_again(workspace) -> ValidatedFederation:
    return check_federation(a_federation(workspace), run_id=RUN)


def test_what_is_written_is_read_again(workspace, runs):
    written = check_federation(a_federation(workspace)).keep_partition(runs)
    read = read_partition(runs, written.digest)
    assert read.names == written.names and read.sizes == written.sizes
    assert read.digest == written.digest


def test_the_job_reads_the_partition_that_is_there(workspace, runs):
    validated = check_again(workspace)
    marked = replace(validated.partition, names=("a", "b", "c", "d"))
    replace(validated, partition=marked).keep_partition(runs)
    assert check_again(workspace).partition.names == ("a", "b", "c", "d")


def test_changed_rows_get_a_new_partition(workspace, runs):
    first = check_again(workspace).keep_partition(runs)
    chat_rows(workspace / "train.jsonl", 20)
    second = check_again(workspace).keep_partition(runs)
    assert sum(first.sizes) == 12 and sum(second.sizes) == 20
    with pytest.raises(DigestMismatch):
        read_partition(runs, first.digest)


def test_a_check_writes_nothing(workspace, runs):
    check_again(workspace)
    assert runs.store.head(runs.key(PARTITION_FILE)) is None


@pytest.mark.parametrize("length", [0, 40, -30])
def test_an_incomplete_file_is_refused_and_made_again(workspace, runs, length):
    digest = check_again(workspace).keep_partition(runs).digest
    data = runs.store.get(runs.key(PARTITION_FILE))
    runs.store.put(runs.key(PARTITION_FILE), data[:length])
    with pytest.raises(DigestMismatch):
        read_partition(runs, digest)
    assert check_again(workspace).keep_partition(runs).digest == digest
