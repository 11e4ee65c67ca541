"""What is special about models with an encoder and a decoder, told from config.json. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

END_CLASSIFIERS = ("bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5")
"""Types of models whose classifiers read the class at the row's last end token, and need the same
number of them in all rows."""
ENCODER_LIMITS = ("max_encoder_position_embeddings", "max_position_embeddings")
DECODER_LIMITS = ("max_decoder_position_embeddings", "max_position_embeddings")


def is_encoder_decoder(config: Mapping[str, Any]) -> bool:
    """Return whether a config is that of an encoder-decoder."""
    return bool(config.get("is_encoder_decoder"))


def find_side_limit(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that both sides can number, or None: T5 has relative positions, and
    its n_positions bounds nothing.
    """
    limits = []
    for keys in (ENCODER_LIMITS, DECODER_LIMITS):
        values = (config.get(key) for key in keys)
        limits += [next((value for value in values if isinstance(value, int)), None)]
    return min((limit for limit in limits if limit is not None), default=None)
