"""Error feedback: what a client did not send is kept, sent later, and ends with its stage."""

from __future__ import annotations

import math

import pytest
import torch

from jobs.federation.averaging.payload import PayloadFormat, decode
from jobs.federation.sites.local_sites import LocalSites
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientTask,
    ClientUpdate,
    StagePayload,
)
from jobs.federation.sites.site import Site
from jobs.store.open import open_store
from jobs.train.engine.learning_rate import StepRates
from tests.jobs.federation.runs import (
    request_of,
)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

RATES = StepRates(1e-2, 1e-2)


def test_error_feedback_sends_in_the_end_what_it_has_kept(folder, tmp_path):
    section, method = {"clients": 1, "clients_per_round": 1}, {"kind": "sparse"}
    requests = [
        request_of(folder, {**section, **compression}, store=tmp_path.name, method=method)
        for compression in ({"compress": "topk", "topk": 0.2}, {})
    ]
    sums = []
    for request in requests:
        sites = LocalSites(request, open_store(request.spec.store), torch.device("cpu"))
        info = sites.open_stage(0, StagePayload())
        compress, uncompressed = request.federation.compress, PayloadFormat(info.layout)
        sums.append(torch.zeros(info.layout.count))
        for number in range(3):
            task = ClientTask(
                stage=0, round=number, client=0, rates=RATES, weights=info.initial_weights
            )
            ((reply, _),) = sites.run_tasks([task])
            assert isinstance(reply, ClientUpdate)
            sums[-1] += decode(reply.update, PayloadFormat(info.layout, compress, 0.2))
        if compress == "topk":
            sums[-1] += decode(sites.collect_residuals()[0], uncompressed)
    torch.testing.assert_close(sums[0], sums[1], atol=1e-6, rtol=1e-5)


def test_a_head_at_a_higher_rate_leaves_the_adapter_its_share(folder, tmp_path):
    """AdamW's first steps are as long as the rate: over the whole vector the head would win."""
    request = request_of(folder, {"compress": "topk", "topk": 0.1}, store=tmp_path.name)
    sites = LocalSites(request, open_store(request.spec.store), torch.device("cpu"))
    info = sites.open_stage(0, StagePayload())
    task = ClientTask(
        stage=0, round=0, client=0, rates=StepRates(1e-4, 1e-1), weights=info.initial_weights
    )
    ((reply, _),) = sites.run_tasks([task])
    assert isinstance(reply, ClientUpdate)
    updates = info.layout.split_by_name(
        decode(reply.update, PayloadFormat(info.layout, "topk", 0.1))
    )
    counts = {
        is_head: sum(int((part != 0).sum()) for name, part in updates.items()
                     if (name in info.layout.head) == is_head)
        for is_head in (False, True)
    }  # fmt: skip
    adapter, head = info.layout.group_sizes
    assert head and counts == {False: math.ceil(0.1 * adapter), True: math.ceil(0.1 * head)}


def test_a_clients_residual_survives_a_round_that_it_is_dropped_from(folder, tmp_path):
    """It is returned to a new site after a resume, in a round in which its client drops out."""
    request = request_of(folder, {"compress": "topk"}, store=tmp_path.name)
    sites = LocalSites(request, open_store(request.spec.store), torch.device("cpu"))
    info = sites.open_stage(0, StagePayload())
    residual = b"\x00\x00\x80\x3f" * info.layout.count
    task = ClientTask(
        stage=0,
        round=0,
        client=1,
        rates=RATES,
        weights=info.initial_weights,
        residual=residual,
        drops_out=True,
    )
    ((reply, _),) = sites.run_tasks([task])
    assert isinstance(reply, ClientFailure)
    assert sites.collect_residuals() == {1: residual}


def test_residuals_end_with_their_stage(folder, tmp_path):
    request = request_of(folder, {"compress": "topk"}, store=tmp_path.name)
    site = Site(request, open_store(request.spec.store), torch.device("cpu"))
    info = site.open_stage(0, StagePayload())
    site.run_task(ClientTask(stage=0, round=0, client=1, rates=RATES, weights=info.initial_weights))
    assert site.get_residuals(0).keys() == {1}
    # The server is a stage further and this site had no task in it: its layout is another one.
    assert site.get_residuals(1) == {}
