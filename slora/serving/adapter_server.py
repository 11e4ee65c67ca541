"""The adapters of one server: load, check, point names, swap the weights, unload.

A swap: close the gate and drain it, pause, apply, reset the caches, resume, open. After a failed
apply the old weights are restored; if that fails too, nothing is answered until a swap succeeds.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from slora.formats.base_files import digest_files, list_base_files
from slora.formats.peft import LoraAdapter
from slora.serving.adapter_folder import (
    AdapterFolder,
    Form,
    check_lora,
    copy_adapter,
    read_checked,
)
from slora.serving.base_weights import BaseWeights
from slora.serving.name_plan import LoadedAdapter, ServedNames, plan_name
from slora.serving.refusals import ServingRefused
from slora.serving.request_gate import RequestGate
from slora.serving.weight_patches import list_tensors, write_patches

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,199}")
DIGEST_WAIT_S = 5.0
"""How long a request for the state waits for the base's digest, which is null until then."""
PATCHES = "patches.safetensors"


class EngineFailed(Exception):
    """Raised by an engine that could not do what it was asked; the message says why."""


class AnswerEngine(Protocol):
    """What answers requests: vLLM, or the stand-in of a test. All methods raise EngineFailed."""

    async def pause(self) -> None:
        """Stop computing, with no request in flight, and forget what is cached of prompts."""

    async def resume(self) -> None:
        """Compute again."""

    async def rehearse(self, patches: Path) -> list[str]:
        """Return the tensors of a patch file that the model has no weight for. Write nothing."""

    async def swap(self, undo: list[Path], apply: Path | None) -> None:
        """Write the old values of some patch files, and the new ones of another over them."""

    async def reset_caches(self) -> None:
        """Forget everything that was computed with other weights."""

    async def add_lora(self, name: str, folder: Path) -> None:
        """Load a LoRA and answer with it under this name."""

    async def remove_lora(self, name: str) -> None:
        """Forget a LoRA that no request uses."""

    def publish(self, state: ServedNames) -> None:
        """Let new requests find these names, at once."""


@dataclass(frozen=True)
class ServerLimits:
    """What a server can hold. `forms`: kinds of adapters; `dtype`: the type of its weights."""

    forms: tuple[Form, ...]
    max_rank: int
    dtype: torch.dtype
    base_names: tuple[str, ...]


