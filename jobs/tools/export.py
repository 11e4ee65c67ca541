"""`python -m jobs.tools.export --adapter NAME --to FOLDER --as FORM`: convert an adapter.

The forms: a LoRA folder (peft), a plain model (merged), values and positions (sparse), and for
llama.cpp a LoRA (gguf-lora) or a plain model (gguf).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.inspect.model_folder import find_model_folder
from jobs.store.adapters.operations import resolve_adapter
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.train.job_main import run_job
from jobs.train.monitor.progress import make_stderr_reporter

if TYPE_CHECKING:
    from slora.formats.export import ExportedAdapter
    from slora.formats.merge import UpdateSource
    from slora.formats.peft import LoraAdapter

FORMS = ("peft", "merged", "sparse", "gguf-lora", "gguf")
ALLOWED_OPTIONS = {
    "peft": ("rank", "energy", "data"),
    "sparse": ("density",),
    "merged": (),
    "gguf-lora": ("rank", "energy", "data", "dtype"),
    "gguf": ("dtype",),
}
NEEDS_RANK = Fault(
    "--rank",
    "a LoRA needs either a rank, or a share of the energy to retain",
    "Use, for example, --rank 16 or --energy 0.9.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one adapter. Exit codes as in `jobs.finetune`."""
    options = _make_parser().parse_args(arguments)

    def work() -> None:
        _check_options(options)
        folder = Path(options.to)
        # Imported here, so that a wrong argument is answered before torch is loaded.
        if options.form in ("merged", "gguf"):
            _write_model(folder, options)
            return
        exported, label = _export_adapter(options)
        if options.form == "gguf-lora":
            from jobs.tools.llama_cpp.export_gguf import write_lora_file

            write_lora_file(folder, exported.adapter, open_store(options.store), options)
        else:
            _write_adapter(folder, exported, base=options.base)
        if exported.unheld and not options.json:
            print(f"not in it: {len(exported.unheld)} other tensors that were trained, such as "
                  f"{exported.unheld[0]}", file=sys.stderr)  # fmt: skip
        if exported.adapter.tokens and options.form != "gguf-lora":
            from jobs.tools.load_adapter import copy_tokenizer

            copy_tokenizer(open_store(options.store), label, folder)
        report = _make_report(exported, label, folder, options.form)
        if options.json:
            print(json.dumps(report))
        else:
            _print_report(report)

    return run_job(work)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_adapter_parser("jobs.tools.export", "Export a committed adapter in another form.")
    parser.add_argument("--to", required=True, help="The target folder: new or empty.")
    parser.add_argument("--as", dest="form", choices=FORMS, default="peft", help="peft: a LoRA "
                        "folder; merged: a plain model; sparse: values and positions; gguf-lora "
                        "and gguf: a LoRA and a plain model for llama.cpp")  # fmt: skip
    parser.add_argument("--rank", type=int, help="Rank of the LoRA folder.")
    parser.add_argument(
        "--energy", type=float, help="Use the smallest rank that retains this share of the energy."
    )
    parser.add_argument(
        "--data",
        help="Rows, in the form of data.train: the LoRA keeps what counts for the outputs on them, "
        "instead of for the weights. It needs the base.",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        help="Tokens per sequence of --data, where the files of the adapter's run are gone.",
    )
    parser.add_argument("--density", type=float, help="Share of the entries in a sparse file.")
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="Type of the matrices in a GGUF file: float16 for models, float32 for a LoRA.",
    )
    parser.add_argument("--json", action="store_true", help="Output JSON.")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    """Raise InputError with all wrong arguments."""
    faults = []
    folder = Path(options.to)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = f"{folder} exists and is not empty"
        faults.append(Fault("--to", problem, "Use another folder."))
    for name in ("rank", "energy", "data", "density", "dtype"):
        if getattr(options, name) is not None and name not in ALLOWED_OPTIONS[options.form]:
            faults.append(
                Fault(f"--{name}", f"has no effect with --as {options.form}", "Remove it.")
            )
    if options.form == "peft" and (options.rank is None) == (options.energy is None):
        faults.append(NEEDS_RANK)
    if options.data is not None and options.energy is not None:
        problem = "a share of the energy is one of the weights, and --data is about the outputs"
        faults.append(Fault("--energy", problem, "Use --rank, or remove --data."))
    if options.rank is not None and options.rank < 1:
        faults.append(Fault("--rank", f"{options.rank} is not a rank", "Use 1 or more."))
    for name in ("energy", "density"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= 1:
            faults.append(
                Fault(f"--{name}", f"{value} is not a share", "Use more than 0 and at most 1.")
            )
    if faults:
        raise InputError(faults)


def _write_model(folder: Path, options: argparse.Namespace) -> None:
    """Write the adapter and its base as one model, for transformers or llama.cpp, and say so."""
    if options.form == "gguf":
        from jobs.tools.llama_cpp.export_gguf import write_model_file

        label = write_model_file(folder, open_store(options.store), options)
    else:
        from jobs.merge import merge_into_folder

        label = merge_into_folder(folder, options.adapter, store=options.store, base=options.base)
    print(json.dumps({"adapter": label, "folder": str(folder), "form": options.form})
          if options.json else f"{label} merged into {folder}")  # fmt: skip


def _export_adapter(options: argparse.Namespace) -> tuple[ExportedAdapter, str]:
    from jobs.inspect.model_folder import has_conv1d
    from jobs.tools.load_adapter import pull_adapter
    from slora.formats.export import convert_to_lora, convert_to_sparse, hold_factors
    from slora.formats.merge import get_layer_shapes

    store = open_store(options.store)
    adapter: UpdateSource
    adapted = None
    if resolve_adapter(store, options.adapter).kind == "full":
        from jobs.tools.full_model_update import load_full_update

        adapter, adapted = load_full_update(store, options.adapter, base=options.base)
        manifest = adapted.manifest
    else:
        adapter, manifest = pull_adapter(store, options.adapter)
    if options.form == "gguf-lora" and options.rank is None and options.energy is None:
        if (exported := hold_factors(adapter)) is None:
            raise InputError([NEEDS_RANK])
        return exported, manifest.label
    # With an energy there are two passes over the layers: to find each rank, then at that rank.
    passes = 1 if options.energy is None else 2
    progress = make_stderr_reporter(
        "layers", passes * len(get_layer_shapes(adapter)), quiet=options.json
    )
    if options.form == "sparse":
        try:
            exported = convert_to_sparse(
                adapter, density=options.density, on_layer=progress.advance
            )
        except ValueError as error:
            raise InputError([Fault("--density", str(error), "E.g. 0.01.")]) from error
    else:
        sketches = {}
        if options.data is not None:
            from jobs.tools.output_sketches import sketch_adapter

            sketches = sketch_adapter(store, adapter, options, adapted)
        exported = convert_to_lora(
            adapter,
            rank=options.rank,
            energy=options.energy,
            sketches=sketches,
            head_modules=_list_head_modules(adapter),
            conv1d=has_conv1d(options.base)
            if options.base
            else has_conv1d(manifest.base.path, manifest.base.revision),
            on_layer=progress.advance,
        )
    return exported, manifest.label


def _list_head_modules(adapter: UpdateSource) -> tuple[str, ...]:
    """Return the modules of an adapter's head: those of the task, and a pooler inside the base."""
    from slora.formats.peft import LoraAdapter
    from slora.layers.token_rows import SUFFIX

    if isinstance(adapter, LoraAdapter):
        return adapter.head_modules
    modules = dict[str, None]()
    for name in adapter.head:
        if not name.endswith(SUFFIX):
            parts = name.split(".")
            depth = next((at for at, part in enumerate(parts) if "pooler" in part), 0)
            modules[".".join(parts[: depth + 1])] = None
    return tuple(modules)


def _write_adapter(folder: Path, exported: ExportedAdapter, *, base: str | None) -> None:
    from slora.formats.peft import LoraAdapter, write_lora, write_sparse

    adapter = exported.adapter
    if not isinstance(adapter, LoraAdapter):
        write_sparse(folder, adapter)
        return
    write_lora(folder, adapter)
    model_folder = find_model_folder(base or adapter.base)
    # Without the base at hand there is nothing to load the folder into.
    if model_folder is not None and (loss := _find_loss(folder, adapter, model_folder)):
        shutil.rmtree(folder)
        problem = f"stock PEFT can't hold this adapter: {loss}"
        raise InputError([Fault("--as", problem, "Use --as merged, or --as sparse.")])


def _find_loss(folder: Path, adapter: LoraAdapter, model_folder: Path) -> str:
    from jobs.train.model.base_model import load_empty_model
    from slora.formats.peft_check import find_peft_loss

    base = load_empty_model(str(model_folder), task=adapter.task, labels=adapter.labels)
    return find_peft_loss(base, folder, adapter)


def _make_report(exported: ExportedAdapter, label: str, folder: Path, form: str) -> dict[str, Any]:
    shares = {layer.name: layer.energy_share for layer in exported.layers}
    return {
        "adapter": label,
        "folder": str(folder),
        "form": form,
        "rank": getattr(exported.adapter, "rank", None),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "norm": "weights" if exported.output_share is None else "outputs",
        "energy_share": exported.energy_share,
        "output_share": exported.output_share,
        "layers": shares,
        "unheld": list(exported.unheld),
    }


def _print_report(report: dict[str, Any]) -> None:
    rank = f" of rank {report['rank']}" if report["rank"] else ""
    shares = report["layers"]
    worst = min(shares, key=lambda name: shares[name])
    print(f"{report['adapter']} as {report['form']}{rank} in {report['folder']}: "
          f"{report['bytes'] / 1e6:.1f} MB")  # fmt: skip
    print(f"retained energy of the update: {report['energy_share']:.1%}")
    print(f"  in the median layer {statistics.median(shares.values()):.1%}, in the worst "
          f"{shares[worst]:.1%} ({worst})")  # fmt: skip
    if report["form"] == "peft" and report["output_share"] is None:
        print("  the best of its rank for the weights; with --data ROWS, for the layers' outputs")
    elif report["output_share"] is not None:
        print(f"retained energy of the layers' outputs on these rows, on average: "
              f"{report['output_share']:.1%}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
