"""A federation without Ray: what it equals, survives, refuses and records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.errors import DigestMismatch, InputError, TrainingFailed
from jobs.federation.averaging.payload import decode
from jobs.federation.sites.local_sites import LocalSites
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientTask,
    ClientUpdate,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site import Site
from jobs.federation.sites.sites_interface import TaskResult
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.open import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import load_newest_state
from jobs.train.comm.collectives import WorkerContext
from jobs.train.fine_tuning import make_fine_tuning
from tests.jobs.federation.runs import (
    KillAfter,
    Killed,
    Run,
    folder_with_rows,
    make_loop,
    make_training_request,
    move_request,
    request_of,
    run_federation,
    run_request,
)
from tests.long import cases
from tests.tiny import label_rows

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return folder_with_rows(tmp_path_factory.mktemp("federation"))


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
    train = {"batch_size": 2, "micro_batch_size": 1}
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


class ManipulatedSites(LocalSites):
    """Sites whose replies are changed on the way."""

    def __init__(self, *args: Any, change: Any) -> None:
        super().__init__(*args)
        self._change = change

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for reply, payload_bytes in super().run_tasks(tasks):
            yield self._change(reply), payload_bytes


def _run_manipulated(folder: Path, store: str, change: Any, **federation: Any) -> Run:
    request = request_of(folder, {"clients_per_round": 3, **federation}, store=store)
    sites = ManipulatedSites(
        request, open_store(request.spec.store), torch.device("cpu"), change=change
    )
    return run_request(request, sites)


def test_a_client_with_other_masks_ends_the_run_and_is_named(folder, tmp_path):
    def change(reply: ClientUpdate) -> ClientUpdate:
        return replace(reply, setup_digest="0" * 64)

    with pytest.raises(TrainingFailed, match=r"client \d in round 1: its masks .*000000000000"):
        _run_manipulated(folder, tmp_path.name, change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda a: replace(a, update=a.update[:-4]), "instead of", id="too short"),
        pytest.param(
            lambda a: replace(a, update=b"\xff" * len(a.update)), "not a finite number", id="nan"
        ),
        pytest.param(lambda a: replace(a, rows=-3), "-3 rows", id="negative rows"),
        pytest.param(lambda a: replace(a, rows=10**9), "rows", id="more rows than it has"),
        pytest.param(lambda a: replace(a, round=a.round + 1), "round", id="another round"),
        pytest.param(lambda a: replace(a, loss=float("nan")), "loss of nan", id="no loss"),
        pytest.param(lambda a: replace(a, tokens=-1), "-1 tokens", id="negative tokens"),
    ],
)
def test_an_invalid_update_is_dropped_and_the_round_counts(folder, tmp_path, change, reason):
    def change_first(reply: ClientUpdate | ClientFailure) -> ClientUpdate | ClientFailure:
        is_first = isinstance(reply, ClientUpdate) and reply.round == 0 and not changed
        if is_first:
            changed.append(reply)
        return change(reply) if is_first else reply

    changed: list[Any] = []
    run = _run_manipulated(folder, tmp_path.name, change_first)
    (event,) = run.read_events("client_dropped")
    assert reason in event["why"] and event["round"] == 1
    assert run.loop.step == 4


@pytest.mark.parametrize("client", [-1, 0, 99])
def test_an_update_of_a_client_without_a_task_ends_the_run(folder, tmp_path, client):
    """The update of an unknown client, or a second one: it must not count in the mean."""
    with pytest.raises(TrainingFailed, match=f"client {client} sent an update"):
        _run_manipulated(
            folder, tmp_path.name, lambda reply: replace(reply, client=client), clients=4
        )


class OtherMasks(LocalSites):
    """Sites that all have the same masks, but not those of the server."""

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        return replace(super().open_stage(stage, payload), setup_digest="0" * 64)

    def run_tasks(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for reply, payload_bytes in super().run_tasks(tasks):
            assert isinstance(reply, ClientUpdate)
            yield replace(reply, setup_digest="0" * 64), payload_bytes


def test_a_server_with_other_masks_than_all_its_sites_starts_no_round(folder, tmp_path):
    request = request_of(folder, {}, store=tmp_path.name)
    store = open_store(request.spec.store)
    loop = make_loop(request, OtherMasks(request, store, torch.device("cpu")))
    with pytest.raises(TrainingFailed, match="have the digest 000000000000, but the server's have"):
        loop.run()
    assert loop.step == 0


class ManipulatedScores(LocalSites):
    """Sites that change the scores of the first client on the way."""

    def __init__(self, *args: Any, change: Any) -> None:
        super().__init__(*args)
        self._change = change

    def score_clients(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        first, *others = super().score_clients(clients)
        return [self._change(first), *others]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda s: replace(s, rows=10**9), "1000000000 rows", id="more rows"),
        pytest.param(lambda s: replace(s, scores=s.scores[:-4]), "instead of", id="too short"),
        pytest.param(
            lambda s: replace(s, scores=b"\xff" * len(s.scores)), "not a finite number", id="nan"
        ),
    ],
)
def test_invalid_scores_are_dropped_and_the_others_choose(folder, tmp_path, change, reason):
    request = request_of(folder, {}, store=tmp_path.name, method={"mask": "gradient"})
    store = open_store(request.spec.store)
    sites = ManipulatedScores(request, store, torch.device("cpu"), change=change)
    (event,) = run_request(request, sites).read_events("client_dropped")
    assert reason in event["why"] and event["round"] == 0


@pytest.mark.parametrize("drop_out", [0.0, 0.5])
def test_a_divergence_ends_the_run_with_the_rate_and_the_remedy(folder, tmp_path, drop_out):
    rates = {"learning_rate": 1e15, "sparse_learning_rate": 1e15}
    section = {"clients_per_round": 4, "drop_out": drop_out}
    with pytest.raises(TrainingFailed, match="lower the learning rate"):
        run_federation(folder, section, tmp_path.name, train=rates)


@pytest.mark.parametrize("compress", ["none", "bf16", "int8", "topk"])
def test_the_ledger_has_every_byte_of_every_client_and_round(folder, tmp_path, compress):
    run = run_federation(folder, {"compress": compress}, tmp_path.name)
    rounds, traffic = run.read_rounds(), run.ledger["wire"]
    for stage in ("sparse", "low-rank"):
        clients = [
            client for line in rounds if line["stage"] == stage for client in line["clients"]
        ]
        assert len(clients) == 2 * 2
        for cause in ("down", "up"):
            assert sum(client[cause] for client in clients) == traffic[stage][cause]["bytes"]
    metrics, _ = run.runs.metrics.tail(0)
    steps = [line for line in metrics if "evaluation" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line["clients"] == line["answered"] == 2 for line in steps)


def test_a_random_mask_is_never_sent_and_a_scored_one_once(folder, tmp_path):
    random = run_federation(folder, {}, f"{tmp_path.name}-random")
    assert set(random.ledger["wire"]["sparse"]) == {"install", "evaluation", "down", "up"}
    section = {"clients": 3, "clients_per_round": 3}
    scored = run_federation(folder, section, f"{tmp_path.name}-scored", method={"mask": "gradient"})
    masks = scored.ledger["wire"]["sparse"]["masks"]
    # To the site that opens the stage, and to each client with its first task.
    assert masks["calls"] == 4
    assert scored.ledger["wire"]["sparse"]["calibration"]["calls"] == 3


def test_the_committed_adapter_has_the_weights_of_the_last_round(folder, tmp_path):
    run = run_federation(folder, {}, tmp_path.name)
    store = run.runs.store
    manifest = resolve_adapter(store, "tiny")
    assert manifest.ledger["clients"] == 4
    # As in the plan, these are the steps of a client that is sampled in every round.
    assert (manifest.ledger["rounds"], manifest.ledger["steps"]) == (4, 8)
    saved = load_file(pull(store, manifest, tmp_path / "adapter") / "adapter_model.safetensors")
    for name, tensor in run.weights.items():
        if name.endswith(".b_OR"):
            layer = name.removesuffix(".b_OR")
            factor = next(saved[key] for key in saved if layer in key and "lora_B" in key)
            assert torch.equal(factor.float(), tensor)


@pytest.mark.parametrize("kind", ["lora", "full", "sparse"])
def test_the_baselines_run_on_the_same_rounds(folder, tmp_path, kind):
    run = run_federation(folder, {}, tmp_path.name, method={"kind": kind})
    assert run.loop.evaluations.keys() == {"before", "end"}
    assert resolve_adapter(run.runs.store, "tiny").kind == kind


def test_a_frozen_a_is_not_sent_but_is_in_the_adapter(folder, tmp_path):
    lora = {"kind": "lora"}
    trained = run_federation(folder, {}, f"{tmp_path.name}-lora", method=lora)
    frozen = run_federation(folder, {"freeze_a": True}, f"{tmp_path.name}-ffa", method=lora)
    sent = [run.ledger["wire"]["low-rank"]["up"]["bytes"] for run in (trained, frozen)]
    assert sent[1] < 0.75 * sent[0]
    store = frozen.runs.store
    adapter = pull(store, resolve_adapter(store, "tiny"), tmp_path / "adapter")
    saved = load_file(adapter / "adapter_model.safetensors")
    assert all(bool(tensor.any()) for name, tensor in saved.items() if "lora_A" in name)


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
                stage=0, round=number, client=0, learning_rate=1e-2, weights=info.initial_weights
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
        learning_rate=1e-2,
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
    site.run_task(
        ClientTask(stage=0, round=0, client=1, learning_rate=1e-2, weights=info.initial_weights)
    )
    assert site.get_residuals(0).keys() == {1}
    # The server is a stage further and this site had no task in it: its layout is another one.
    assert site.get_residuals(1) == {}


def test_the_rounds_are_written_as_json_lines(folder, tmp_path):
    rounds = run_federation(folder, {}, tmp_path.name).read_rounds()
    assert json.loads(json.dumps(rounds))[0]["clients"][0].keys() >= {"name", "up", "down", "loss"}


def test_held_out_rows_without_a_target_are_reported(folder, tmp_path):
    class NoTargets(LocalSites):
        def evaluate(self, weights: bytes) -> list[EvaluationSums]:
            return [replace(sums, targets=0.0) for sums in super().evaluate(weights)]

    request = request_of(folder, {}, store=tmp_path.name)
    sites = NoTargets(request, open_store(request.spec.store), torch.device("cpu"))
    with pytest.raises(InputError, match="no eval row has a target within 64 tokens"):
        run_request(request, sites)


def test_a_site_refuses_another_partition_than_that_of_its_request(folder, tmp_path):
    request = request_of(folder, {}, store=tmp_path.name)
    with pytest.raises(DigestMismatch):
        make_loop(replace(request, partition="0" * 64))
