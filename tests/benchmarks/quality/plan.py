"""What is compared with what: methods, learning rates, sizes. Settings as plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

RANK = 4
"""Of every low-rank stage: 0.76 % of MiniLM with its head, 0.91 % of SmolLM2."""
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Part:
    """One data set with its model, cut to a size."""

    name: str
    model: str
    task: str
    format: str
    data: Mapping[str, str]
    """train, and test, as files; validation is cut from train."""
    train_rows: int | None
    validation_rows: int
    test_rows: int
    max_length: int
    steps: int
    batch_size: int
    eval_every: int
    density: float
    """At which a random mask has as many entries as factors of rank RANK have parameters."""
    layers: int | None
    """Of the model's layers, the first so many; all where None."""
    target: float
    """Quality that tokens are counted to: accuracy at least, or loss at most."""
    dtype: str = "float32"

    @property
    def metric(self) -> str:
        return "accuracy" if self.task == "sequence-classification" else "loss"


def _parts(newsgroups: Mapping[str, Any], chat: Mapping[str, Any]) -> dict[str, Part]:
    folder = ".cache/data/"
    return {
        "newsgroups": Part(
            name="newsgroups", model=".cache/models/minilm", task="sequence-classification",
            format="classification",
            data={"train": f"{folder}newsgroups.train.jsonl",
                  "test": f"{folder}newsgroups.test.jsonl"},
            density=0.0156, **newsgroups,
        ),
        "chat": Part(
            name="chat", model=".cache/models/smollm2-135m-instruct", task="causal-lm",
            format="chat",
            data={"train": f"{folder}chat.train.jsonl", "test": f"{folder}chat.eval.jsonl"},
            density=0.0115, **chat,
        ),
    }  # fmt: skip


SIZES: dict[str, dict[str, Part]] = {
    "tiny": _parts(
        {"train_rows": 200, "validation_rows": 40, "test_rows": 40, "max_length": 16, "steps": 4,
         "batch_size": 4, "eval_every": 2, "layers": 1, "target": 0.05},
        {"train_rows": 40, "validation_rows": 4, "test_rows": 4, "max_length": 64, "steps": 2,
         "batch_size": 2, "eval_every": 1, "layers": 2, "target": 9.0},
    ),
    "default": _parts(
        {"train_rows": 4000, "validation_rows": 500, "test_rows": 1000, "max_length": 32,
         "steps": 80, "batch_size": 16, "eval_every": 20, "layers": None, "target": 0.5},
        {"train_rows": None, "validation_rows": 24, "test_rows": 60, "max_length": 64,
         "steps": 16, "batch_size": 4, "eval_every": 8, "layers": None, "target": 2.2},
    ),
    "full": _parts(
        {"train_rows": None, "validation_rows": 1000, "test_rows": 7528, "max_length": 256,
         "steps": 1000, "batch_size": 32, "eval_every": 50, "layers": None, "target": 0.65,
         "dtype": "bfloat16"},
        {"train_rows": None, "validation_rows": 100, "test_rows": 87, "max_length": 256,
         "steps": 200, "batch_size": 32, "eval_every": 20, "layers": None, "target": 2.0,
         "dtype": "bfloat16"},
    ),
}  # fmt: skip
"""tiny: a smoke test. default: 2 cores, one thread a training. full: for a GPU."""


@dataclass(frozen=True)
class Rival:
    """A method, and the learning rates of its own grid: (sparse stage's or None, other stage's)."""

    name: str
    method: Mapping[str, Any]
    rates: tuple[tuple[float | None, float], ...]


