"""`python -m jobs.diff --adapter A --other B`: how far apart two adapters of one base are."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.adapter_arguments import adapter_parser
from jobs.ended import ended
from jobs.errors import Fault, InputError
from jobs.progress import on_stderr
from jobs.store.objects import open_store

if TYPE_CHECKING:
    from jobs.store.manifest import Manifest
    from slora.compare import LayerDifference

SHOWN = 12
"""Layers of a table, the most different first; `--all` shows every one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the fine-tuning job's."""
    parser = adapter_parser("jobs.diff", "Two committed adapters side by side.")
    parser.add_argument("--other", required=True, help="NAME, or NAME@v2 for one version")
    parser.add_argument("--all", action="store_true", help="every layer")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args(arguments)

    def work() -> None:
        # Here, so that a wrong argument is answered before torch is loaded.
        from jobs.adapted import pulled
        from slora.compare import compare
        from slora.merge import layer_shapes

        store = open_store(asked.store)
        (first, one), (second, two) = (pulled(store, n) for n in (asked.adapter, asked.other))
        both = layer_shapes(first).keys() | layer_shapes(second).keys()
        pace = on_stderr("layers", len(both), quiet=asked.json)
        try:
            layers = compare(first, second, seen=pace.seen)
        except ValueError as wrong:
            raise InputError([Fault("--other", str(wrong), "Compare adapters of one base.")]) from (
                wrong
            )
        facts = facts_that_differ(one, two)
        if asked.json:
            rows = [dataclasses.asdict(layer) for layer in layers]
            print(json.dumps({"a": one.label, "b": two.label, "facts": facts, "layers": rows}))
            return
        _show(one.label, two.label, facts, layers, every=asked.all)

    return ended(work)


def facts_that_differ(one: Manifest, two: Manifest) -> dict[str, tuple[str, str]]:
    """What the manifests say of each, where they say different things."""
    both = zip(_facts(one).items(), _facts(two).values(), strict=True)
    return {name: (a, b) for (name, a), b in both if a != b}


def _facts(manifest: Manifest) -> dict[str, str]:
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


def _show(
    one: str,
    two: str,
    facts: dict[str, tuple[str, str]],
    layers: Sequence[LayerDifference],
    *,
    every: bool,
) -> None:
    console = Console(width=80, highlight=False)
    if facts:
        table = Table("", one, two, box=None, padding=(0, 2, 0, 0))
        for name, (a, b) in facts.items():
            table.add_row(name, a, b)
        console.print(table)
        console.print()
    shown = layers if every else layers[:SHOWN]
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for header in ("|A|", "|B|", "cosine", "distance", "overlap"):
        table.add_column(header, justify="right", no_wrap=True)
    for layer in shown:
        table.add_row(
            layer.name,
            f"{layer.norm_a:.3g}",
            f"{layer.norm_b:.3g}",
            "-" if layer.cosine is None else f"{layer.cosine:.3f}",
            f"{layer.distance:.3f}",
            "-" if layer.overlap is None else f"{layer.overlap:.1%}",
        )
    console.print(table)
    if len(shown) < len(layers):
        console.print(f"... and {len(layers) - len(shown)} layers less different (--all)")


if __name__ == "__main__":
    sys.exit(main())
