"""A folder for each project with the answers about models that its looks have got.

Without it each look would load torch, which takes seconds. Only looks of the same project read it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

from orchestrator.control.looking.look_protocol import Account

MAX_ANSWERS = 100
"""Of a project; with more, its folder starts again. An answer about a large model takes 1 MB."""


class AnswerFolders:
    """Temporary folders, which end with the service."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root: Path | None = None

    def prepare(self, project: str, account: Account | None) -> Path:
        """Return the folder of a project, which that account may write to."""
        folder = self._find_root() / project
        if folder.is_dir() and _count_files(folder) > MAX_ANSWERS:
            shutil.rmtree(folder)
        if not folder.is_dir():
            folder.mkdir(mode=0o700)
            if account is not None:
                os.chown(folder, account.user, account.group)
        return folder

    def close(self) -> None:
        """Remove all folders."""
        with self._lock:
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)

    def _find_root(self) -> Path:
        with self._lock:
            if self._root is None:
                self._root = Path(tempfile.mkdtemp(prefix="slora-answers-"))
                self._root.chmod(0o711)
            return self._root


def _count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
