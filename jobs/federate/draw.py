"""Who takes part in a round, and who is lost in it: from the seed and the round, and nothing else.

Whoever asks, whenever, is told the same: a federation that is resumed draws no client twice.
"""

from __future__ import annotations

from slora.mask import draw


def drawn(seed: int, number: int, *, clients: int, wanted: int) -> tuple[int, ...]:
    """The clients of round `number`, ascending, without replacement."""
    found = draw(min(wanted, clients), clients, key=f"{seed}\0round {number}\0clients")
    return tuple(int(client) for client in found)


def lost(seed: int, number: int, client: int, *, share: float) -> bool:
    """Whether a rehearsed drop-out takes this client in this round; of many, `share` of them."""
    if not share:
        return False
    (found,) = draw(1, 2**53, key=f"{seed}\0round {number}\0client {client}\0lost")
    return int(found) < share * 2**53


def order_seed(seed: int, number: int, client: int) -> int:
    """Seeds the order in which a client goes through its rows in a round."""
    (found,) = draw(1, 2**53, key=f"{seed}\0round {number}\0client {client}\0order")
    return int(found)