RATE_SCALE = {"newsgroups": 1.0, "chat": 0.4}
"""A language model that is trained for a few steps takes less than an encoder with a new head."""
LOW = ((None, 2e-3), (None, 5e-3), (None, 1e-2))
SMALL = ((None, 5e-4), (None, 2e-3), (None, 5e-3))
SPARSE = ((5e-3, 5e-3), (1e-2, 1e-2), (2e-2, 2e-2))
CHOSEN = ((5e-4, 5e-4), (1e-3, 1e-3), (3e-3, 3e-3))
"""Entries that gradients choose take less than entries drawn at random: they all pull."""
SLORA = ((5e-3, 2e-3), (1e-2, 5e-3), (2e-2, 1e-2))
SLORA_CHOSEN = ((5e-4, 2e-3), (1e-3, 5e-3), (3e-3, 5e-3))
WIDE, BY_GRADIENT = ("rows", "magnitude", "columns", "blocks"), ("fisher", "gradient", "snip")
RIVALS: tuple[Rival, ...] = (
    Rival("lora", {"kind": "lora"}, LOW),
    Rival("full", {"kind": "full"}, ((None, 1e-4), (None, 3e-4), (None, 1e-3))),
    Rival("sparse random", {"kind": "sparse"}, SPARSE),
    Rival("slora random", {"kind": "slora"}, SLORA),
    Rival("slora random, fold", {"kind": "slora", "handoff": {"residual": "fold"}}, SLORA),
    *(Rival(f"slora {mask}", {"kind": "slora", "mask": mask}, SLORA) for mask in WIDE),
    *(Rival(f"slora {m}", {"kind": "slora", "mask": m}, SLORA_CHOSEN) for m in BY_GRADIENT),
    Rival("sparse fisher", {"kind": "sparse", "mask": "fisher"}, CHOSEN),
    Rival("sparse rows", {"kind": "sparse", "mask": "rows"}, SPARSE),
    Rival("lora pissa", {"kind": "lora", "init": "pissa"}, SMALL),
    Rival("lora lora-ga", {"kind": "lora", "init": "lora-ga"}, SMALL),
    Rival("slora random, norm", {"kind": "slora", "handoff": {"rescale": "norm"}}, SLORA),
    Rival("slora random, 0.7", {"kind": "slora", "sparse_share": 0.7}, SLORA),
)
"""In the order of what a reader wants to know first."""


@dataclass(frozen=True)
class Setting:
    """One training: everything that its result depends on."""

    part: Part
    rival: str
    method: Mapping[str, Any]
    rates: tuple[float | None, float]
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same setting, whatever is printed of it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def spec(self, data: Mapping[str, str], store: str) -> dict[str, Any]:
        """The fine-tuning spec as plain values; `data` names the model's folder too."""
        part, (sparse_rate, rate) = self.part, self.rates
        return {
            "name": "quality",
            "model": {"path": data["model"], "task": part.task, "dtype": part.dtype},
            "data": {"train": data["train"], "eval": data["validation"], "format": part.format,
                     "max_length": part.max_length},
            "method": {"rank": RANK, "alpha": 2 * RANK, "density": part.density, **self.method},
            "train": {"steps": part.steps, "batch_size": part.batch_size,
                      "micro_batch_size": part.batch_size, "learning_rate": rate,
                      "sparse_learning_rate": sparse_rate, "schedule": "cosine", "warmup": 0.05,
                      "eval_every": part.eval_every, "checkpoint_every": None, "seed": self.seed},
            "cluster": {"workers": 1, "sharding": "replicate"},
            "store": store,
        }  # fmt: skip


def grid(part: Part, rivals: tuple[Rival, ...]) -> Iterator[Setting]:
    """Every method at every rate of its grid, on the first seed."""
    for rival in rivals:
        for sparse_rate, rate in rival.rates:
            scale = RATE_SCALE[part.name]
            rates = (None if sparse_rate is None else sparse_rate * scale, rate * scale)
            yield Setting(part, rival.name, rival.method, rates, SEEDS[0])


def repeats(part: Part, rival: Rival, rates: tuple[float | None, float]) -> Iterator[Setting]:
    """The other seeds at the chosen rate."""
    for seed in SEEDS[1:]:
        yield Setting(part, rival.name, rival.method, rates, seed)


def best(part: Part, tried: Mapping[tuple[float | None, float], float]) -> Any:
    """The rate with the best validation figure; of equal ones the lower."""
    sign = -1 if part.metric == "accuracy" else 1
    return min(tried, key=lambda rates: (sign * tried[rates], rates[1]))
