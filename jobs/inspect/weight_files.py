"""The weight files of a model folder, read from their headers. No torch."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Fault
from jobs.store.adapters.safetensors_header import BadTensors, TensorSpan, read_header
from jobs.store.head_copies import get_object_size
from slora.formats.base_files import INDEX, WEIGHTS, list_weight_files, read_weight_index

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights; integers are buffers (position ids) or the codes of quantized weights."""
AGAIN = "Download the model again."


def read_weights(folder: Path) -> tuple[dict[str, TensorSpan], list[Fault]]:
    """Return the tensors of the weight files by name, and a fault for each that cannot be read."""
    if faults := _check_weight_files(folder):
        return {}, faults
    spans = dict[str, TensorSpan]()
    for path in list_weight_files(folder):
        try:
            with path.open("rb") as file:
                spans.update(read_header(file, size=get_object_size(path)))
        except (OSError, BadTensors) as error:
            faults.append(Fault("model.path", f"{path} cannot be read: {error}", AGAIN))
    return spans, faults


def _check_weight_files(folder: Path) -> list[Fault]:
    """Check that the folder has weights that transformers loads, and all files of its index."""
    if (folder / WEIGHTS).is_file():
        return []
    if not (folder / INDEX).is_file():
        return [_refuse_without_weights(folder)]
    try:
        names = read_weight_index(folder)
    except ValueError as error:
        return [Fault("model.path", f"{folder / INDEX} cannot be read ({error})", AGAIN)]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return []
    problem = (
        f"{folder} lacks {len(missing)} of {len(names)} weight files, the first is {missing[0]}"
    )
    return [Fault("model.path", problem, AGAIN)]


def _refuse_without_weights(folder: Path) -> Fault:
    remedy = "Save the model with save_pretrained: only model.safetensors and its parts are read."
    for pattern, reason in (
        ("adapter_model.safetensors", "which is an adapter: use the path of its base"),
        ("*.safetensors", "which transformers does not load"),
        ("*.gguf", "which is in the format of llama.cpp"),
        ("*.bin", "which is pickled"),
        ("*.pt*", "which is pickled"),
    ):
        if names := sorted(path.name for path in folder.glob(pattern)):
            return Fault("model.path", f"{folder} has only {names[0]}, {reason}", remedy)
    return Fault("model.path", f"{folder} has no *.safetensors", remedy)