class AdapterServer:
    """The adapters of one server. Its methods are the routes; each raises ServingRefused."""

    def __init__(
        self,
        engine: AnswerEngine,
        gate: RequestGate,
        *,
        base: Path,
        scratch: Path,
        limits: ServerLimits,
    ) -> None:
        self._engine, self._gate, self._limits = engine, gate, limits
        self._scratch, self._numbers = scratch, itertools.count(1)
        self._base = BaseWeights(base)
        self._lock = asyncio.Lock()
        self._state = ServedNames()
        self._folders = dict[str, AdapterFolder]()
        self._rehearsed = dict[str, tuple[int, ...]]()
        self._dirty = set[str]()
        """Sparse adapters of which values may be in the weights after a failed swap."""
        self._tasks = set[asyncio.Task[Any]]()
        self._base_digest = self._start(_digest_base(base))

    async def describe(self) -> dict[str, Any]:
        """Return what is loaded and what answers, as JSON."""
        await asyncio.wait([self._base_digest], timeout=DIGEST_WAIT_S)
        state = self._state
        return {
            "version": 1,
            "base_digest": self._base_digest.result() if self._base_digest.done() else None,
            "forms": list(self._limits.forms),
            "max_rank": self._limits.max_rank,
            "adapters": {
                name: {"form": adapter.form, "digest": adapter.digest}
                for name, adapter in state.adapters.items()
            },
            "names": dict(state.names),
            "active_sparse": state.active_sparse,
            "problem": self._gate.problem,
        }

    async def load(self, name: str, source: Path, base_digest: str | None = None) -> LoadedAdapter:
        """Load a folder under a versioned name; repeatable. It answers nothing yet."""
        self._check_name(name)
        target = self._scratch / f"{next(self._numbers)}"
        try:
            folder = await asyncio.to_thread(copy_adapter, source, target)
            present = self._find_loaded(name, folder.digest)
            if present is None:
                await self._prepare(folder, base_digest)
                async with self._lock:
                    present = self._find_loaded(name, folder.digest)
                    if present is None:
                        return await self._add(name, folder)
        except BaseException:
            _remove_folder(target)
            raise
        _remove_folder(target)
        return present

    async def point(self, name: str, version: str | None) -> None:
        """Let a public name answer with a loaded version, or with nothing; repeatable."""
        self._check_name(name)
        async with self._lock:
            state = plan_name(self._state, name, version)
            if state.active_sparse == self._state.active_sparse and self._gate.problem is None:
                self._publish(state)
                return
            for adapter in sorted(self._list_written(state)):
                await self._check_patches(adapter)
            async with self._gate.close():
                await self._swap(state)

    async def unload(self, name: str) -> None:
        """Forget a version that no public name uses; repeatable. Requests in flight keep it."""
        async with self._lock:
            if name not in self._state.adapters:
                return
            state, form = self._state.without_adapter(name), self._state.adapters[name].form
            if name in self._dirty:
                raise ServingRefused(
                    409, f"values of {name} may be in the weights. Point a name to a version first"
                )
            self._publish(state)
            self._start(self._forget(name, form, self._folders.pop(name)))

    def _find_loaded(self, name: str, digest: str) -> LoadedAdapter | None:
        present = self._state.adapters.get(name)
        if present is not None and present.digest != digest:
            raise ServingRefused(
                409, f"{name} is loaded with other contents ({present.digest[:12]}). Unload it, or "
                "use another name"
            )  # fmt: skip
        return present

    async def _prepare(self, folder: AdapterFolder, base_digest: str | None) -> None:
        """Check a copied folder, and write the patches of a sparse one."""
        if folder.form not in self._limits.forms:
            raise ServingRefused(
                400, f"this server serves {' and '.join(self._limits.forms) or 'no adapters'}, and "
                f"this is a {folder.form} one. See docs/guides/serving.md for how to start it"
            )  # fmt: skip
        expected = base_digest or folder.base_digest
        if expected is None and folder.form == "sparse":
            raise ServingRefused(
                400, "it names no base, and values belong to one base. Use a folder with its "
                "manifest.json (`slora adapters pull`), or send base_digest"
            )  # fmt: skip
        present = await self._base_digest
        for digest in {base_digest, folder.base_digest} - {None, present}:
            raise ServingRefused(
                400, f"it belongs to another base: {str(digest)[:12]}, and this server's is "
                f"{present[:12]}"
            )  # fmt: skip
        await asyncio.to_thread(self._check_contents, folder)

    def _check_contents(self, folder: AdapterFolder) -> None:
        adapter = read_checked(folder)
        if isinstance(adapter, LoraAdapter):
            check_lora(adapter, self._base, self._limits.max_rank)
            return
        write_patches(folder.path / PATCHES, adapter, self._base, self._limits.dtype)

    async def _add(self, name: str, folder: AdapterFolder) -> LoadedAdapter:
        try:
            if folder.form == "lora":
                await self._engine.add_lora(name, folder.path)
            else:
                await self._rehearse(folder.path / PATCHES)
        except EngineFailed as error:
            raise ServingRefused(400, f"the engine can't load it: {error}") from error
        adapter = LoadedAdapter(folder.form, folder.digest)
        self._folders[name] = folder
        self._publish(self._state.with_adapter(name, adapter))
        return adapter

    async def _rehearse(self, patches: Path) -> None:
        """Let each tensor that no earlier adapter changed pass the loader, between requests."""
        tensors = await asyncio.to_thread(list_tensors, patches)
        if tensors.items() <= self._rehearsed.items():
            return
        async with self._gate.close():
            await self._engine.pause()
            try:
                missing = await self._engine.rehearse(patches)
            finally:
                if self._gate.problem is None:
                    await self._engine.resume()
        if missing:
            raise ServingRefused(400, f"the served model has no weight for {min(missing)}")
        self._rehearsed.update(tensors)

    def _list_written(self, state: ServedNames) -> set[str]:
        """Return the sparse adapters whose patches a swap to `state` reads."""
        ends = (self._state.active_sparse, state.active_sparse)
        return self._dirty | {name for name in ends if name is not None}

    async def _check_patches(self, name: str) -> None:
        """Raise ServingRefused if a patch file was removed or cut short, before a swap needs it."""
        try:
            await asyncio.to_thread(list_tensors, self._folders[name].path / PATCHES)
        except (OSError, SafetensorError) as error:
            raise ServingRefused(
                503,
                f"the server's own copy of {name} can't be read ({error}); nothing was changed. "
                "Load it under another name, or restart the server if it answers now",
            ) from None

    async def _swap(self, state: ServedNames) -> None:
        """Make the weights those of `state`, and publish it. The gate is closed and drained."""
        old, new = self._state.active_sparse, state.active_sparse
        self._dirty = self._list_written(state)
        try:
            await self._engine.pause()
            await self._write_weights(new)
        except EngineFailed as error:
            await self._restore(old, new, error)
        self._publish(state)
        await self._engine.resume()

    async def _write_weights(self, active: str | None) -> None:
        """Take every adapter out of the weights that may be in them, and put one in."""
        files = {name: self._folders[name].path / PATCHES for name in self._dirty}
        apply = None if active is None else files[active]
        undo = [file for name, file in sorted(files.items()) if name != active]
        # The active one's positions are all written anew, so its old values would be overwritten.
        await self._engine.swap(undo, apply)
        await self._engine.reset_caches()
        self._dirty = set() if active is None else {active}
        self._gate.problem = None

    async def _restore(self, old: str | None, new: str | None, error: EngineFailed) -> None:
        """Bring the old weights back after a failed swap, and raise ServingRefused."""
        target, source = new or "the base", old or "the base"
        try:
            await self._write_weights(old)
        except EngineFailed as second:
            self._gate.problem = (
                f"The weights are neither those of {source} nor of {target}: applying {target} "
                f"failed ({error}), and so did going back ({second}). Point a name to a loaded "
                "version, or restart the server."
            )
            raise ServingRefused(503, self._gate.problem) from error
        await self._engine.resume()
        raise ServingRefused(
            503, f"{target} could not be applied ({error}); {source} goes on answering"
        )

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ServingRefused(
                400, f"{name[:80]!a} is not a name: use letters, digits and ._@-, at most 200"
            )
        if name in self._limits.base_names:
            raise ServingRefused(409, f"{name} is the name of the base. Use another one")

    def _publish(self, state: ServedNames) -> None:
        self._engine.publish(state)
        self._state = state

    async def _forget(self, name: str, form: Form, folder: AdapterFolder) -> None:
        await self._gate.wait_for_current()
        async with self._lock:
            # Loaded again meanwhile: that one has a folder of its own.
            if form == "lora" and name not in self._state.adapters:
                await self._engine.remove_lora(name)
        _remove_folder(folder.path)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _digest_base(folder: Path) -> str:
    compute: Callable[[], str] = lambda: digest_files(folder, list_base_files(folder))  # noqa: E731
    return await asyncio.to_thread(compute)


def _remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
