"""Error feedback: what a client did not send is kept, sent later, and ends with its stage."""

from __future__ import annotations

import pytest
import torch

from jobs.federation.averaging.payload import decode
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
        compress, sizes = request.federation.compress, info.layout.sizes
        sums.append(torch.zeros(info.layout.count))
        for number in range(3):
            task = ClientTask(
                stage=0, round=number, client=0, rates=RATES, weights=info.initial_weights
            )
            ((reply, _),) = sites.run_tasks([task])
            assert isinstance(reply, ClientUpdate)
            sums[-1] += decode(reply.update, compress, sizes, 0.2)
        if compress == "topk":
            sums[-1] += decode(sites.collect_residuals()[0], "none", sizes, 1.0)
    torch.testing.assert_close(sums[0], sums[1], atol=1e-6, rtol=1e-5)


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
