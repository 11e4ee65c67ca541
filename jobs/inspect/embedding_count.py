"""Read from config.json how many tokens a model has embeddings for. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Sections that describe the language model of a model of several modalities."""


def read_embedding_count(folder: Path) -> int | None:
    """Return the number of tokens that the model knows, or None if its config does not tell."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    sections = [config, *(config.get(name) for name in TEXT_CONFIGS)]
    counts = [section.get("vocab_size") for section in sections if isinstance(section, dict)]
    return next((count for count in counts if isinstance(count, int) and count > 0), None)
