"""`slora reproduce`: repeat the run of an adapter from its recorded spec, and compare the results.

On CPUs every tensor must be equal bit for bit. A GPU sums in an order of its own: there the
largest difference counts, relative to the largest value of the same tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.inspect.base_digest import find_base_change
from jobs.inspect.recorded_spec import load_recorded_federation, load_recorded_spec
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.spec.schema import RunSpec
from jobs.store.adapters.listing import find_newest
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import list_versions, pull, resolve_adapter
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import KERNELS_PREFIX, format_run_key

GPU_TOLERANCE_SHARE = 1e-3
"""Share of a tensor's largest value, for float32 sums in another order. Set, not derived."""
TENSOR_SUFFIX = ".safetensors"

Validated = ValidatedRun | ValidatedFederation
RunToEnd = Callable[[RunSpec, Validated, Mapping[str, bytes]], bool]
"""Run a spec with its validation to its end, in a folder that has these files at first; return
False if the user stopped it."""


@dataclass(frozen=True)
class Reproduction:
    """The result of repeating an adapter's run."""

    adapter: str
    equal_files: tuple[str, ...]
    """Files that are equal bit for bit."""
    differences: Mapping[str, float]
    """Largest relative difference of a tensor in each other file; infinite for other files."""
    tolerance: float
    code_versions: tuple[str, str]
    """The versions of this program that produced it, then and now."""

    @property
    def is_same(self) -> bool:
        """Return True if the adapter counts as reproduced."""
        return all(difference <= self.tolerance for difference in self.differences.values())


def repeat_run(store: ObjectStore, name: str, run_to_end: RunToEnd) -> Reproduction | None:
    """Repeat a run in a temporary store and compare; return None if the user stopped it.

    Raise InputError, before anything starts, if the result can't be the same.
    """
    adapter = resolve_adapter(store, name)
    if adapter.parent is not None:
        problem = f"{adapter.label} was trained from {adapter.parent}, which its spec does not name"
        remedy = "Reproduce an adapter that was trained from scratch."
        raise InputError([Fault("adapter", problem, remedy)])
    with tempfile.TemporaryDirectory(prefix="slora-again-") as scratch:
        url = f"file://{scratch}/store"
        spec: RunSpec
        if adapter.federation is None:
            spec = load_recorded_spec(store, adapter).model_copy(update={"store": url})
            checked = validate_run(spec)
            validated: Validated = checked
        else:
            recorded = load_recorded_federation(store, adapter)
            spec = recorded.model_copy(update={"store": url})
            federation = check_federation(spec)
            checked, validated = federation.validated_run, federation
        faults = _check_inputs(adapter, checked)
        if faults:
            raise InputError(faults)
        if not run_to_end(spec, validated, _read_kernels(store, adapter.run)):
            return None
        # The repetition is this process's own run, which nobody signs.
        second = find_newest(
            open_store(url),
            spec.name,
            list_versions(open_store(url), spec.name),
            lambda manifest: True,
            trusts_all=True,
        )
        assert second is not None
        folders = Path(scratch) / "first", Path(scratch) / "second"
        pull(store, adapter, folders[0])
        pull(open_store(url), second, folders[1], own_run=second.run)
        return _compare_adapters(adapter, second, folders, gpu=spec.cluster.gpus_per_worker > 0)


def _read_kernels(store: ObjectStore, run: str) -> dict[str, bytes]:
    """Return the files that fixed the kernels of the run's sums."""
    prefix = format_run_key(run)
    keys = store.list(prefix + KERNELS_PREFIX)
    return {key.removeprefix(prefix): store.get(key) for key in keys}


def _check_inputs(adapter: Manifest, checked: ValidatedRun) -> list[Fault]:
    """Compare the rows, the number of workers and the base model with the recorded ones."""
    faults = list[Fault]()
    if checked.train_scan.sha256 != adapter.data.train_sha256:
        problem = f"the rows do not have the recorded digest {adapter.data.train_sha256[:12]}"
        faults.append(Fault("data.train", problem, "Restore the rows that it was trained on."))
    # A federation's plan is one site's, and the result does not depend on the number of sites.
    if adapter.federation is None and checked.plan.workers != adapter.world_size:
        problem = (
            f"{checked.plan.workers} workers, but the adapter was trained by {adapter.world_size}"
        )
        faults.append(Fault("cluster.workers", problem, f"Use {adapter.world_size}."))
    if (change := find_base_change(adapter.base, checked.model.folder)) is not None:
        problem = f"the model is not the recorded base: {change}"
        faults.append(Fault("model.path", problem, "Restore the base that it was trained on."))
    return faults


def _compare_adapters(
    first: Manifest, second: Manifest, folders: tuple[Path, Path], *, gpu: bool
) -> Reproduction:
    digests = [{file.name: file.sha256 for file in manifest.files} for manifest in (first, second)]
    names = sorted(digests[0].keys() | digests[1].keys())
    equal_files = tuple(name for name in names if digests[0].get(name) == digests[1].get(name))
    differences = {
        name: _measure_difference(*(folder / name for folder in folders))
        for name in names
        if name not in equal_files
    }
    code_versions = (first.code_version, second.code_version)
    return Reproduction(
        first.label, equal_files, differences, GPU_TOLERANCE_SHARE if gpu else 0.0, code_versions
    )


def _measure_difference(first: Path, second: Path) -> float:
    if first.suffix != TENSOR_SUFFIX or not (first.is_file() and second.is_file()):
        return float("inf")
    # numpy is heavy, and equal files need no arithmetic.
    from safetensors.numpy import load_file

    first_tensors, second_tensors = load_file(first), load_file(second)
    if first_tensors.keys() != second_tensors.keys() or any(
        first_tensors[name].shape != second_tensors[name].shape for name in first_tensors
    ):
        return float("inf")
    largest = 0.0
    for name in first_tensors:
        a, b = first_tensors[name].astype("float64"), second_tensors[name].astype("float64")
        scale = float(abs(a).max()) if a.size else 0.0
        difference = float(abs(a - b).max()) if a.size else 0.0
        largest = max(
            largest, difference / scale if scale else (float("inf") if difference else 0.0)
        )
    return largest
