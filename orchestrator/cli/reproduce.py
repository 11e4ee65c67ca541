"""`slora reproduce`: the run of an adapter again, from its own papers, and what came out beside it.

On CPUs every tensor has to be equal bit for bit. A GPU sums in an order of its own: there the
largest difference counts, measured against the largest value of the same tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.federation.check import ValidatedFederation, check_federation
from jobs.inspect.recorded_spec import load_recorded_federation, load_recorded_spec
from jobs.plan.preflight import ValidatedRun, validate_run
from jobs.store.adapters.manifest import Manifest
from jobs.store.adapters.operations import pull, resolve_adapter
from jobs.store.base import ObjectStore
from jobs.store.open import open_store

GPU_TOLERANCE_SHARE = 1e-3
"""Of the largest value of a tensor. Stated, not derived: float32 sums in another order."""
TENSOR_SUFFIX = ".safetensors"

RunTraining = Callable[[ValidatedRun], bool]
"""Runs a checked spec to its end; false where somebody stopped it."""
RunFederation = Callable[[ValidatedFederation], bool]
"""The same of a federation."""


@dataclass(frozen=True)
class Reproduction:
    """What running it again came to."""

    adapter: str
    equal_files: tuple[str, ...]
    """Files that are the same, bit for bit."""
    differences: Mapping[str, float]
    """For each other file the largest relative difference of a tensor; infinite if it has none."""
    tolerance: float
    code_versions: tuple[str, str]
    """The versions of this program that made it, then and now."""

    @property
    def is_same(self) -> bool:
        """Whether it counts as reproduced."""
        return all(difference <= self.tolerance for difference in self.differences.values())


def repeat_run(
    store: ObjectStore, name: str, train: RunTraining, federate: RunFederation
) -> Reproduction | None:
    """Run it again into a store that is thrown away; None where that was stopped.

    Raises InputError, before anything starts, where it can't come out the same.
    """
    adapter = resolve_adapter(store, name)
    if adapter.parent is not None:
        problem = f"{adapter.label} went on from {adapter.parent}, and its spec alone does not"
        raise InputError([Fault("adapter", problem, "Reproduce what started from scratch.")])
    with tempfile.TemporaryDirectory(prefix="slora-again-") as scratch:
        url = f"file://{scratch}/store"
        spec = load_recorded_spec(store, adapter).model_copy(update={"store": url})
        if adapter.federation is None:
            checked = validate_run(spec)
            run_again = partial(train, checked)
        else:
            recorded = load_recorded_federation(store, adapter)
            federation = check_federation(recorded.model_copy(update={"store": url}))
            checked, run_again = federation.validated_run, partial(federate, federation)
        faults = _check_inputs(adapter, checked)
        if faults:
            raise InputError(faults)
        if not run_again():
            return None
        second = resolve_adapter(open_store(url), spec.name)
        folders = Path(scratch) / "first", Path(scratch) / "second"
        pull(store, adapter, folders[0])
        pull(open_store(url), second, folders[1])
        return _compare_adapters(adapter, second, folders, gpu=spec.cluster.gpus_per_worker > 0)


def _check_inputs(adapter: Manifest, checked: ValidatedRun) -> list[Fault]:
    """The rows and the number of workers; the base's digest is compared when it is loaded."""
    faults = list[Fault]()
    if checked.train_scan.sha256 != adapter.data.train_sha256:
        problem = f"other rows than the digest {adapter.data.train_sha256[:12]} names"
        faults.append(Fault("data.train", problem, "Bring back the rows it was trained on."))
    # A federation's plan is one site's, and its clients come to the same on any number of them.
    if adapter.federation is None and checked.plan.workers != adapter.world_size:
        problem = f"{checked.plan.workers} workers, it was trained by {adapter.world_size}"
        faults.append(Fault("cluster.workers", problem, "Use as many."))
    # Here, because it reads the whole base, which no other check does.
    from jobs.inspect.model_files import digest_model

    if digest_model(checked.model.folder) != adapter.base.digest:
        problem = f"another model than the digest {adapter.base.digest[:12]} names"
        faults.append(Fault("model.path", problem, "Bring back the base it was trained on."))
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
    # Here, because numpy is heavy, and files that are equal need no arithmetic.
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
