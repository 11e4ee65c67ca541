"""Who takes part in a round, who is lost, and in which order rows come: from seed and round."""

from __future__ import annotations

from collections import Counter

from jobs.federation.sampling import derive_order_seed, drops_out, sample_clients


def test_a_round_draws_each_client_once_and_all_of_them_in_time():
    seen = Counter[int]()
    for number in range(200):
        clients = sample_clients(7, number, clients=20, count=5)
        assert len(set(clients)) == 5 and list(clients) == sorted(clients)
        seen.update(clients)
    assert set(seen) == set(range(20))
    # 50 times each on average, with a standard deviation of 6.
    assert max(seen.values()) < 80 and min(seen.values()) > 25


def test_more_than_there_are_is_all_of_them():
    assert sample_clients(0, 0, clients=3, count=10) == (0, 1, 2)


def test_the_same_seed_and_round_draw_the_same_clients_and_others_draw_others():
    assert sample_clients(1, 4, clients=99, count=9) == sample_clients(1, 4, clients=99, count=9)
    assert sample_clients(1, 4, clients=99, count=9) != sample_clients(1, 5, clients=99, count=9)
    assert sample_clients(1, 4, clients=99, count=9) != sample_clients(2, 4, clients=99, count=9)


def test_the_share_that_is_asked_for_drops_out():
    gone = sum(
        drops_out(3, number, client, probability=0.3)
        for number in range(100)
        for client in range(20)
    )
    assert 0.27 < gone / 2000 < 0.33
    assert not any(drops_out(3, number, 0, probability=0.0) for number in range(50))


def test_every_client_has_an_order_of_its_own_in_every_round():
    seeds = {derive_order_seed(0, number, client) for number in range(30) for client in range(30)}
    assert len(seeds) == 900
