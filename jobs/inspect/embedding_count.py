"""Read from config.json what the rows of a model's batches depend on. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Sections that describe the language model of a model of several modalities."""


def read_embedding_count(folder: Path) -> int | None:
    """Return the number of tokens that the model knows, or None if its config does not tell."""
    config = _read_config(folder)
    sections = [config, *(config.get(name) for name in TEXT_CONFIGS)]
    counts = [section.get("vocab_size") for section in sections if isinstance(section, dict)]
    return next((count for count in counts if isinstance(count, int) and count > 0), None)


def classifies_last_position(folder: Path) -> bool:
    """Return whether a classifier reads the last position, padding or not, as XLNet's does.

    Other decoders look for the last token that is not padding.
    """
    return _read_config(folder).get("summary_type") == "last"


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
