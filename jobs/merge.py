"""`python -m jobs.merge --adapter NAME --to FOLDER`: write base and adapter as one plain model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.errors import Fault, InputError
from jobs.store.open import open_store
from jobs.tools.adapter_arguments import make_adapter_parser
from jobs.train.job_main import run_job


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge one adapter. Exit codes as in `jobs.finetune`."""
    parser = make_adapter_parser("jobs.merge", "Merge a committed adapter into its base model.")
    parser.add_argument("--to", required=True, help="Target folder; it must be absent or empty.")
    options = parser.parse_args(arguments)

    def work() -> None:
        folder = Path(options.to)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            problem = f"{folder} exists and is not empty"
            raise InputError([Fault("--to", problem, "Use another folder.")])
        label = merge_into_folder(folder, options.adapter, store=options.store, base=options.base)
        print(f"{label} merged into {folder}")

    return run_job(work)


def merge_into_folder(folder: Path, name: str, *, store: str, base: str | None) -> str:
    """Write base and adapter as one model, and return the adapter's label. Raise as load_adapter
    does.
    """
    # Imported here, so that a wrong argument is answered before torch is loaded.
    from jobs.tools.load_adapter import load_adapted_model
    from jobs.train.model.tokenizer import save_tokenizer

    adapted = load_adapted_model(open_store(store), name, base=base, merged=True)
    adapted.model.save_pretrained(folder)
    save_tokenizer(adapted.tokenizer, folder)
    return adapted.manifest.label


if __name__ == "__main__":
    sys.exit(main())
