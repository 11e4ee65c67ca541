"""`python -m jobs.tools.diff --adapter A --other B`: compare two adapters of one base."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.errors import Fault, InputError
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.train.job_main import run_job
from jobs.train.monitor.progress import make_stderr_reporter

if TYPE_CHECKING:
    from jobs.store.adapters.manifest import Manifest
    from slora.formats.compare import LayerDifference

MAX_TABLE_LAYERS = 12
"""Layers in the table, the most different first; `--all` shows every one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two adapters. Exit codes as in `jobs.finetune`."""
    parser = make_adapter_parser("jobs.tools.diff", "Compare two committed adapters.")
    parser.add_argument(
        "--other", required=True, help="The adapter to compare with: NAME, or NAME@v2."
    )
    parser.add_argument("--all", action="store_true", help="Show all layers.")
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    options = parser.parse_args(arguments)

    def work() -> None:
        # Imported here, so that a wrong argument is answered before torch is loaded.
        from jobs.tools.load_adapter import pull_adapter
        from slora.formats.compare import compare_adapters
        from slora.formats.merge import get_layer_shapes

        store = open_store(options.store)
        (first_adapter, first), (second_adapter, second) = (
            pull_adapter(store, name) for name in (options.adapter, options.other)
        )
        layer_names = (
            get_layer_shapes(first_adapter).keys() | get_layer_shapes(second_adapter).keys()
        )
        progress = make_stderr_reporter("layers", len(layer_names), quiet=options.json)
        try:
            layers = compare_adapters(first_adapter, second_adapter, on_layer=progress.advance)
        except ValueError as error:
            raise InputError(
                [Fault("--other", str(error), "Compare adapters of the same base.")]
            ) from (error)
        facts = compare_manifests(first, second)
        if options.json:
            rows = [dataclasses.asdict(layer) for layer in layers]
            print(json.dumps({"a": first.label, "b": second.label, "facts": facts, "layers": rows}))
            return
        _print_differences(first.label, second.label, facts, layers, show_all=options.all)

    return run_job(work)


def compare_manifests(first: Manifest, second: Manifest) -> dict[str, tuple[str, str]]:
    """Return the facts in which the manifests differ, each with both values."""
    pairs = zip(_list_facts(first).items(), _list_facts(second).values(), strict=True)
    return {name: (a, b) for (name, a), b in pairs if a != b}


def _list_facts(manifest: Manifest) -> dict[str, str]:
    mask = manifest.mask
    return {
        "kind": manifest.kind,
        "base": manifest.base.digest[:12],
        "data": manifest.data.train_sha256[:12],
        "mask": mask.strategy if mask else "-",
        "density": f"{mask.density:g}" if mask else "-",
        "seed": str(mask.seed) if mask else "-",
        "spec": manifest.spec_sha256[:12],
        "code": manifest.code_version,
        "size": f"{manifest.size / 1e6:.1f} MB",
    }


def _print_differences(
    first: str,
    second: str,
    facts: dict[str, tuple[str, str]],
    layers: Sequence[LayerDifference],
    *,
    show_all: bool,
) -> None:
    console = Console(width=80, highlight=False)
    if facts:
        table = Table("", first, second, box=None, padding=(0, 2, 0, 0))
        for name, (a, b) in facts.items():
            table.add_row(name, a, b)
        console.print(table)
        console.print()
    visible = layers if show_all else layers[:MAX_TABLE_LAYERS]
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for header in ("|A|", "|B|", "cosine", "distance", "overlap"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in visible:
        table.add_row(
            layer.name,
            f"{layer.norm_a:.3g}",
            f"{layer.norm_b:.3g}",
            "-" if layer.cosine is None else f"{layer.cosine:.3f}",
            f"{layer.distance:.3f}",
            "-" if layer.overlap is None else f"{layer.overlap:.1%}",
        )
    console.print(table)
    if len(visible) < len(layers):
        console.print(f"... and {len(layers) - len(visible)} layers that differ less (use --all)")


if __name__ == "__main__":
    sys.exit(main())
