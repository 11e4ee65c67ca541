"""A federation without Ray: what it equals, what it survives, what it refuses, what it bills."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.errors import InputError, TrainingFailed
from jobs.federation.averaging.payload import decode
from jobs.federation.round_log import open_round_log
from jobs.federation.server import FederationServer
from jobs.federation.sites.client_rows import make_request_partition
from jobs.federation.sites.local_sites import LocalSites, TaskResult
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
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.base import open_store
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import load_newest_state
from jobs.train.comm.collectives import WorkerContext
from jobs.train.loop import FineTuner
from tests.jobs.federation.runs import (
    RUN,
    federation_of,
    folder_with_rows,
    request_of,
    weights_of,
)
from tests.long import cases
from tests.tiny import label_rows

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return folder_with_rows(tmp_path_factory.mktemp("federation"))


class Killed(Exception):
    """The server is gone."""


def _ended(
    folder: Path, federation: dict[str, Any], store: str, **changes: Any
) -> FederationServer:
    made = federation_of(request_of(folder, federation, store=store, **changes))
    made.run()
    return made


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
    apart = _ended(tmp_path, files, "apart", **sparse, **many, train=PLAIN["train"])
    whole = {**SGD, "clients": 1, "clients_per_round": 1, "rounds": 6}
    one = {**PLAIN["train"], "batch_size": 16, "micro_batch_size": 16}
    together = _ended(tmp_path, whole, "together", **sparse, **many, train=one)
    assert (weights_of(together) - weights_of(apart)).abs().max() <= 1e-6
    assert weights_of(apart).abs().max() > 1e-3


def test_clients_with_the_same_rows_come_to_what_one_of_them_does_alone(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    for client in range(3):
        label_rows(tmp_path / "clients" / f"{client}.jsonl", 4)
    label_rows(tmp_path / "alone.jsonl", 4)
    label_rows(tmp_path / "eval.jsonl", 8)
    base = {"optimizer": "sgd", "local_steps": 3, "rounds": 2, "clients": None}
    method = {"method": {"kind": "sparse"}, "train": {"batch_size": 4, "micro_batch_size": 4}}
    many = _ended(
        tmp_path, {**base, "partition": "files", "clients_per_round": 3}, "many",
        data={"train": str(tmp_path / "clients")}, **method,
    )  # fmt: skip
    alone = _ended(
        tmp_path, {**base, "partition": "files", "clients_per_round": 1}, "alone",
        data={"train": str(tmp_path / "alone.jsonl")}, **method,
    )  # fmt: skip
    assert (weights_of(many) - weights_of(alone)).abs().max() <= 1e-6


def test_one_round_of_one_client_is_a_plain_training_of_as_many_steps(folder, tmp_path):
    """Two rows, one a micro-batch: their sum is the same in either order, even to AdamW."""
    shutil.copytree(folder / "model", tmp_path / "model")
    for name in ("train", "eval"):
        label_rows(tmp_path / f"{name}.jsonl", 2)
    train = {"batch_size": 2, "micro_batch_size": 1, "steps": 5}
    request = request_of(
        tmp_path,
        {"clients": 1, "clients_per_round": 1, "rounds": 1, "local_steps": 5},
        method={"kind": "sparse"},
        train=train,
    )
    federation = federation_of(request)
    federation.run()
    plain = replace(request, run_id="plain", federation=None)
    runs = RunStore(open_store(request.spec.store), "plain")
    training = FineTuner(plain, runs, WorkerContext(0, 1, torch.device("cpu")))
    training.run()
    state = load_newest_state(runs)
    assert state is not None
    told = _last(federation)
    assert told.keys() == state.weights.keys()
    assert all((told[name] - state.weights[name]).abs().max() <= 1e-6 for name in told)


def _last(federation: FederationServer) -> Mapping[str, torch.Tensor]:
    """What the last checkpoint holds, by name."""
    state = load_newest_state(federation.runs)
    assert state is not None
    return state.weights


class KilledAfter(FederationServer):
    """A server that dies between two rounds."""

    dies = 0

    def _after_round(self, *told: Any) -> None:
        super()._after_round(*told)
        if self.round == self.dies:
            self.saver.wait()
            raise Killed


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
def test_a_server_killed_between_rounds_goes_on_to_the_same_bits(
    folder, tmp_path, dies, federation, changes
):
    whole = {"rounds": 4, "clients_per_round": 3, **federation}
    request = request_of(folder, whole, store=f"{tmp_path.name}-once", **changes)
    once = federation_of(request)
    once.run()
    again = replace(
        request, spec=request.spec.model_copy(update={"store": f"file://{tmp_path / 'twice'}"})
    )
    first = federation_of(again)
    first.__class__ = KilledAfter
    first.dies = dies  # type: ignore[attr-defined]
    with pytest.raises(Killed):
        first.run()
    second = federation_of(again)
    second.run()
    assert torch.equal(weights_of(second), weights_of(once))
    assert second.evaluations == once.evaluations
    wire = [made.ledger["wire"]["sparse"]["down"]["bytes"] for made in (second, once)]
    assert wire[0] == wire[1]


def test_a_third_of_the_clients_may_drop_out_of_every_round(folder, tmp_path):
    made = _ended(folder, {"clients": 12, "clients_per_round": 6, "rounds": 6, "drop_out": 0.3},
                  f"{tmp_path.name}-drop")  # fmt: skip
    rounds, _ = open_round_log(made.runs).tail(0)
    asked = [client for one in rounds for client in one["clients"]]
    gone = [client for client in asked if "left" in client]
    assert len(asked) == 36 and 4 <= len(gone) <= 18
    assert all(client["up"] == 0 and client["down"] > 0 for client in gone)
    assert len(rounds) == 6


class Lying(LocalSites):
    """Sites whose answers are changed on the way."""

    def __init__(self, *told: Any, change: Any) -> None:
        super().__init__(*told)
        self._change = change

    def play(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for answer, sent in super().play(tasks):
            yield self._change(answer), sent


def _lied_to(folder: Path, store: str, change: Any, **federation: Any) -> FederationServer:
    request = request_of(folder, {"clients_per_round": 3, **federation}, store=store)
    opened = open_store(request.spec.store)
    sites = Lying(request, opened, torch.device("cpu"), change=change)
    return FederationServer(request, RunStore(opened, RUN), sites, make_request_partition(request))


def test_a_client_with_other_masks_ends_the_run_and_is_named(folder, tmp_path):
    made = _lied_to(folder, tmp_path.name, lambda told: replace(told, setup_digest="0" * 64))
    with pytest.raises(TrainingFailed, match=r"client \d in round 1: its masks .*000000000000"):
        made.run()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda a: replace(a, update=a.update[:-4]), "instead of", id="too short"),
        pytest.param(lambda a: replace(a, update=b"\xff" * len(a.update)), "no number", id="nan"),
        pytest.param(lambda a: replace(a, rows=-3), "-3 rows", id="negative rows"),
        pytest.param(lambda a: replace(a, rows=10**9), "rows", id="more rows than it has"),
        pytest.param(lambda a: replace(a, round=a.round + 1), "round", id="another round"),
        pytest.param(lambda a: replace(a, loss=float("nan")), "loss of nan", id="no loss"),
        pytest.param(lambda a: replace(a, tokens=-1), "-1 tokens", id="negative tokens"),
    ],
)
def test_an_answer_that_can_t_be_is_left_out_and_the_round_counts(folder, tmp_path, change, why):
    def changed(answer: ClientUpdate | ClientFailure) -> ClientUpdate | ClientFailure:
        first = isinstance(answer, ClientUpdate) and answer.round == 0 and not lied
        if first:
            lied.append(answer)
        return change(answer) if first else answer

    lied: list[Any] = []
    made = _lied_to(folder, tmp_path.name, changed)
    made.run()
    events, _ = made.runs.events.tail(0)
    (left,) = [event for event in events if event["event"] == "left out"]
    assert why in left["why"] and left["round"] == 1
    assert made.round == 4


@pytest.mark.parametrize("client", [-1, 0, 99])
def test_an_answer_of_a_client_that_is_not_awaited_ends_the_run(folder, tmp_path, client):
    """Nobody's, or twice the same one's: it would weigh in a mean that it has no part in."""
    made = _lied_to(folder, tmp_path.name, lambda told: replace(told, client=client), clients=4)
    with pytest.raises(TrainingFailed, match=f"client {client} answered, who was not asked"):
        made.run()


class OtherMasks(LocalSites):
    """Sites that agree with one another, on masks that are not their server's."""

    def open_stage(self, stage: int, kit: StagePayload) -> StageInfo:
        return replace(super().open_stage(stage, kit), setup_digest="0" * 64)

    def play(self, tasks: Sequence[ClientTask]) -> Iterator[TaskResult]:
        for answer, sent in super().play(tasks):
            assert isinstance(answer, ClientUpdate)
            yield replace(answer, setup_digest="0" * 64), sent


