"""`slora reproduce`: the run of an adapter again, from its own papers, and what came out beside it.

On CPUs every tensor has to be equal bit for bit. A GPU sums in an order of its own: there the
largest difference counts, measured against the largest value of the same tensor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.federate.check import FederatedChecked, check_federated
from jobs.preflight import Checked, check
from jobs.recorded import recorded_federation, recorded_spec
from jobs.store.adapters import pull, resolve
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore, open_store

GPU_TOLERANCE = 1e-3
"""Of the largest value of a tensor. Stated, not derived: float32 sums in another order."""
TENSORS = ".safetensors"

Train = Callable[[Checked], bool]
"""Runs a checked spec to its end; false where somebody stopped it."""
Federate = Callable[[FederatedChecked], bool]
"""The same of a federation."""


@dataclass(frozen=True)
class Reproduced:
    """What running it again came to."""

    adapter: str
    equal: tuple[str, ...]
    """Files that are the same, bit for bit."""
    different: Mapping[str, float]
    """For each other file the largest relative difference of a tensor; infinite if it has none."""
    tolerance: float
    code: tuple[str, str]
    """The versions of this program that made it, then and now."""

    @property
    def same(self) -> bool:
        """Whether it counts as reproduced."""
        return all(found <= self.tolerance for found in self.different.values())


def reproduce(
    store: ObjectStore, wanted: str, train: Train, federate: Federate
) -> Reproduced | None:
    """Run it again into a store that is thrown away; None where that was stopped.

    Raises InputError, before anything starts, where it can't come out the same.
    """
    adapter = resolve(store, wanted)
    if adapter.parent is not None:
        problem = f"{adapter.label} went on from {adapter.parent}, and its spec alone does not"
        raise InputError([Fault("adapter", problem, "Reproduce what started from scratch.")])
    with tempfile.TemporaryDirectory(prefix="slora-again-") as made:
        url = f"file://{made}/store"
        spec = recorded_spec(store, adapter).model_copy(update={"store": url})
        if adapter.federation is None:
            checked = check(spec)
            run_again = partial(train, checked)
        else:
            found = check_federated(replace(recorded_federation(store, adapter), spec=spec))
            checked, run_again = found.checked, partial(federate, found)
        faults = _input_faults(adapter, checked)
        if faults:
            raise InputError(faults)
        if not run_again():
            return None
        again = resolve(open_store(url), spec.name)
        folders = Path(made) / "first", Path(made) / "second"
        pull(store, adapter, folders[0])
        pull(open_store(url), again, folders[1])
        return _compared(adapter, again, folders, gpu=spec.cluster.gpus_per_worker > 0)


def _input_faults(adapter: Manifest, checked: Checked) -> list[Fault]:
    """The rows and the number of workers; the base's digest is compared when it is loaded."""
    faults = list[Fault]()
    if checked.train.sha256 != adapter.data.train_sha256:
        problem = f"other rows than the digest {adapter.data.train_sha256[:12]} names"
        faults.append(Fault("data.train", problem, "Bring back the rows it was trained on."))
    # A federation's plan is one site's, and its clients come to the same on any number of them.
    if adapter.federation is None and checked.plan.workers != adapter.world_size:
        problem = f"{checked.plan.workers} workers, it was trained by {adapter.world_size}"
        faults.append(Fault("cluster.workers", problem, "Use as many."))
    # Here, because it reads the whole base, which no other check does.
    from jobs.model_files import model_digest

    if model_digest(checked.model.folder) != adapter.base.digest:
        problem = f"another model than the digest {adapter.base.digest[:12]} names"
        faults.append(Fault("model.path", problem, "Bring back the base it was trained on."))
    return faults


def _compared(
    first: Manifest, second: Manifest, folders: tuple[Path, Path], *, gpu: bool
) -> Reproduced:
    digests = [{file.name: file.sha256 for file in one.files} for one in (first, second)]
    names = sorted(digests[0].keys() | digests[1].keys())
    equal = tuple(name for name in names if digests[0].get(name) == digests[1].get(name))
    different = {
        name: _difference(*(folder / name for folder in folders))
        for name in names
        if name not in equal
    }
    code = (first.code_version, second.code_version)
    return Reproduced(first.label, equal, different, GPU_TOLERANCE if gpu else 0.0, code)


def _difference(first: Path, second: Path) -> float:
    if first.suffix != TENSORS or not (first.is_file() and second.is_file()):
        return float("inf")
    # Here, because numpy is heavy, and files that are equal need no arithmetic.
    from safetensors.numpy import load_file

    one, two = load_file(first), load_file(second)
    if one.keys() != two.keys() or any(one[name].shape != two[name].shape for name in one):
        return float("inf")
    most = 0.0
    for name in one:
        a, b = one[name].astype("float64"), two[name].astype("float64")
        scale = float(abs(a).max()) if a.size else 0.0
        apart = float(abs(a - b).max()) if a.size else 0.0
        most = max(most, apart / scale if scale else (float("inf") if apart else 0.0))
    return most
