"""Find the base of a committed adapter on this machine. No torch."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.inspect.base_digest import find_base_change
from jobs.inspect.model_folder import find_model_folder
from jobs.spec.address_types import AddressKind
from jobs.spec.hub_spelling import find_spelling_fault
from jobs.store.adapters.manifest import Manifest


def find_base(manifest: Manifest, path: str | None) -> Path:
    """Return the folder of the base, at `path` or where the manifest says. Raise InputError."""
    if path and (fault := find_spelling_fault("--base", path, AddressKind.MODEL)) is not None:
        raise InputError([fault])
    record = manifest.base
    folder = find_model_folder(path) if path else find_model_folder(record.path, record.revision)
    if folder is None:
        problem = f"{path or record}, the base of {manifest.label}, does not exist here"
        remedy = "Set --base to its current folder."
        if not path and record.revision:
            download = f"hf download {record.path} --revision {record.revision}"
            remedy = f"Download it: {download}. Or set --base to its folder."
        raise InputError([Fault("--base", problem, remedy)])
    if (change := find_base_change(manifest.base, folder)) is not None:
        problem = f"{folder} is not the base of {manifest.label}: {change}"
        raise InputError([Fault("--base", problem, "Set --base to the folder of that base.")])
    return folder
