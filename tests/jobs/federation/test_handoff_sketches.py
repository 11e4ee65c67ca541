"""The hand-off of a federation: clients send sums over their tokens, and no rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from jobs.errors import TrainingFailed
from jobs.federation.averaging.sketches import explain_unusable_sketches, fill_sketches
from jobs.federation.sites.local_sites import LocalSites
from jobs.federation.sites.messages import ClientSketches
from jobs.store.open import open_store
from slora.handoff.linear_update import DenseUpdate
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.handoff.sketch_size import count_sketch_numbers
from tests.jobs.federation.runs import make_loop, request_of, run_request

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(300)]

SECTION = {"clients": 4, "clients_per_round": 2, "rounds": 2, "local_steps": 2}


class SpoilingSites(LocalSites):
    """A site whose clients send sketches of NaN, from number `first` on."""

    def __init__(self, *args, first: int) -> None:
        super().__init__(*args)
        self.first = first

    def sketch_clients(self, clients, weights):
        replies = super().sketch_clients(clients, weights)
        nan = torch.tensor(float("nan")).numpy().tobytes()
        return [
            dataclasses.replace(reply, sketches=nan * (len(reply.sketches) // 4))
            if index >= self.first
            else reply
            for index, reply in enumerate(replies)
        ]


@pytest.mark.parametrize("norm", ["outputs", "loss"])
def test_clients_send_sketches_of_the_planned_size_and_the_shares_are_recorded(
    folder, tmp_path, norm
):
    changes = {"method": {"handoff": {"norm": norm}}}
    request = request_of(folder, SECTION, store=f"{tmp_path.name}-{norm}", **changes)
    run = run_request(request)
    down = run.ledger["wire"]["sparse"]["down"]
    gradients = norm == "loss"
    numbers = (
        count_sketch_numbers(shape, request.spec.method.rank, gradients=gradients)
        for shape in run.loop.trainer.sites.get_shapes().values()
    )
    sent = SECTION["clients_per_round"] * (down["bytes"] // down["calls"] + 4 * sum(numbers))
    assert run.ledger["wire"]["low-rank"]["hand-off"]["bytes"] == sent
    assert 0 < run.ledger["handoff_energy_share"] < run.ledger["handoff_output_share"] <= 1
    events, _ = run.runs.events.tail(0)
    (event,) = (event for event in events if event["event"] == "handoff")
    assert {layer["norm_kind"] for layer in event["layers"]} == {norm}
    assert all(0 < layer["output_share"] <= 1 for layer in event["layers"])


def test_a_client_with_an_invalid_sketch_is_left_out(folder, tmp_path):
    request = request_of(folder, SECTION, store=f"{tmp_path.name}-one-invalid")
    sites = SpoilingSites(request, open_store(request.spec.store), torch.device("cpu"), first=1)
    run = run_request(request, sites)
    events, _ = run.runs.events.tail(0)
    assert [event["why"] for event in events if event["event"] == "client_dropped"] == [
        "a sketch is not a finite number"
    ]


def test_a_handoff_without_any_valid_sketch_fails_with_the_fix(folder, tmp_path):
    request = request_of(folder, SECTION, store=f"{tmp_path.name}-all-invalid")
    sites = SpoilingSites(request, open_store(request.spec.store), torch.device("cpu"), first=0)
    with pytest.raises(TrainingFailed, match=r"method\.handoff\.norm: weights"):
        make_loop(request, sites).run()


def make_sketches() -> dict[str, LayerSketch]:
    update = DenseUpdate(torch.eye(6, 5))
    return {name: start_sketch(update, rank=2, seed=0, name=name) for name in ("a", "b")}


def test_the_sum_of_clients_sketches_is_that_of_all_their_tokens():
    torch.manual_seed(0)
    x_NI, replies, complete = torch.randn(7, 5), [], make_sketches()
    for client, rows in enumerate((slice(0, 3), slice(3, 7))):
        sketches = make_sketches()
        for sketch in sketches.values():
            sketch.add_inputs(x_NI[rows])
        packed = torch.cat([sketch.pack() for sketch in sketches.values()])
        replies.append(ClientSketches(client, packed.numpy().tobytes()))
        assert explain_unusable_sketches(replies[-1], sketches) is None
    total = make_sketches()
    fill_sketches(replies[::-1], total)
    for name, sketch in complete.items():
        sketch.add_inputs(x_NI)
        torch.testing.assert_close(total[name].inputs_IK, sketch.inputs_IK)
        assert total[name].facts.tolist() == [7, 0]
    short = ClientSketches(2, replies[0].sketches[:-4])
    assert "bytes of sketches instead of" in (explain_unusable_sketches(short, total) or "")
