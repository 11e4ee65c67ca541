"""The description of a model as transformers builds it: names, shapes and kinds. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, TypeAdapter

from slora.layers.shapes import LayerShape


def _parse_shape(value: Any) -> LayerShape:
    return value if isinstance(value, LayerShape) else LayerShape(*map(int, value))


def _dump_shape(shape: LayerShape) -> list[int]:
    return [*shape, shape.experts]


Shape = Annotated[LayerShape, PlainValidator(_parse_shape), PlainSerializer(_dump_shape)]
"""A layer's shape; in JSON its rows, columns and experts."""


@dataclass(frozen=True)
class TensorFacts:
    """A parameter or a buffer of a model."""

    shape: tuple[int, ...]
    dtype: str
    label_axis: int | None = None
    """The dimension whose size is the number of a classifier's labels."""

    def count(self, labels: int) -> int:
        """Count the elements for this number of labels."""
        sizes = list(self.shape)
        if self.label_axis is not None:
            sizes[self.label_axis] = labels
        return math.prod(sizes)


@dataclass(frozen=True)
class ModelDescription:
    """A model for a task. Names are those of the loaded model, not those of its files."""

    transformers: str
    """The version that built the model."""
    model_class: str
    attention: str
    """The attention implementation that transformers chooses."""
    kernels: tuple[str, ...]
    """The values of model.attention that its class supports, without auto."""
    parameters: Mapping[str, TensorFacts]
    """Each once, in the model's order; the head's included."""
    buffers: Mapping[str, TensorFacts]
    """Buffers that are saved with the model."""
    tied: Mapping[str, str]
    """Further names of parameters, with their names in `parameters`."""
    kinds: Mapping[str, str]
    """Kind of every module with parameters of its own: linear | conv1d | embedding | convolution |
    experts | tensor | matrix | vector | scalar."""
    linears: Mapping[str, Shape]
    """Shape of every layer that can be adapted; fused experts by the name of their parameter."""
    left_out: Mapping[str, str]
    """The other layers and matrices, with the reason why they cannot."""
    excluded: tuple[str, ...]
    """A line for each reason, without those of the head and of every transformer."""
    token_width: int
    """Numbers of one token's rows: of the input embedding, and of an output projection that does
    not share them."""
    head: tuple[str, ...]
    """Modules that the task adds or the files lack: trained and saved completely."""
    labels: tuple[str, ...]
    """Labels of a tuned classifier, in the order of its head; empty if the files have none, or one
    that their config does not fit."""
    label_kind: str
    """The labels of a row that a tuned classifier's head scores, as data.labels; or empty."""
    has_saved_head: bool
    """The files have the weights that score a classifier's labels."""
    unused: tuple[str, ...]
    """Weights in the files that the model does not have, without the head of another task."""
    layer_types: tuple[str, ...]
    window: int | None
    """Positions that a layer with local attention sees."""
    is_stateful: bool
    """The model carries a state along the sequence, as state-space models do."""
    vocabulary: int
    """Rows of the input embedding."""
    plain_loss: str = ""
    """Why the loss of tokens needs all logits at once; empty if it is computed in chunks."""

    @property
    def base(self) -> dict[str, TensorFacts]:
        """The parameters outside the head."""
        return {name: facts for name, facts in self.parameters.items() if not self.is_in_head(name)}

    def is_in_head(self, name: str) -> bool:
        """Return whether a parameter belongs to the head."""
        return any(name.startswith(f"{module}.") for module in self.head)

    def count_base_parameters(self) -> int:
        """Count the parameters outside the head."""
        return sum(facts.count(0) for facts in self.base.values())

    def count_head_parameters(self, labels: int) -> int:
        """Count the parameters of the head for this number of labels."""
        return sum(
            facts.count(labels) for name, facts in self.parameters.items() if self.is_in_head(name)
        )

    def count_head_tensors(self) -> int:
        """Count the tensors of the head."""
        return sum(map(self.is_in_head, self.parameters))


_DESCRIPTION = TypeAdapter(ModelDescription)


def dump_description(description: ModelDescription) -> Any:
    """Return the description as values of JSON."""
    return _DESCRIPTION.dump_python(description, mode="json")


def parse_description(text: bytes | str) -> ModelDescription:
    """Return the description of a JSON text. Raise ValueError."""
    return _DESCRIPTION.validate_json(text)
