"""Check the folder of an adapter before its commit."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.store.adapters.manifest import MANIFEST, AdapterFile, check_file_name
from jobs.store.adapters.nan_check import find_non_finite
from jobs.store.adapters.safetensors_header import BadTensors, TensorSpan, read_header
from jobs.store.digest import compute_file_sha256

TENSORS_SUFFIX = ".safetensors"


def scan_adapter_folder(folder: Path) -> tuple[AdapterFile, ...]:
    """Return all files with size and digest, in order, or raise InputError with all faults."""
    if not folder.is_dir():
        problem = f"{folder} is not a folder"
        raise InputError([Fault("adapter folder", problem, "Use the exported folder.")])
    paths = sorted(folder.iterdir())
    faults = [fault for path in paths for fault in _check_file(path)]
    if not paths:
        faults.append(Fault("adapter folder", f"{folder} is empty", "Export the adapter first."))
    if faults:
        raise InputError(faults)
    return tuple(
        AdapterFile(name=path.name, size=path.stat().st_size, sha256=compute_file_sha256(path))
        for path in paths
    )


def check_tensors(name: str, spans: dict[str, TensorSpan]) -> list[Fault]:
    """Return a fault for a file without tensors, or for each tensor without elements."""
    remedy = "The weights were not gathered when they were saved: publish the run again."
    if not spans:
        return [Fault(name, "the file contains no tensors", remedy)]
    return [
        Fault(name, f"{tensor[:100]!a} is empty, of shape {list(span.shape)}", remedy)
        for tensor, span in spans.items()
        if span.is_empty
    ]


def _check_file(path: Path) -> list[Fault]:
    if path.is_symlink() or not path.is_file():
        return [Fault(ascii(path.name), "not a regular file", "Keep the files in one flat folder.")]
    try:
        check_file_name(path.name)
    except ValueError as error:
        remedy = f"Rename it: {MANIFEST} and names with a leading dot are reserved for the store."
        return [Fault(ascii(path.name), str(error), remedy)]
    if path.suffix != TENSORS_SUFFIX:
        return []
    try:
        spans = read_header(path)
        return check_tensors(path.name, spans) or _check_values(path, spans)
    except BadTensors as error:
        remedy = "Save it again: the file is truncated, or is not a safetensors file."
        return [Fault(path.name, str(error), remedy)]


def _check_values(path: Path, spans: dict[str, TensorSpan]) -> list[Fault]:
    name = find_non_finite(path, spans)
    if name is None:
        return []
    problem = f"{name[:100]!a} contains NaN or infinity"
    remedy = "The training diverged: lower the learning rate, or resume from a checkpoint."
    return [Fault(path.name, problem, remedy)]
