"""A journal in a store that cannot append: lines are buffered in the process and sent together.

Each send rewrites the object by compare-and-swap, so several processes can add to one journal and
lose no line. While the store does not answer, the lines stay buffered and the run continues. The
death of the process loses the lines of the last seconds.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.util import Finalize
from typing import Any

from jobs.errors import AlreadyExists, NotInStore, StoreError, WriteConflict
from jobs.store.base import ObjectStore
from jobs.store.runs.journal import encode_event, parse_events

INTERVAL_S = 3.0
"""Seconds between two sends of a journal that is not urgent."""
BYTES_PER_S = 1_000_000
"""The most traffic of one journal: a longer one is sent less often."""
MAX_ROUNDS = 20

log = logging.getLogger(__name__)


@dataclass
class _Buffer:
    """The unsent lines of this process for one journal, and the content that was sent last."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    lines: bytes = b""
    etag: str | None = None
    sent: bytes = b""
    timer: threading.Timer | None = None


_buffers: dict[tuple[int, str], _Buffer] = {}
"""By process id and URL: all journals of one URL in a process share a buffer, and none does after
a fork."""
_buffers_lock = threading.Lock()


class RemoteJournal:
    """JSON lines under one key. Holds only the key, so it can be pickled and shared."""

    def __init__(self, store: ObjectStore, key: str, *, urgent: bool) -> None:
        self._store, self._key, self._urgent = store, key, urgent

    def append(self, event: Mapping[str, Any]) -> None:
        """Append a line. An urgent journal sends it now, another one within some seconds."""
        buffer = self._get_buffer()
        with buffer.lock:
            buffer.lines += encode_event(event)
        if self._urgent:
            self.flush()
        else:
            self._flush_soon(buffer)

    def tail(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return the events of all complete lines from `offset` on, and the next offset."""
        if self._get_buffer().lines:
            self.flush()
        try:
            return parse_events(self._store.read(self._key, offset), offset)
        except NotInStore:
            return [], offset

    def flush(self) -> None:
        """Send the buffered lines. If the store fails, keep them and try again later."""
        buffer = self._get_buffer()
        with buffer.lock:
            if buffer.timer is not None:
                buffer.timer.cancel()
                buffer.timer = None
            if not buffer.lines:
                return
            try:
                self._send_lines(buffer)
            except StoreError as error:
                log.warning("%s The lines of this journal are sent later.", error)
                self._flush_soon(buffer)

    def _send_lines(self, buffer: _Buffer) -> None:
        for turn in range(MAX_ROUNDS):
            content = buffer.sent
            if content and not content.endswith(b"\n"):
                content += b"\n"  # another writer was killed inside the last line
            content += buffer.lines
            try:
                buffer.etag = self._store.put(
                    self._key, content, create_only=buffer.etag is None, if_match=buffer.etag
                )
                buffer.sent, buffer.lines = content, b""
                return
            except (AlreadyExists, WriteConflict):
                self._refresh_buffer(buffer)
                time.sleep(random.uniform(0, min(1.0, 0.02 * 2**turn)) if turn else 0)
        raise StoreError(f"{self._key}: too many concurrent writes.")

    def _refresh_buffer(self, buffer: _Buffer) -> None:
        # The etag first: if the object changes in between, the next swap fails and refreshes again.
        info = self._store.head(self._key)
        buffer.etag = info.etag if info else None
        buffer.sent = self._store.get(self._key) if info else b""

    def _flush_soon(self, buffer: _Buffer) -> None:
        with buffer.lock:
            if buffer.timer is None:
                wait = max(INTERVAL_S, len(buffer.sent) / BYTES_PER_S)
                buffer.timer = threading.Timer(wait, self.flush)
                buffer.timer.daemon = True
                buffer.timer.start()

    def _get_buffer(self) -> _Buffer:
        name = (os.getpid(), self._store.url(self._key))
        with _buffers_lock:
            if name not in _buffers:
                _buffers[name] = _Buffer()
                # Not atexit, which child processes of multiprocessing never run.
                Finalize(None, self.flush, exitpriority=10)
            return _buffers[name]
