"""The server's step: weighted means that do not depend on the order of updates."""

from __future__ import annotations

import pytest
import torch

from jobs.federation.averaging.flat_layout import VectorLayout
from jobs.federation.averaging.server_step import ServerOptimizer, WeightedUpdate
from jobs.train.engine.local_steps import OUTER_MOMENTUM, OUTER_RATE

LAYOUT = VectorLayout(("x.a_RI", "x.b_OR", "head"), ((2, 3), (4, 2), (5,)))


def _make_updates(*weights: float) -> list[WeightedUpdate]:
    generator = torch.Generator().manual_seed(0)
    return [
        WeightedUpdate(client, weight, torch.randn(LAYOUT.count, generator=generator))
        for client, weight in enumerate(weights)
    ]


@pytest.fixture
def before_n() -> torch.Tensor:
    return torch.randn(LAYOUT.count, generator=torch.Generator().manual_seed(9))


def test_the_mean_is_weighted_by_the_clients_rows(before_n):
    updates = _make_updates(1, 3)
    averaged = ServerOptimizer("fedavg", LAYOUT).step(before_n, updates)
    torch.testing.assert_close(
        averaged, before_n + (updates[0].delta_n + 3 * updates[1].delta_n) / 4
    )


@pytest.mark.parametrize("method", ["fedavg", "nesterov", "product"])
def test_the_order_of_updates_changes_no_bit(method, before_n):
    updates = _make_updates(5, 1, 7, 2)
    after_n = ServerOptimizer(method, LAYOUT).step(before_n, updates)
    assert torch.equal(after_n, ServerOptimizer(method, LAYOUT).step(before_n, updates[::-1]))


@pytest.mark.parametrize("method", ["fedavg", "nesterov", "product"])
def test_a_round_without_updates_changes_nothing(method, before_n):
    assert torch.equal(ServerOptimizer(method, LAYOUT).step(before_n, []), before_n)


def test_nesterov_keeps_a_momentum_from_round_to_round(before_n):
    optimizer, (update,) = ServerOptimizer("nesterov", LAYOUT), _make_updates(1)
    first = optimizer.step(before_n, [update])
    step = OUTER_RATE * (1 + OUTER_MOMENTUM) * update.delta_n
    torch.testing.assert_close(first, before_n + step)
    second = optimizer.step(first, [update])
    assert (second - first).norm() > (first - before_n).norm()


def test_the_mean_product_is_exact_if_the_rank_allows_it(before_n):
    # Both clients have the same A, so the mean of B A is (mean B) A, of rank 2.
    updates = _make_updates(1, 3)
    for update in updates:
        LAYOUT.split_by_name(update.delta_n)["x.a_RI"].zero_()
    averaged = LAYOUT.split_by_name(ServerOptimizer("product", LAYOUT).step(before_n, updates))
    expected = torch.zeros(4, 3)
    for update in updates:
        tensors = LAYOUT.split_by_name(before_n + update.delta_n)
        expected += update.weight / 4 * tensors["x.b_OR"] @ tensors["x.a_RI"]
    torch.testing.assert_close(
        averaged["x.b_OR"] @ averaged["x.a_RI"], expected, atol=1e-5, rtol=1e-5
    )
    fedavg = LAYOUT.split_by_name(ServerOptimizer("fedavg", LAYOUT).step(before_n, updates))
    assert torch.equal(averaged["head"], fedavg["head"])


def test_splitting_and_flattening_a_vector_changes_nothing(before_n):
    assert torch.equal(LAYOUT.flatten(LAYOUT.split_by_name(before_n)), before_n)


def test_the_setup_digest_depends_on_names_shapes_and_masks():
    other = VectorLayout(LAYOUT.names, ((3, 2), (4, 2), (5,)))
    assert len({LAYOUT.digest(), other.digest(), LAYOUT.digest("masks")}) == 3
