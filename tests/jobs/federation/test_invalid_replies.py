"""What a server does with replies that no healthy site sends: drop them, or end the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.errors import DigestMismatch, InputError, TrainingFailed
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
from jobs.federation.sites.sites_interface import TaskResult
from jobs.store.open import open_store
from tests.jobs.federation.runs import (
    Run,
    make_loop,
    request_of,
    run_request,
)

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]


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


def test_held_out_rows_without_a_target_are_reported(folder, tmp_path):
    class NoTargets(LocalSites):
        def evaluate(self, weights: bytes) -> list[EvaluationSums]:
            replies = super().evaluate(weights)
            return [replace(sums, values=(sums.values[0], 0.0)) for sums in replies]

    request = request_of(folder, {}, store=tmp_path.name)
    sites = NoTargets(request, open_store(request.spec.store), torch.device("cpu"))
    with pytest.raises(InputError, match="no eval row has a target within 64 tokens"):
        run_request(request, sites)


def test_a_site_refuses_another_partition_than_that_of_its_request(folder, tmp_path):
    request = request_of(folder, {}, store=tmp_path.name)
    with pytest.raises(DigestMismatch):
        make_loop(replace(request, partition="0" * 64))
