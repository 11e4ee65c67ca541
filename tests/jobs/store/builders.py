"""Tiny adapters for tests, and stores that fail on purpose."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from jobs.store.adapters.manifest import BaseRecord, DataRecord, ManifestDraft, MaskRecord
from jobs.store.base import Leftover, ObjectInfo, ObjectStore

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
DIGESTS = {letter: letter * 64 for letter in "abcdef"}


def encode_safetensors(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def encode_text_tensor(text: str = "weights") -> bytes:
    """Return a valid file of one tensor whose bytes are `text`."""
    data = text.encode()
    entry = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return encode_safetensors({"lora_A.weight": entry}, data)


def encode_float_tensor(*values: float) -> bytes:
    """Return a valid file of one float32 tensor."""
    data = struct.pack(f"<{len(values)}f", *values)
    entry = {"dtype": "F32", "shape": [len(values)], "data_offsets": [0, len(data)]}
    return encode_safetensors({"lora_A.weight": entry}, data)


def make_adapter_folder(folder: Path, text: str = "weights") -> Path:
    """Create a PEFT folder of two files that contain `text`."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"says": text}))
    (folder / "adapter_model.safetensors").write_bytes(encode_text_tensor(text))
    return folder


def make_draft(**changes: Any) -> ManifestDraft:
    """Return the draft of a run with some fields replaced."""
    fields: dict[str, Any] = {
        "name": "chat",
        "kind": "slora",
        "run": "chat-20260101-120000-0a1b",
        "attempt": 1,
        "base": BaseRecord(path="/no/such/base", digest=DIGESTS["a"]),
        "data": DataRecord(train_sha256=DIGESTS["b"], row_order="seed 0, shuffled once", rows=100),
        "mask": MaskRecord(strategy="random", seed=0, density=0.01),
        "spec_sha256": DIGESTS["c"],
        "code_version": "0.1.0",
        "world_size": 2,
        "evaluation": {"before": {"eval_loss": 3.5}, "after": {"eval_loss": 2.125}},
        "ledger": {"tokens": 12345, "seconds": 192.4},
    }
    return ManifestDraft(**{**fields, **changes})


def catch(kind: type[E], act: Callable[[], object]) -> E | None:
    """Return the error that `act` raises, or None: a loop over cases names the failing one."""
    try:
        act()
    except kind as error:
        return error
    return None


def race(target: Callable[..., None], *rest: Any, count: int) -> list[int | None]:
    """Run `target(start, number, *rest)` in several processes, and return their exit codes."""
    # Not fork: pytest has threads once another test has imported torch.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.jobs.store.builders", "jobs.store.adapters.operations"])
    start = context.Barrier(count)
    racers = [
        context.Process(
            target=_run_in_environment, args=(dict(os.environ), target, start, number, *rest)
        )
        for number in range(count)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return [racer.exitcode for racer in racers]


def _run_in_environment(
    environment: dict[str, str], target: Callable[..., None], *rest: Any
) -> None:
    # The fork server keeps the environment of the test that started it.
    os.environ.clear()
    os.environ.update(environment)
    target(*rest)


class Killed(BaseException):
    """Stands for the death of the process. A BaseException, so that no code handles it."""


def raise_killed() -> None:
    raise Killed


def kill_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DyingStore:
    """A store that dies at its n-th call, before doing it or just after."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        at: int = 0,
        after: bool = False,
        death: Callable[[], None] = raise_killed,
    ) -> None:
        self._inner, self._at, self._after, self._death = inner, at, after, death
        self.calls = list[str]()

    def put(
        self, key: str, data: bytes, *, create_only: bool = False, if_match: str | None = None
    ) -> str:
        return self._call(
            "put " + key,
            lambda: self._inner.put(key, data, create_only=create_only, if_match=if_match),
        )

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> str:
        return self._call(
            "put " + key, lambda: self._inner.put_file(key, path, create_only=create_only)
        )

    def copy(self, source: str, key: str) -> None:
        self._call("copy " + key, lambda: self._inner.copy(source, key))

    def get_file(self, key: str, path: Path) -> str:
        return self._call("fetch " + key, lambda: self._inner.get_file(key, path))

    def read(self, key: str, start: int, length: int | None = None) -> bytes:
        return self._call("read " + key, lambda: self._inner.read(key, start, length))

    def get(self, key: str) -> bytes:
        return self._call("get " + key, lambda: self._inner.get(key))

    def open(self, key: str) -> BinaryIO:
        return self._call("open " + key, lambda: self._inner.open(key))

    def head(self, key: str) -> ObjectInfo | None:
        return self._call("head " + key, lambda: self._inner.head(key))

    def measure_age(self, key: str) -> float | None:
        return self._call("age " + key, lambda: self._inner.measure_age(key))

    def list(self, prefix: str) -> Iterator[str]:
        return self._call("list " + prefix, lambda: self._inner.list(prefix))

    def delete(self, key: str) -> None:
        self._call("delete " + key, lambda: self._inner.delete(key))

    def list_leftovers(self) -> list[Leftover]:
        return self._call("leftovers", self._inner.list_leftovers)

    def discard(self, leftover: Leftover) -> None:
        self._call("discard " + leftover.name, lambda: self._inner.discard(leftover))

    def url(self, key: str) -> str:
        return self._inner.url(key)

    def local_path(self, key: str) -> Path | None:
        return None

    def check_writable(self) -> str | None:
        return self._inner.check_writable()

    def _call(self, name: str, act: Callable[[], T]) -> T:
        self.calls.append(name)
        mine = len(self.calls) == self._at
        if mine and not self._after:
            self._death()
        result = act()
        if mine:
            if isinstance(result, IOBase):
                result.close()
            self._death()
        return result