def test_a_server_with_other_masks_than_all_its_sites_does_not_begin(folder, tmp_path):
    request = request_of(folder, {}, store=tmp_path.name)
    opened = open_store(request.spec.store)
    sites = OtherMasks(request, opened, torch.device("cpu"))
    made = FederationServer(request, RunStore(opened, RUN), sites, make_request_partition(request))
    with pytest.raises(TrainingFailed, match="have the digest 000000000000, the server's"):
        made.run()
    assert made.round == 0


class LyingScores(LocalSites):
    """Sites whose first client of those that score is changed on the way."""

    change: Any = None

    def score(self, clients: Sequence[int]) -> list[ClientScores | ClientFailure]:
        first, *others = super().score(clients)
        return [self.change(first), *others]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(lambda s: replace(s, rows=10**9), "1000000000 rows", id="more rows"),
        pytest.param(lambda s: replace(s, scores=s.scores[:-4]), "instead of", id="too short"),
        pytest.param(lambda s: replace(s, scores=b"\xff" * len(s.scores)), "no number", id="nan"),
    ],
)
def test_scores_that_can_t_be_are_left_out_and_the_others_choose(folder, tmp_path, change, why):
    request = request_of(folder, {}, store=tmp_path.name, method={"mask": "gradient"})
    opened = open_store(request.spec.store)
    sites = LyingScores(request, opened, torch.device("cpu"))
    sites.change = change
    made = FederationServer(request, RunStore(opened, RUN), sites, make_request_partition(request))
    made.run()
    events, _ = made.runs.events.tail(0)
    (left,) = [event for event in events if event["event"] == "left out"]
    assert why in left["why"] and left["round"] == 0


