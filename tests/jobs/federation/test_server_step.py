"""The server's step: weighted means, exact where they can be, and blind to the order of answers."""

from __future__ import annotations

import pytest
import torch

from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.federation.averaging.server_step import ServerOptimizer, WeightedUpdate
from jobs.train.engine.local_steps import OUTER_MOMENTUM, OUTER_RATE

LAYOUT = VectorLayout(("x.a_RI", "x.b_OR", "head"), ((2, 3), (4, 2), (5,)))


def _told(*weights: float) -> list[WeightedUpdate]:
    made = torch.Generator().manual_seed(0)
    return [
        WeightedUpdate(client, weight, torch.randn(LAYOUT.count, generator=made))
        for client, weight in enumerate(weights)
    ]


@pytest.fixture
def before_n() -> torch.Tensor:
    return torch.randn(LAYOUT.count, generator=torch.Generator().manual_seed(9))


def test_the_mean_is_weighted_by_the_clients_rows(before_n):
    told = _told(1, 3)
    found = ServerOptimizer("fedavg", LAYOUT).step(before_n, told)
    torch.testing.assert_close(found, before_n + (told[0].delta_n + 3 * told[1].delta_n) / 4)


@pytest.mark.parametrize("how", ["fedavg", "nesterov", "product"])
def test_the_order_of_answers_changes_no_bit(how, before_n):
    told = _told(5, 1, 7, 2)
    one = ServerOptimizer(how, LAYOUT).step(before_n, told)
    assert torch.equal(one, ServerOptimizer(how, LAYOUT).step(before_n, told[::-1]))


@pytest.mark.parametrize("how", ["fedavg", "nesterov", "product"])
def test_a_round_without_answers_changes_nothing(how, before_n):
    assert torch.equal(ServerOptimizer(how, LAYOUT).step(before_n, []), before_n)


def test_nesterov_keeps_a_momentum_from_round_to_round(before_n):
    averaging, (told,) = ServerOptimizer("nesterov", LAYOUT), _told(1)
    first = averaging.step(before_n, [told])
    step = OUTER_RATE * (1 + OUTER_MOMENTUM) * told.delta_n
    torch.testing.assert_close(first, before_n + step)
    second = averaging.step(first, [told])
    assert (second - first).norm() > (first - before_n).norm()


def test_the_mean_product_is_the_mean_of_the_products_where_the_rank_holds_it(before_n):
    # Both clients kept A, so that the mean of B A is (mean B) A: of rank 2.
    told = _told(1, 3)
    for one in told:
        LAYOUT.split_by_name(one.delta_n)["x.a_RI"].zero_()
    found = LAYOUT.split_by_name(ServerOptimizer("product", LAYOUT).step(before_n, told))
    wanted = torch.zeros(4, 3)
    for one in told:
        its = LAYOUT.split_by_name(before_n + one.delta_n)
        wanted += one.weight / 4 * its["x.b_OR"] @ its["x.a_RI"]
    torch.testing.assert_close(found["x.b_OR"] @ found["x.a_RI"], wanted, atol=1e-5, rtol=1e-5)
    plain = LAYOUT.split_by_name(ServerOptimizer("fedavg", LAYOUT).step(before_n, told))
    assert torch.equal(found["head"], plain["head"])


def test_a_flat_vector_is_cut_and_joined_again_without_a_change(before_n):
    assert torch.equal(LAYOUT.flatten(LAYOUT.split_by_name(before_n)), before_n)


def test_what_is_agreed_on_is_names_shapes_and_masks():
    other = VectorLayout(LAYOUT.names, ((3, 2), (4, 2), (5,)))
    assert len({LAYOUT.digest(), other.digest(), LAYOUT.digest("masks")}) == 3
