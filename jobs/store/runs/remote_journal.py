"""A journal in a store that can't append: lines wait in this process and are sent together.

The whole object is written anew by compare-and-swap, so several processes may add to one journal
and no line is lost between them. A store that does not answer for a while costs a run nothing: the
lines go on waiting. The death of this process costs those of the last seconds.
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
"""Between two sendings of what is not urgent."""
BYTES_PER_S = 1_000_000
"""A long journal is sent less often, so that it takes this much of the network at most."""
MAX_ROUNDS = 20

log = logging.getLogger(__name__)


@dataclass
class _Buffer:
    """What this process has still to send to one journal, and what it last saw there."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    lines: bytes = b""
    etag: str | None = None
    sent: bytes = b""
    timer: threading.Timer | None = None


_buffers: dict[tuple[int, str], _Buffer] = {}
_buffers_lock = threading.Lock()


class RemoteJournal:
    """JSON lines under one key. Holds only its place, so it may be pickled and shared."""

    def __init__(self, store: ObjectStore, key: str, *, urgent: bool) -> None:
        self._store, self._key, self._urgent = store, key, urgent

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one line; an urgent journal sends it now, others within some seconds."""
        buffer = self._get_buffer()
        with buffer.lock:
            buffer.lines += encode_event(event)
        if self._urgent:
            self.flush()
        else:
            self._flush_soon(buffer)

    def tail(self, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole lines from `offset` on, and the offset to ask from next time."""
        if self._get_buffer().lines:
            self.flush()
        try:
            return parse_events(self._store.read(self._key, offset), offset)
        except NotInStore:
            return [], offset

    def flush(self) -> None:
        """Send what waits. Where the store does not take it, it goes on waiting."""
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
                log.warning("%s Its lines wait and are sent later.", error)
                self._flush_soon(buffer)

    def _send_lines(self, buffer: _Buffer) -> None:
        for turn in range(MAX_ROUNDS):
            content = buffer.sent
            if content and not content.endswith(b"\n"):
                content += b"\n"  # a line that another writer tore must not spoil ours as well
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
        raise StoreError(f"{self._key}: written by others again and again.")

    def _refresh_buffer(self, buffer: _Buffer) -> None:
        # The etag first: where the object is written between, the next swap fails and looks again.
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
                # Not atexit, which the children of multiprocessing never come to.
                Finalize(None, self.flush, exitpriority=10)
            return _buffers[name]
