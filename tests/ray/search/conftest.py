"""One Ray for each file of searches, and the model and rows that they train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import chat_rows, tiny_chat_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    tiny_chat_model(folder / "model")
    chat_rows(folder / "train.jsonl", 60)
    chat_rows(folder / "eval.jsonl", 6)
    return folder
