"""One training of the benchmark: what its result depends on, its key, and its spec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tests.benchmarks.quality.corpora import Corpus
from tests.benchmarks.quality.variants import Point, Variant

SPEC_KEYS = {
    "adapter": "learning_rate",
    "sparse": "sparse_learning_rate",
    "head": "head_learning_rate",
}
"""The key in the section `train` that an axis sets."""


@dataclass(frozen=True)
class Setting:
    """A variant on a data set, at its rates, from a seed."""

    corpus: Corpus
    variant: Variant
    point: Point
    seed: int

    @property
    def key(self) -> str:
        """Return a digest of what the result depends on: not of names, order or grids."""
        facts = {
            "corpus": asdict(self.corpus),
            "method": self.variant.method,
            "model": self.variant.model,
            "peft": self.variant.peft,
            "point": dict(self.point),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Return the setting for people."""
        rates = ", ".join(f"{axis} {rate:g}" for axis, rate in self.point.items())
        return f"{self.corpus.name}, {self.variant.name}, {rates}, seed {self.seed}"

    @property
    def dtype(self) -> str:
        """Return the dtype of the base."""
        return str(self.variant.model.get("dtype", self.corpus.dtype))

    def make_spec(self, splits: Mapping[str, str], store: str) -> dict[str, Any]:
        """Return the fine-tuning's spec as plain values; `splits` are the paths of the rows."""
        corpus, variant = self.corpus, self.variant
        rates = {SPEC_KEYS[axis]: rate for axis, rate in self.point.items()}
        return {
            "name": "quality",
            "model": {"path": corpus.model, "task": corpus.task, "dtype": corpus.dtype,
                      **variant.model},
            "data": {"train": splits["train"], "eval": splits["validation"],
                     "format": corpus.format, "max_length": corpus.max_length},
            "method": {"density": corpus.density, **variant.method},
            "train": {"steps": corpus.steps, "batch_size": corpus.batch_size,
                      "micro_batch_size": corpus.batch_size, "schedule": "cosine", "warmup": 0.05,
                      "eval_every": corpus.eval_every, "checkpoint_every": None,
                      "seed": self.seed, **rates},
            "cluster": {"workers": 1, "sharding": "replicate"},
            "store": store,
        }  # fmt: skip


def find_refusal(setting: Setting) -> str | None:
    """Return why the product refuses the setting's spec, such as a key that it does not know yet;
    None if it is accepted.
    """
    from jobs.errors import InputError
    from jobs.spec.load import validate_spec

    splits = dict.fromkeys(("train", "validation"), "rows.jsonl")
    try:
        validate_spec(setting.make_spec(splits, "file:///tmp/store"))
    except InputError as error:
        return "; ".join(str(error).splitlines())
    return None
