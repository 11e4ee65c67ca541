"""`python -m jobs.export --adapter NAME --to FOLDER --as peft|merged|sparse`: in another form."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.adapter_arguments import adapter_parser
from jobs.ended import ended
from jobs.errors import Fault, InputError
from jobs.progress import on_stderr
from jobs.store.objects import open_store

if TYPE_CHECKING:
    from slora.export import Export

FORMS = ("peft", "merged", "sparse")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the fine-tuning job's."""
    asked = _parser().parse_args(arguments)

    def work() -> None:
        _check(asked)
        folder = Path(asked.to)
        # Here, so that a wrong argument is answered before torch is loaded.
        if asked.form == "merged":
            from jobs.merge import merge_into

            label = merge_into(folder, asked.adapter, store=asked.store, base=asked.base)
            print(json.dumps({"adapter": label, "folder": str(folder), "form": "merged"})
                  if asked.json else f"{label} merged into {folder}")  # fmt: skip
            return
        exported, label = _exported(asked)
        _write(folder, exported)
        told = _told(exported, label, folder, asked.form)
        if asked.json:
            print(json.dumps(told))
        else:
            _say(told)

    return ended(work)


def _parser() -> argparse.ArgumentParser:
    parser = adapter_parser("jobs.export", "A committed adapter in another form.")
    parser.add_argument("--to", required=True, help="a folder that is absent or empty")
    parser.add_argument("--as", dest="form", choices=FORMS, default="peft", help="peft: a LoRA "
                        "folder; merged: a plain model; sparse: values and positions")  # fmt: skip
    parser.add_argument("--rank", type=int, help="of the LoRA")
    parser.add_argument("--energy", type=float, help="the smallest rank that keeps this share")
    parser.add_argument("--density", type=float, help="share of the entries of a sparse file")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser


def _check(asked: argparse.Namespace) -> None:
    """Raises InputError with every argument that can't be."""
    faults = []
    folder = Path(asked.to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = f"{folder} is there already and is not empty"
        faults.append(Fault("--to", problem, "Name another folder."))
    allowed = {"peft": ("rank", "energy"), "sparse": ("density",), "merged": ()}[asked.form]
    for name in ("rank", "energy", "density"):
        if getattr(asked, name) is not None and name not in allowed:
            faults.append(Fault(f"--{name}", f"means nothing with --as {asked.form}", "Drop it."))
    if asked.form == "peft" and (asked.rank is None) == (asked.energy is None):
        problem = "a LoRA needs a rank, or the share of the energy that finds it"
        faults.append(Fault("--rank", problem, "Give one of --rank 16 and --energy 0.9."))
    if asked.rank is not None and asked.rank < 1:
        faults.append(Fault("--rank", f"{asked.rank} is no rank", "Use 1 or more."))
    for name in ("energy", "density"):
        value = getattr(asked, name)
        if value is not None and not 0 < value <= 1:
            faults.append(Fault(f"--{name}", f"{value} is no share", "Use above 0, at most 1."))
    if faults:
        raise InputError(faults)


def _exported(asked: argparse.Namespace) -> tuple[Export, str]:
    from jobs.adapted import pulled
    from jobs.model_files import uses_conv1d
    from slora.export import to_lora, to_sparse
    from slora.merge import layer_shapes

    store = open_store(asked.store)
    adapter, manifest = pulled(store, asked.adapter)
    # An energy asks for every layer twice: for the rank that it needs, then at that rank.
    passes = 1 if asked.energy is None else 2
    pace = on_stderr("layers", passes * len(layer_shapes(adapter)), quiet=asked.json)
    if asked.form == "sparse":
        try:
            found = to_sparse(adapter, density=asked.density, seen=pace.seen)
        except ValueError as wrong:
            raise InputError([Fault("--density", str(wrong), "E.g. 0.01.")]) from wrong
    else:
        found = to_lora(
            adapter,
            rank=asked.rank,
            energy=asked.energy,
            head_modules=tuple(dict.fromkeys(name.split(".")[0] for name in adapter.head)),
            conv1d=uses_conv1d(asked.base or manifest.base.path),
            seen=pace.seen,
        )
    return found, manifest.label


def _write(folder: Path, exported: Export) -> None:
    from slora.folder import LoraAdapter, write_lora, write_sparse

    if isinstance(exported.adapter, LoraAdapter):
        write_lora(folder, exported.adapter)
    else:
        write_sparse(folder, exported.adapter)


def _told(exported: Export, label: str, folder: Path, form: str) -> dict[str, Any]:
    kept = {layer.name: layer.kept for layer in exported.layers}
    return {
        "adapter": label,
        "folder": str(folder),
        "form": form,
        "rank": getattr(exported.adapter, "rank", None),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "kept": exported.kept,
        "layers": kept,
    }


def _say(told: dict[str, Any]) -> None:
    rank = f" of rank {told['rank']}" if told["rank"] else ""
    kept = told["layers"]
    worst = min(kept, key=lambda name: kept[name])
    print(f"{told['adapter']} as {told['form']}{rank} in {told['folder']}: "
          f"{told['bytes'] / 1e6:.1f} MB")  # fmt: skip
    print(f"energy of the update that it keeps: {told['kept']:.1%}")
    print(f"  in the median layer {statistics.median(kept.values()):.1%}, in the worst "
          f"{kept[worst]:.1%} ({worst})")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
