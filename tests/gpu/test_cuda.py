"""The CUDA paths: NCCL, bfloat16, the sampled product. Skips itself where there is no GPU."""

from __future__ import annotations

import pytest
import torch

from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from slora.layers.sparse import SparseLinear, make_dense_delta
from slora.masks.mask import BlockMask, draw_random_mask
from tests.tiny import chat_rows, tiny_chat_model, tiny_spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


MASKS = {
    "few": draw_random_mask(seed=0, name="x", shape=(48, 64), density=0.03),
    "many": draw_random_mask(seed=0, name="x", shape=(48, 64), density=0.5),
    "block": BlockMask((48, 64), torch.arange(5), torch.arange(3, 20)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sparse_layer_on_cuda_equals_the_dense_reference(dtype, mask):
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 48, dtype=dtype, device="cuda").requires_grad_(False)
    layer = SparseLinear(base, mask)
    layer.values.data.normal_()
    x = torch.randn(4, 64, dtype=dtype, device="cuda")
    layer(x).sum().backward()
    moved = (base.weight.float() + make_dense_delta(layer.values, mask).cuda()).to(dtype)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, moved, base.bias))
    wanted = torch.ones(48, 4, device="cuda") @ x.float()
    torch.testing.assert_close(
        layer.values.grad.cpu(), wanted.cpu().view(-1)[mask.positions], rtol=2e-2, atol=2e-2
    )


WAYS = {
    "slora": {},
    "fisher, kept": {"mask": "fisher", "handoff": {"residual": "keep"}},
    "gates": {"kind": "lora", "factor_density": 0.5, "factor_pruning": "gates"},
    "pissa": {"kind": "lora", "init": "pissa"},
}


@pytest.mark.parametrize("method", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sharding", ["replicate", "cluster"])
def test_a_run_on_one_gpu_learns_and_commits(tmp_path, dtype, sharding, method):
    import deepspeed

    from jobs.plan.preflight import validate_run
    from jobs.spec.load import validate_spec
    from jobs.train.comm.collectives import WorkerContext
    from jobs.train.fine_tuning import make_fine_tuning

    deepspeed.init_distributed("nccl")
    tiny_chat_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 60)
    changes = {
        "model": {"dtype": dtype},
        "method": method,
        "cluster": {"sharding": sharding, "gpus_per_worker": 1},
    }
    checked = validate_run(validate_spec(tiny_spec(tmp_path, **changes)))
    runs = RunStore(open_store(checked.spec.store), "gpu")
    request = checked.make_request("gpu")
    device = torch.device("cuda", 0)
    manifest = make_fine_tuning(request, runs, WorkerContext(0, 1, device)).run()
    assert manifest is not None
    losses = [m["loss"] for m in runs.metrics.tail(0)[0] if "evaluation" not in m]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compress", ["none", "topk"])
def test_a_federation_s_site_on_a_gpu_learns_and_commits(tmp_path, dtype, compress):
    from jobs.federation.sites.local_sites import LocalSites
    from tests.jobs.federation.runs import folder_with_rows, make_loop, request_of

    request = request_of(folder_with_rows(tmp_path), {"compress": compress}, model={"dtype": dtype})
    sites = LocalSites(request, open_store(request.spec.store), torch.device("cuda"))
    manifest = make_loop(request, sites).run()
    assert manifest is not None and manifest.evaluation["end"]["loss"] > 0
    assert sites.collect_peaks()["0"]["peak"] > 0
