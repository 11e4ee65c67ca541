"""The tensors of a base's checkpoint: which one a layer's weight is, and its values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from slora.formats.base_files import CONFIG, list_weight_files
from slora.layers.shapes import LayerShape
from slora.serving.refusals import ServingRefused

TRANSPOSED = ("gpt2", "openai-gpt")
"""Model types whose linear layers are Conv1D: their checkpoints hold the weight transposed."""
MERGE = "Serve it merged: `slora adapters merge`"


class BaseWeights:
    """The checkpoint of a base in a folder. Raise ServingRefused if it can't be read."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._is_transposed = _read_model_type(folder) in TRANSPOSED
        try:
            for path in list_weight_files(folder):
                self._read_header(path)
        except (OSError, SafetensorError) as error:
            raise ServingRefused(503, f"{folder} can't be read as a checkpoint: {error}") from None

    def find_tensor(self, layer: str, shape: LayerShape) -> str:
        """Return the name of the checkpoint's tensor that is this layer's weight, row by row.

        `layer`: its name in transformers, which may add or drop the model's prefix (`model.`).
        """
        if shape.experts > 1:
            raise ServingRefused(400, f"{layer} are fused experts, which no patch reaches. {MERGE}")
        if self._is_transposed:
            raise ServingRefused(
                400, f"{layer} is a Conv1D layer, whose weight is stored transposed. {MERGE}"
            )
        for name in self._list_names(f"{layer}.weight"):
            if self._shapes[name] != tuple(shape):
                raise ServingRefused(
                    400,
                    f"{layer} is {tuple(shape)} in the adapter, {self._shapes[name]} in the base",
                )
            if self._types[name] not in ("F64", "F32", "F16", "BF16"):
                raise ServingRefused(
                    400, f"{layer} is quantized ({self._types[name]}) in the base. {MERGE}"
                )
            return name
        raise ServingRefused(400, f"the base has no weight of the layer {layer}. {MERGE}")

    def get_shape(self, layer: str) -> tuple[int, ...] | None:
        """Return the shape of a layer's weight, or None if the checkpoint has no such tensor."""
        names = self._list_names(f"{layer}.weight")
        return self._shapes[names[0]] if names else None

    def read_tensor(self, name: str) -> Tensor:
        """Return a tensor as it is stored. Raise OSError, SafetensorError."""
        with safe_open(self._files[name], framework="pt") as reader:
            tensor: Tensor = reader.get_tensor(name)
        return tensor

    def _read_header(self, path: Path) -> None:
        with safe_open(path, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118
                part = reader.get_slice(name)
                self._files[name] = path
                self._shapes[name] = tuple(part.get_shape())
                self._types[name] = part.get_dtype()

    def _list_names(self, weight: str) -> list[str]:
        """Return the names that may mean this weight and exist, the likeliest first."""
        shorter = weight.partition(".")[2]
        longer = [f"{prefix}.{weight}" for prefix in ("model", "transformer")]
        return [name for name in (weight, shorter, *longer) if name in self._shapes]


def _read_model_type(folder: Path) -> str | None:
    try:
        config: Any = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise ServingRefused(503, f"{folder / CONFIG} can't be read: {error}") from None
    value = config.get("model_type") if isinstance(config, Mapping) else None
    return value if isinstance(value, str) else None
