"""Where each worker is, told to the others from a thread: so that a hung one can be named.

Through the process group's own key-value store, every few seconds and not every step: a slow link
pays nothing for it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self

BEAT_S = 2.0
LATE_S = 4 * BEAT_S
"""A worker that was not heard for so long does not run at all."""
ANSWER_S = 5.0
"""Seconds that the store, which lives in rank 0's process, may take to answer."""


class Board(Protocol):
    """What of torch's process group store is used."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Pulse:
    """This worker's place in the run, beside the others'."""

    def __init__(self, rank: int, world_size: int, board: Board | None) -> None:
        self._rank, self._world_size, self._board = rank, world_size, board
        self.place, self._since = "loading", time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="pulse")

    def __enter__(self) -> Self:
        if self._board is not None and self._world_size > 1:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def at(self, place: str) -> None:
        """Says where this worker is now."""
        self.place, self._since = place, time.time()

    def late(self) -> str:
        """The workers that the others wait for, and where they were last seen."""
        heard = self._heard()
        if heard is None:
            return "rank 0 does not answer, and it keeps what is known of the others"
        now, found = time.time(), []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            told = heard.get(rank)
            if told is None:
                found.append(f"rank {rank} does not answer")
            elif now - told["heard"] > LATE_S:
                silent = now - told["heard"]
                where = f"{told['host']}, last at {told['place']}"
                found.append(f"rank {rank} ({where}) was silent for {silent:.0f} s")
            elif told["place"] != self.place:
                since = now - told["since"]
                where = f"{told['host']}, at {told['place']} for {since:.0f} s"
                found.append(f"rank {rank} ({where}) is behind rank {self._rank}, {self.place}")
        return "; ".join(found) or "every rank says that it waits as well: the network is cut"

    def _heard(self) -> dict[int, dict[str, Any]] | None:
        """What the other workers said last; None where the store does not answer in time."""
        heard: dict[int, dict[str, Any]] = {}

        def ask() -> None:
            for rank in range(self._world_size):
                if rank != self._rank and (told := self._told(rank)) is not None:
                    heard[rank] = told

        # In a thread, which may be left behind: torch's store waits for ever for an answer to some
        # of its calls, whatever its time-out, where rank 0's whole process or machine stands still.
        asking = threading.Thread(target=ask, daemon=True, name="pulse-late")
        asking.start()
        asking.join(ANSWER_S)
        return None if asking.is_alive() else heard

    def _told(self, rank: int) -> dict[str, Any] | None:
        if self._board is None:
            return None
        try:
            if not self._board.check([_key(rank)]):
                return None
            told: dict[str, Any] = json.loads(self._board.get(_key(rank)))
        except (RuntimeError, ValueError):
            return None
        return told

    def _beat(self) -> None:
        while True:
            told = {"place": self.place, "since": self._since, "heard": time.time(),
                    "host": os.uname().nodename}  # fmt: skip
            try:
                assert self._board is not None
                self._board.set(_key(self._rank), json.dumps(told))
            except RuntimeError:
                return  # rank 0, where the store lives, is gone
            if self._over.wait(BEAT_S):
                return


def default_board() -> Board | None:
    """The store of torch's default process group, with a time-out of its own."""
    import torch

    if not torch.distributed.is_initialized():
        return None
    store: Any = torch.distributed.distributed_c10d._get_default_store()
    # A clone has a connection of its own: a thread that waits there holds up nobody else.
    board: Any = store.clone()
    board.set_timeout(timedelta(seconds=ANSWER_S))
    return board  # type: ignore[no-any-return]


def _key(rank: int) -> str:
    return f"slora/pulse/{rank}"
