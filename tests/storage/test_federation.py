"""A federation whose store is a bucket: rounds, checkpoints and the adapter, killed in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.store.adapters.operations import resolve_adapter, verify_adapter
from jobs.store.s3.s3_store import S3Store
from tests.jobs.federation.runs import (
    KillAfter,
    Killed,
    folder_with_rows,
    move_request,
    request_of,
    run_request,
)

pytestmark = pytest.mark.timeout(300)


def test_a_federation_in_a_bucket_resumes_where_it_was_killed(s3: S3Store, tmp_path: Path):
    torch.set_num_threads(1)
    request = request_of(folder_with_rows(tmp_path), {"compress": "topk"})
    uninterrupted = run_request(request)
    request = move_request(request, s3.url("store"))
    with pytest.raises(Killed):
        run_request(request, hooks=KillAfter(rounds=2))
    resumed = run_request(request)
    assert torch.equal(resumed.weights_n, uninterrupted.weights_n)
    store = S3Store(s3.bucket, f"{s3.prefix}/store")
    assert verify_adapter(store, resolve_adapter(store, "tiny")) == []
    assert {line["round"] for line in resumed.read_rounds()} == {1, 2, 3, 4}