@pytest.mark.parametrize("drop_out", [0.0, 0.5])
def test_numbers_that_end_end_the_run_with_the_rate_and_the_way_out(folder, tmp_path, drop_out):
    hot = {"learning_rate": 1e30, "sparse_learning_rate": 1e30}
    made = federation_of(
        request_of(
            folder, {"clients_per_round": 4, "drop_out": drop_out}, store=tmp_path.name, train=hot
        )
    )
    with pytest.raises(TrainingFailed, match="lower the learning rate"):
        made.run()


@pytest.mark.parametrize("compress", ["none", "bf16", "int8", "topk"])
def test_the_ledger_has_every_byte_of_every_client_and_round(folder, tmp_path, compress):
    made = _ended(folder, {"compress": compress}, f"{tmp_path.name}")
    rounds, _ = open_round_log(made.runs).tail(0)
    wire = made.ledger["wire"]
    for stage in ("sparse", "low-rank"):
        clients = [c for one in rounds if one["stage"] == stage for c in one["clients"]]
        assert len(clients) == 2 * 2
        for cause in ("down", "up"):
            assert sum(client[cause] for client in clients) == wire[stage][cause]["bytes"]
    metrics, _ = made.runs.metrics.tail(0)
    steps = [metric for metric in metrics if "evaluation" not in metric]
    assert [metric["step"] for metric in steps] == [1, 2, 3, 4]
    assert all(metric["clients"] == metric["answered"] == 2 for metric in steps)


def test_a_random_mask_travels_as_nothing_and_a_scored_one_is_told_once(folder, tmp_path):
    random = _ended(folder, {}, f"{tmp_path.name}-random")
    assert set(random.ledger["wire"]["sparse"]) == {"install", "evaluation", "down", "up"}
    wanted = {"clients": 3, "clients_per_round": 3}
    scored = _ended(folder, wanted, f"{tmp_path.name}-scored", method={"mask": "gradient"})
    masks = scored.ledger["wire"]["sparse"]["masks"]
    # The site that opens the stage, and each client with its first task.
    assert masks["calls"] == 4
    assert scored.ledger["wire"]["sparse"]["calibration"]["calls"] == 3


def test_the_committed_adapter_is_what_the_last_round_left(folder, tmp_path):
    made = _ended(folder, {}, tmp_path.name)
    store = made.runs.store
    manifest = resolve_adapter(store, "tiny")
    assert manifest.ledger["clients"] == 4
    # Steps as the plan has them: those of a client that every round draws.
    assert (manifest.ledger["rounds"], manifest.ledger["steps"]) == (4, 8)
    pulled = pull(store, manifest, tmp_path / "adapter")
    saved = load_file(pulled / "adapter_model.safetensors")
    for name, tensor in _last(made).items():
        if name.endswith(".b_OR"):
            layer = name.removesuffix(".b_OR")
            found = next(t for key, t in saved.items() if layer in key and "lora_B" in key)
            assert torch.equal(found.float(), tensor)


@pytest.mark.parametrize("kind", ["lora", "full", "sparse"])
def test_the_baselines_run_on_the_same_rounds(folder, tmp_path, kind):
    made = _ended(folder, {}, tmp_path.name, method={"kind": kind})
    assert made.evaluations.keys() == {"before", "end"}
    assert resolve_adapter(made.runs.store, "tiny").kind == kind


