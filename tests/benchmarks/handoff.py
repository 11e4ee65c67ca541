"""`python -m tests.benchmarks.handoff [--quality] [--json]`: what a hand-off costs, what it keeps.

The cost is that of one square layer with 1 % of its entries trained: seconds and memory, from the
inputs of 4,096 tokens to the factors, in the outputs' and the loss's norm, against limits. With
`--quality` a small encoder is trained on some entries (24 steps of 32 x 64 tokens of the
newsgroups), and handed over at several ranks in each norm: shares kept, and held-out loss.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.handoff import split_sparse_update
from slora.handoff.linear_update import SparseUpdate
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.layers.install import install_low_rank, install_sparse, remove_layers
from slora.masks.mask import Mask, draw_random_mask

SIDE, TOKENS, BATCH, DENSITY = 4096, 4096, 512, 0.01
RANKS, NORMS = (4, 16, 64), ("weights", "outputs", "loss")
MAX_SECONDS, MAX_LAYERS = 3.0, 2.0
STEPS, ROWS, LENGTH, HELD_OUT, CALIBRATION = 24, 32, 64, 128, 2
RATE = 2e-2
CACHE = Path(".cache")


def main() -> int:
    """Exit code 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for row in _measure_quality() if options.quality else _measure_costs():
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*(_format(value) for value in row.values()))
        Console(width=100).print(table)
    costs = [row for row in rows if "x layer" in row and row["norm"] == "outputs"]
    return int(any(r["seconds"] > MAX_SECONDS or r["x layer"] > MAX_LAYERS for r in costs))


def _format(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _measure_costs() -> Iterator[dict[str, Any]]:
    mask = draw_random_mask(seed=0, name="layer", shape=(SIDE, SIDE), density=DENSITY)
    values = torch.randn(mask.nnz, generator=torch.Generator().manual_seed(0))
    x_NI, g_NO = torch.randn(BATCH, SIDE), torch.randn(BATCH, SIDE)
    for rank in (8, 128):
        # Lanczos takes half a minute for 128 triplets of a flat spectrum.
        for norm in NORMS if rank == 8 else NORMS[1:]:
            seconds, processor, layers = [], [], 0.0
            for _ in range(3):
                before, start = _read_memory(), time.perf_counter()
                processor_start = time.process_time()
                _hand_over(values, mask, norm, rank, x_NI, g_NO)
                seconds.append(time.perf_counter() - start)
                processor.append(time.process_time() - processor_start)
                layers = max(layers, (_read_memory() - before) / (4 * SIDE**2))
            yield {
                "rank": rank, "norm": norm, "seconds": statistics.median(seconds),
                "of processors": statistics.median(processor), "x layer": layers,
            }  # fmt: skip


def _hand_over(
    values: Tensor, mask: Mask, norm: str, rank: int, x_NI: Tensor, g_NO: Tensor
) -> None:
    sketch = None
    if norm != "weights":
        update = SparseUpdate(values, mask)
        sketch = start_sketch(update, rank=rank, seed=0, name="layer", gradients=norm == "loss")
        for _ in range(TOKENS // BATCH):
            sketch.add_inputs(x_NI)
            if norm == "loss":
                sketch.add_gradients(g_NO)
    split_sparse_update(values, mask, rank=rank, scale=1.0, sketch=sketch)


def _read_memory() -> int:
    """Return the highest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _measure_quality() -> Iterator[dict[str, Any]]:
    model, batches, held_out = _load_classifier()
    masks = {
        name: draw_random_mask(seed=0, name=name, shape=tuple(layer.weight.shape), density=DENSITY)
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and ".layer." in name
    }
    values = _train_sparse(model, masks, batches)
    yield {"rank": "-", "norm": "sparse", "weights": 1.0, "outputs": 1.0,
           "loss": _evaluate(model, held_out)}  # fmt: skip
    sketches = {
        (norm, rank): _sketch(model, masks, values, batches[:CALIBRATION], rank, norm == "loss")
        for norm in NORMS[1:]
        for rank in RANKS
    }
    remove_layers(model)
    yield {"rank": "-", "norm": "without", "weights": 0.0, "outputs": 0.0,
           "loss": _evaluate(model, held_out)}  # fmt: skip
    for rank in RANKS:
        for norm in NORMS:
            found = sketches.get((norm, rank), {})
            results = {
                name: split_sparse_update(
                    values[name], mask, rank=rank, scale=1.0, sketch=found.get(name)
                )
                for name, mask in masks.items()
            }
            install_low_rank(
                model, {n: LowRankInit(r.a_RI, r.b_OR) for n, r in results.items()}, scale=1.0
            )
            outputs = [r.output_share for r in results.values() if r.output_share is not None]
            yield {
                "rank": rank, "norm": norm,
                "weights": statistics.fmean(r.energy_share for r in results.values()),
                "outputs": statistics.fmean(outputs) if outputs else "",
                "loss": _evaluate(model, held_out),
            }  # fmt: skip
            remove_layers(model)


Batches = list[tuple[dict[str, Tensor], Tensor]]


def _load_classifier() -> tuple[Any, Batches, Batches]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(CACHE / "models" / "minilm")
    rows = [json.loads(line) for line in (CACHE / "data/newsgroups.train.jsonl").open()]
    labels = sorted({row["label"] for row in rows})
    torch.manual_seed(0)
    order = torch.randperm(len(rows)).tolist()
    rows = [rows[index] for index in order[: STEPS * ROWS + HELD_OUT]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(labels))
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    batches = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        inputs = tokenizer([row["text"] for row in part], truncation=True, max_length=LENGTH,
                           padding=True, return_tensors="pt")  # fmt: skip
        batches.append((dict(inputs), torch.tensor([labels.index(row["label"]) for row in part])))
    return model.eval(), batches[:STEPS], batches[STEPS:]


def _compute_loss(model: Any, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
    inputs, labels = batch
    return torch.nn.functional.cross_entropy(model(**inputs).logits, labels, reduction="sum")


def _train_sparse(model: Any, masks: Mapping[str, Mask], batches: Batches) -> dict[str, Tensor]:
    layers = install_sparse(model, masks)
    trained = [*(layer.values for layer in layers.values()), *model.classifier.parameters()]
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(batches))
        optimizer.zero_grad()
        (_compute_loss(model, batch) / ROWS).backward()
        optimizer.step()
    return {name: layer.values.detach().clone() for name, layer in layers.items()}


def _sketch(
    model: Any, masks: Mapping[str, Mask], values: Mapping[str, Tensor], batches: Batches,
    rank: int, gradients: bool,
) -> dict[str, LayerSketch]:  # fmt: skip
    sketches = {
        name: start_sketch(
            SparseUpdate(values[name], mask), rank=rank, seed=0, name=name, gradients=gradients
        )
        for name, mask in masks.items()
    }
    layers, tokens = {name: model.get_submodule(name) for name in masks}, CountedTokens()
    with sketch_layers(layers, sketches, tokens):
        for batch in batches:
            tokens.set_masks([batch[0]["attention_mask"].bool()])
            loss = _compute_loss(model, batch)
            if gradients:
                loss.backward()
    return sketches


def _evaluate(model: Any, held_out: Batches) -> float:
    with torch.no_grad():
        total = sum(float(_compute_loss(model, batch)) for batch in held_out)
    return total / sum(len(labels) for _, labels in held_out)


if __name__ == "__main__":
    sys.exit(main())
