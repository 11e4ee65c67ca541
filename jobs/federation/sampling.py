"""Who takes part in a round, and who is lost in it: from the seed and the round, and nothing else.

Whoever asks, whenever, is told the same: a federation that is resumed draws no client twice.
"""

from __future__ import annotations

from slora.masks.mask import draw_distinct


def sample_clients(seed: int, round_index: int, *, clients: int, count: int) -> tuple[int, ...]:
    """The clients of round `number`, ascending, without replacement."""
    sampled = draw_distinct(
        min(count, clients), clients, key=f"{seed}\0round {round_index}\0clients"
    )
    return tuple(int(client) for client in sampled)


def drops_out(seed: int, round_index: int, client: int, *, probability: float) -> bool:
    """Whether a rehearsed drop-out takes this client in this round; of many, `share` of them."""
    if not probability:
        return False
    (value,) = draw_distinct(1, 2**53, key=f"{seed}\0round {round_index}\0client {client}\0lost")
    return int(value) < probability * 2**53


def derive_order_seed(seed: int, round_index: int, client: int) -> int:
    """Seeds the order in which a client goes through its rows in a round."""
    (value,) = draw_distinct(1, 2**53, key=f"{seed}\0round {round_index}\0client {client}\0order")
    return int(value)
