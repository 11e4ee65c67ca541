"""Locks on files: one holder, a bound, and a line about what is waited for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jobs.errors import StoreError
from jobs.store.file_lock import take_lock


def test_a_lock_that_is_held_is_waited_for_and_then_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with (tmp_path / "lock").open("ab") as holder, (tmp_path / "lock").open("ab") as other:
        take_lock(holder, purpose="it holds it", timeout_s=0)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(StoreError, match="held it for 0 s: it holds it"),
        ):
            take_lock(other, purpose="it holds it", timeout_s=0.01, notice_s=0)
    assert "Waiting for another process: it holds it" in caplog.text


def test_a_lock_is_free_once_its_holder_is_gone_and_readers_share_it(tmp_path: Path):
    path = tmp_path / "lock"
    with path.open("ab") as holder:
        take_lock(holder, purpose="x", timeout_s=0)
    with path.open("ab") as first, path.open("ab") as second, path.open("ab") as writer:
        for reader in (first, second):
            take_lock(reader, purpose="x", timeout_s=0, shared=True)
        with pytest.raises(StoreError):
            take_lock(writer, purpose="x", timeout_s=0)
