"""A federation without Ray: what it equals, survives and trains."""

from __future__ import annotations

import shutil

import pytest
import torch

from jobs.errors import TrainingFailed
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import load_newest_state
from jobs.train.comm.collectives import WorkerContext
from jobs.train.fine_tuning import make_fine_tuning
from tests.jobs.federation.runs import (
    KillAfter,
    Killed,
    make_training_request,
    move_request,
    request_of,
    run_federation,
    run_request,
)
from tests.long import cases
from tests.tiny import label_rows

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


SGD = {"optimizer": "sgd", "local_steps": 1}
PLAIN = {"train": {"learning_rate": 0.5, "sparse_learning_rate": 0.5, "max_grad_norm": 1e6}}


def test_one_local_step_of_sgd_on_four_clients_is_the_same_step_on_all_their_rows(folder, tmp_path):
    # Four files of four rows: a batch of four is all that a client has, in any order.
    shutil.copytree(folder / "model", tmp_path / "model")
    for client in range(4):
        label_rows(tmp_path / "clients" / f"{client}.jsonl", 4 * (client + 1))
        lines = (tmp_path / "clients" / f"{client}.jsonl").read_text().splitlines()[-4:]
        (tmp_path / "clients" / f"{client}.jsonl").write_text("\n".join(lines) + "\n")
    label_rows(tmp_path / "eval.jsonl", 8)
    sparse = {"method": {"kind": "sparse"}}
    files = {**SGD, "partition": "files", "clients": None, "clients_per_round": 4, "rounds": 6}
    many = {"data": {"train": str(tmp_path / "clients")}}
    apart = run_federation(tmp_path, files, "apart", **sparse, **many, train=PLAIN["train"])
    section = {**SGD, "clients": 1, "clients_per_round": 1, "rounds": 6}
    train = {**PLAIN["train"], "batch_size": 16, "micro_batch_size": 16}
    together = run_federation(tmp_path, section, "together", **sparse, **many, train=train)
    assert (together.weights_n - apart.weights_n).abs().max() <= 1e-6
    assert apart.weights_n.abs().max() > 1e-3


def test_clients_with_the_same_rows_come_to_what_one_of_them_does_alone(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    for client in range(3):
        label_rows(tmp_path / "clients" / f"{client}.jsonl", 4)
    label_rows(tmp_path / "alone.jsonl", 4)
    label_rows(tmp_path / "eval.jsonl", 8)
    base = {"optimizer": "sgd", "local_steps": 3, "rounds": 2, "clients": None}
    method = {"method": {"kind": "sparse"}, "train": {"batch_size": 4, "micro_batch_size": 4}}
    many = run_federation(
        tmp_path, {**base, "partition": "files", "clients_per_round": 3}, "many",
        data={"train": str(tmp_path / "clients")}, **method,
    )  # fmt: skip
    alone = run_federation(
        tmp_path, {**base, "partition": "files", "clients_per_round": 1}, "alone",
        data={"train": str(tmp_path / "alone.jsonl")}, **method,
    )  # fmt: skip
    assert (many.weights_n - alone.weights_n).abs().max() <= 1e-6


def test_one_round_of_one_client_is_a_plain_training_of_as_many_steps(folder, tmp_path):
    """Two rows, one a micro-batch: their sum is the same in either order, even to AdamW."""
    shutil.copytree(folder / "model", tmp_path / "model")
    for name in ("train", "eval"):
        label_rows(tmp_path / f"{name}.jsonl", 2)
    train = {"batch_size": 2, "micro_batch_size": 1, "head_learning_rate": 3e-2}
    request = request_of(
        tmp_path,
        {"clients": 1, "clients_per_round": 1, "rounds": 1, "local_steps": 5},
        method={"kind": "sparse"},
        train=train,
    )
    federated = run_request(request).weights
    runs = RunStore(open_store(request.spec.store), "plain")
    context = WorkerContext(0, 1, torch.device("cpu"))
    make_fine_tuning(make_training_request(request, "plain"), runs, context).run()
    state = load_newest_state(runs)
    assert state is not None
    assert federated.keys() == state.weights.keys()
    for name, tensor in federated.items():
        assert (tensor - state.weights[name]).abs().max() <= 1e-6


@pytest.mark.parametrize("dies", cases([1, 2, 3], [2]))
@pytest.mark.parametrize(
    ("federation", "changes"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({"drop_out": 0.3}, {}, id="30 % drop out"),
        pytest.param({"compress": "topk", "average": "nesterov"}, {}, id="feedback and momentum"),
        pytest.param({"freeze_a": True}, {"method": {"mask": "gradient"}}, id="scored, A frozen"),
        pytest.param({}, {"method": {"handoff": {"residual": "keep"}}}, id="residual kept"),
        pytest.param({}, {"method": {"factor_density": 0.5}}, id="masks of factors"),
    ],
)
def test_a_server_killed_between_rounds_resumes_to_the_same_bits(
    folder, tmp_path, dies, federation, changes
):
    section = {"rounds": 4, "clients_per_round": 3, **federation}
    request = request_of(folder, section, store=f"{tmp_path.name}-once", **changes)
    uninterrupted = run_request(request)
    request = move_request(request, f"file://{tmp_path / 'twice'}")
    with pytest.raises(Killed):
        run_request(request, hooks=KillAfter(dies))
    resumed = run_request(request)
    assert torch.equal(resumed.weights_n, uninterrupted.weights_n)
    assert resumed.loop.evaluations == uninterrupted.loop.evaluations
    traffic = [run.ledger["wire"]["sparse"]["down"]["bytes"] for run in (resumed, uninterrupted)]
    assert traffic[0] == traffic[1]


def test_a_third_of_the_clients_may_drop_out_of_every_round(folder, tmp_path):
    section = {"clients": 12, "clients_per_round": 6, "rounds": 6, "drop_out": 0.3}
    rounds = run_federation(folder, section, f"{tmp_path.name}-drop").read_rounds()
    sampled = [client for line in rounds for client in line["clients"]]
    dropped = [client for client in sampled if "failure" in client]
    assert len(sampled) == 36 and 4 <= len(dropped) <= 18
    assert all(client["up"] == 0 and client["down"] > 0 for client in dropped)
    assert len(rounds) == 6


@pytest.mark.parametrize("kind", ["lora", "full", "sparse"])
def test_the_baselines_run_on_the_same_rounds(folder, tmp_path, kind):
    run = run_federation(folder, {}, tmp_path.name, method={"kind": kind})
    assert run.loop.evaluations.keys() == {"before", "end"}
    assert resolve_adapter(run.runs.store, "tiny").kind == kind


@pytest.mark.parametrize("drop_out", [0.0, 0.5])
def test_a_divergence_ends_the_run_with_the_rate_and_the_remedy(folder, tmp_path, drop_out):
    rates = {"learning_rate": 1e15, "sparse_learning_rate": 1e15}
    section = {"clients_per_round": 4, "drop_out": drop_out}
    with pytest.raises(TrainingFailed, match="lower the learning rate"):
        run_federation(folder, section, tmp_path.name, train=rates)
