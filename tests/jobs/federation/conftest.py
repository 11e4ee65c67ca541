"""Workspaces of tiny federations: with a model that trains, or one that only has shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.jobs.federation.runs import folder_with_rows
from tests.tiny import chat_rows, hollow_model


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    hollow_model(tmp_path / "model")
    chat_rows(tmp_path / "train.jsonl", 12)
    chat_rows(tmp_path / "eval.jsonl", 4)
    return tmp_path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a model and rows for all tests: each has a store of its own name."""
    torch.set_num_threads(1)
    return folder_with_rows(tmp_path_factory.mktemp("federation"))
