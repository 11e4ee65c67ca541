"""Sketch the inputs of an adapter's layers on rows, for an export in the outputs' norm."""

from __future__ import annotations

import argparse

from jobs.spec.load import validate_spec
from jobs.store.base import ObjectStore
from jobs.tools.adapter_feed import open_adapter_feed
from jobs.tools.adapter_rows import load_adapter_spec, scan_adapter_rows
from jobs.tools.load_adapter import AdaptedModel, load_adapted_model
from jobs.train.data.calibration import make_sketch_pass
from slora.formats.export import make_layer_update
from slora.formats.merge import UpdateSource, get_layer_shapes
from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.layers.shapes import count_experts

MAX_SEQUENCES = 64
"""Rows, or sequences of packed ones, that are read: some thousand tokens tell the directions."""


def sketch_adapter(
    store: ObjectStore,
    adapter: UpdateSource,
    options: argparse.Namespace,
    adapted: AdaptedModel | None = None,
) -> dict[str, LayerSketch]:
    """Return the sketch of each layer but fused experts, on the first rows of `options.data`.
    `adapted` is the model, which is loaded if it was not.

    Raise InputError if the base or the spec of the adapter's run is not at hand, or for bad rows.
    """
    adapted = adapted or load_adapted_model(store, options.adapter, base=options.base)
    spec = load_adapter_spec(
        store,
        adapted.manifest,
        options,
        task=adapted.task,
        label_kind=adapted.saved.label_kind,
    )
    if options.max_length is not None:
        values = spec.model_dump(mode="json")
        values["data"]["max_length"] = options.max_length
        spec = validate_spec(values)
    scan = scan_adapter_rows(spec, options.data, adapted.labels)
    sketches = {
        name: start_sketch(
            make_layer_update(adapter, name), rank=min(options.rank, *shape), seed=0, name=name
        )
        for name, shape in get_layer_shapes(adapter).items()
        if count_experts(shape) == 1
    }
    layers = {name: adapted.model.get_submodule(name) for name in sketches}
    tokens = CountedTokens()
    with open_adapter_feed(spec, adapted, scan, batch_size=1) as rows:
        run_pass = make_sketch_pass(
            adapted.model,
            rows.feed,
            batches=MAX_SEQUENCES,
            device=rows.device,
            gradients=False,
            choice=rows.choice,
        )
        with sketch_layers(layers, sketches, tokens):
            run_pass(tokens)
    return sketches