def test_a_frozen_a_does_not_travel_and_is_in_the_adapter(folder, tmp_path):
    whole = _ended(folder, {}, f"{tmp_path.name}-lora", method={"kind": "lora"})
    frozen = _ended(folder, {"freeze_a": True}, f"{tmp_path.name}-ffa", method={"kind": "lora"})
    sent = [made.ledger["wire"]["low-rank"]["up"]["bytes"] for made in (whole, frozen)]
    assert sent[1] < 0.75 * sent[0]
    pulled = pull(
        frozen.runs.store, resolve_adapter(frozen.runs.store, "tiny"), tmp_path / "adapter"
    )
    saved = load_file(pulled / "adapter_model.safetensors")
    assert all(bool(t.any()) for name, t in saved.items() if "lora_A" in name)


def test_error_feedback_sends_in_the_end_what_it_held_back(folder, tmp_path):
    request = request_of(
        folder, {"compress": "topk", "topk": 0.2, "clients": 1, "clients_per_round": 1},
        store=tmp_path.name, method={"kind": "sparse"},
    )  # fmt: skip
    sites = LocalSites(request, open_store(request.spec.store), torch.device("cpu"))
    opened = sites.open_stage(0, StagePayload())
    sizes, count = opened.layout.sizes, opened.layout.count
    sent = torch.zeros(count)
    task = ClientTask(
        stage=0, round=0, client=0, learning_rate=1e-2, weights=opened.initial_weights
    )
    for number in range(3):
        ((answer, _),) = sites.play([replace(task, round=number)])
        assert isinstance(answer, ClientUpdate)
        sent += decode(answer.update, "topk", sizes, 0.2)
    held = decode(sites.collect_residuals()[0], "none", sizes, 1.0)
    exact = request_of(
        folder, {"clients": 1, "clients_per_round": 1}, store=tmp_path.name,
        method={"kind": "sparse"},
    )  # fmt: skip
    plain = LocalSites(exact, open_store(request.spec.store), torch.device("cpu"))
    plain.open_stage(0, StagePayload())
    whole = torch.zeros(count)
    for number in range(3):
        ((answer, _),) = plain.play([replace(task, round=number)])
        assert isinstance(answer, ClientUpdate)
        whole += decode(answer.update, "none", sizes, 1.0)
    torch.testing.assert_close(sent + held, whole, atol=1e-6, rtol=1e-5)


def test_what_a_client_holds_back_outlives_a_round_that_it_is_left_out_of(folder, tmp_path):
    """Given back to a new site after a resume, in a round in which its client drops out."""
    request = request_of(folder, {"compress": "topk"}, store=tmp_path.name)
    sites = LocalSites(request, open_store(request.spec.store), torch.device("cpu"))
    opened = sites.open_stage(0, StagePayload())
    held = b"\x00\x00\x80\x3f" * opened.layout.count
    task = ClientTask(
        stage=0,
        round=0,
        client=1,
        learning_rate=1e-2,
        weights=opened.initial_weights,
        residual=held,
    )
    ((answer, _),) = sites.play([replace(task, drops_out=True)])
    assert isinstance(answer, ClientFailure)
    assert sites.collect_residuals() == {1: held}


def test_what_waits_with_a_client_ends_with_its_stage(folder, tmp_path):
    request = request_of(folder, {"compress": "topk"}, store=tmp_path.name)
    site = Site(request, open_store(request.spec.store), torch.device("cpu"))
    opened = site.open(0, StagePayload())
    site.play(
        ClientTask(stage=0, round=0, client=1, learning_rate=1e-2, weights=opened.initial_weights)
    )
    assert site.residuals(0).keys() == {1}
    # The server is a stage further, where this site has had no task: its layout is another.
    assert site.residuals(1) == {}


def test_the_rounds_are_told_as_json_lines(folder, tmp_path):
    made = _ended(folder, {}, tmp_path.name)
    rounds, _ = open_round_log(made.runs).tail(0)
    assert json.loads(json.dumps(rounds))[0]["clients"][0].keys() >= {"name", "up", "down", "loss"}


def test_held_out_rows_without_a_target_are_said_and_no_arithmetic_error(folder, tmp_path):
    request = request_of(folder, {}, store=tmp_path.name)
    opened = open_store(request.spec.store)

    class Targetless(LocalSites):
        def evaluate(self, weights: bytes) -> list[EvaluationSums]:
            return [replace(one, targets=0.0) for one in super().evaluate(weights)]

    sites = Targetless(request, opened, torch.device("cpu"))
    made = FederationServer(request, RunStore(opened, RUN), sites, make_request_partition(request))
    with pytest.raises(InputError, match="no row of eval has a target within 64 tokens"):
        made.run()
