"""A federation whose store is a bucket: rounds, checkpoints and the adapter, killed in between."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.federation.round_log import open_round_log
from jobs.federation.server import FederationServer
from jobs.store.adapters.operations import resolve_adapter, verify_adapter
from jobs.store.s3.s3_store import S3Store
from tests.jobs.federation.runs import federation_of, folder_with_rows, request_of

pytestmark = pytest.mark.timeout(300)


class Killed(Exception):
    """Stands for the death of the server."""


class Mortal(FederationServer):
    """A server that dies after its second round."""

    def _after_round(self, *report: Any) -> None:
        super()._after_round(*report)
        if self.round == 2:
            self.saver.wait()
            raise Killed


def test_a_killed_federation_in_a_bucket_resumes(s3: S3Store, tmp_path: Path):
    torch.set_num_threads(1)
    folder = folder_with_rows(tmp_path)
    once = federation_of(request_of(folder, {"compress": "topk"}))
    once.run()
    request = request_of(folder, {"compress": "topk"})
    spec = request.spec.model_copy(update={"store": s3.url("store")})
    request = replace(request, spec=spec)
    first = federation_of(request)
    first.__class__ = Mortal
    with pytest.raises(Killed):
        first.run()
    second = federation_of(request)
    second.run()
    assert torch.equal(second.weights_n, once.weights_n)
    store = S3Store(s3.bucket, f"{s3.prefix}/store")
    assert verify_adapter(store, resolve_adapter(store, "tiny")) == []
    rounds = [line["round"] for line in open_round_log(second.runs).tail(0)[0]]
    assert set(rounds) == {1, 2, 3, 4}
