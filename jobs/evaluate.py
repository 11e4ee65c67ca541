"""`python -m jobs.evaluate --adapter NAME --data FILE`: a committed adapter on held-out rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from jobs.adapter_arguments import adapter_parser
from jobs.data.survey import Survey, survey
from jobs.ended import ended
from jobs.errors import Fault, InputError
from jobs.narrate import figures
from jobs.store.objects import open_store

BATCH = 4
"""Sequences at once; the result does not depend on it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes as the fine-tuning job's."""
    parser = adapter_parser("jobs.evaluate", "Evaluate a committed adapter.")
    parser.add_argument("--data", required=True, help="rows as in data.eval of a spec")
    parser.add_argument("--format", default="auto", help="as data.format")
    parser.add_argument("--max-length", type=int, default=128, help="tokens, as data.max_length")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args(arguments)

    def work() -> None:
        # Here, so that a wrong argument is answered before torch is loaded.
        import torch

        from jobs.adapted import load_adapted
        from jobs.data.feed import Feed
        from jobs.data.source import Source
        from jobs.measure import evaluate

        adapted = load_adapted(open_store(asked.store), asked.adapter, base=asked.base)
        found = survey(asked.data, asked.format, adapted.task, "--data")
        _check_labels(found, adapted.labels)
        feed = Feed(
            Source(files=found.files, format=found.format, labels=adapted.labels),
            adapted.tokenizer,
            task=adapted.task,
            max_length=asked.max_length,
            packing=True,
            batch_size=BATCH,
            micro_batch_size=BATCH,
            rank=0,
            world_size=1,
            seed=0,
            shuffle=False,
        )
        measured = evaluate(adapted.model, feed, task=adapted.task, device=torch.device("cpu"))
        if asked.json:
            print(json.dumps({"adapter": adapted.manifest.label, **measured}))
        else:
            print(f"{adapted.manifest.label} on {found.rows:,} rows: {figures(measured)}")

    return ended(work)


def _check_labels(found: Survey, known: tuple[str, ...]) -> None:
    unknown = [label for label in found.labels if label not in known]
    if unknown:
        problem = f"labels that the adapter has never seen: {', '.join(map(repr, unknown[:8]))}"
        raise InputError([Fault("--data", problem, "Remove their rows.")])


if __name__ == "__main__":
    sys.exit(main())
