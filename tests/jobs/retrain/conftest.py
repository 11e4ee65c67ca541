"""A workspace for tiny retrainings: a model that has shapes but no weights, and rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import chat_rows, hollow_model


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 8)
    chat_rows(tmp_path / "eval.jsonl", 4)
    return tmp_path
