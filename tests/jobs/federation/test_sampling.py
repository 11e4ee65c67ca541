"""Sampled clients, drop-outs and the order of rows depend only on seed and round."""

from __future__ import annotations

from collections import Counter

from jobs.federation.sampling import derive_order_seed, drops_out, sample_clients


def test_a_round_samples_a_client_at_most_once_and_all_in_time():
    counts = Counter[int]()
    for number in range(200):
        clients = sample_clients(7, number, clients=20, count=5)
        assert len(set(clients)) == 5 and list(clients) == sorted(clients)
        counts.update(clients)
    assert set(counts) == set(range(20))
    # 50 times each on average, with a standard deviation of 6.
    assert max(counts.values()) < 80 and min(counts.values()) > 25


def test_sampling_more_clients_than_exist_gives_all():
    assert sample_clients(0, 0, clients=3, count=10) == (0, 1, 2)


def test_only_seed_and_round_decide_which_clients_are_sampled():
    assert sample_clients(1, 4, clients=99, count=9) == sample_clients(1, 4, clients=99, count=9)
    assert sample_clients(1, 4, clients=99, count=9) != sample_clients(1, 5, clients=99, count=9)
    assert sample_clients(1, 4, clients=99, count=9) != sample_clients(2, 4, clients=99, count=9)


def test_the_given_share_of_clients_drops_out():
    dropped = sum(
        drops_out(3, number, client, probability=0.3)
        for number in range(100)
        for client in range(20)
    )
    assert 0.27 < dropped / 2000 < 0.33
    assert not any(drops_out(3, number, 0, probability=0.0) for number in range(50))


def test_the_order_of_rows_differs_by_client_and_round():
    seeds = {derive_order_seed(0, number, client) for number in range(30) for client in range(30)}
    assert len(seeds) == 900
