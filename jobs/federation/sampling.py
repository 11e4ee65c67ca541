"""Sample the clients of a round and those that drop out, from the seed and the round alone.

The result never depends on who calls or when, so a resumed federation repeats the same rounds.
"""

from __future__ import annotations

from slora.masks.mask import draw_distinct


def sample_clients(seed: int, round_index: int, *, clients: int, count: int) -> tuple[int, ...]:
    """Sample the clients of a round without replacement and return them in ascending order."""
    sampled = draw_distinct(
        min(count, clients), clients, key=f"{seed}\0round {round_index}\0clients"
    )
    return tuple(int(client) for client in sampled)


def drops_out(seed: int, round_index: int, client: int, *, probability: float) -> bool:
    """Return whether this client drops out of this round, as federation.drop_out simulates."""
    if not probability:
        return False
    (value,) = draw_distinct(1, 2**53, key=f"{seed}\0round {round_index}\0client {client}\0lost")
    return int(value) < probability * 2**53


def derive_order_seed(seed: int, round_index: int, client: int) -> int:
    """Return the seed of the order in which a client trains on its rows in a round."""
    (value,) = draw_distinct(1, 2**53, key=f"{seed}\0round {round_index}\0client {client}\0order")
    return int(value)
