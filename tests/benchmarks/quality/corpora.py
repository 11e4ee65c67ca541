"""The data sets of the benchmark: the rows, the model that learns them, and how long. Plain values.

Each training is long enough for its curve to flatten under a cosine decay: 400 steps of 32 texts of
64 tokens, or 150 steps of 4 packed sequences of 256 tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANK = 4
"""The rank that counts are equal to: factors of this rank, or as many numbers in another form."""


@dataclass(frozen=True)
class Corpus:
    """A data set, its model, and the length of a training."""

    name: str
    model: str
    task: str
    format: str
    train: str
    """A file; validation rows are cut from it."""
    test: str
    validation_rows: int
    test_rows: int
    max_length: int
    steps: int
    batch_size: int
    eval_every: int
    """Steps between evaluations on the validation rows."""
    density: float
    """The share of the targets' weights that is as many numbers as factors of rank RANK."""
    train_rows: int | None = None
    dtype: str = "bfloat16"
    """What `model.dtype: auto` picks on the machines of the results, set so that a machine without
    its instructions is slower and not different."""

    @property
    def metric(self) -> str:
        """Return `accuracy`, or `loss` of a language model."""
        return "accuracy" if self.has_head else "loss"

    @property
    def has_head(self) -> bool:
        """Return whether a head is trained, with a learning rate of its own."""
        return self.task == "sequence-classification"

    @property
    def sign(self) -> int:
        """Return 1 if a higher figure is better, else -1."""
        return 1 if self.metric == "accuracy" else -1


DATA, MODELS = ".cache/data", ".cache/models"
CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="newsgroups", model=f"{MODELS}/minilm", task="sequence-classification",
            format="classification", train=f"{DATA}/newsgroups.train.jsonl",
            test=f"{DATA}/newsgroups.test.jsonl", validation_rows=500, test_rows=2000,
            max_length=64, steps=400, batch_size=32, eval_every=40, density=0.0156,
        ),
        Corpus(
            name="chat", model=f"{MODELS}/smollm2-135m-instruct", task="causal-lm", format="chat",
            train=f"{DATA}/chat.train.jsonl", test=f"{DATA}/chat.eval.jsonl", validation_rows=100,
            test_rows=87, max_length=256, steps=150, batch_size=4, eval_every=15, density=0.0115,
        ),
        Corpus(
            name="addresses", model=f"{MODELS}/smollm2-135m-instruct", task="causal-lm",
            format="text", train=f"{DATA}/addresses.train.jsonl",
            test=f"{DATA}/addresses.test.jsonl", validation_rows=100, test_rows=300,
            max_length=256, steps=150, batch_size=4, eval_every=30, density=0.0115,
        ),
    )
}  # fmt: skip


class MissingData(Exception):
    """A data set or its model is not on this machine."""


def write_rows(corpus: Corpus, folder: Path) -> dict[str, str]:
    """Write train, validation and test rows as files, the same ones every time. Return their paths.

    Raise MissingData, with the command that fetches them.
    """
    for needed in (corpus.train, corpus.test, corpus.model):
        if not Path(needed).exists():
            command = f"python infra/demo/prepare.py {corpus.name}"
            raise MissingData(f"{corpus.name}: {needed} is missing. Run: {command}")
    train, test = _shuffle_lines(Path(corpus.train)), _shuffle_lines(Path(corpus.test))
    cut = corpus.validation_rows
    end = None if corpus.train_rows is None else cut + corpus.train_rows
    rows = {"train": train[cut:end], "validation": train[:cut], "test": test[: corpus.test_rows]}
    folder.mkdir(parents=True, exist_ok=True)
    return {split: _write_split(corpus, split, lines, folder) for split, lines in rows.items()}


def _write_split(corpus: Corpus, split: str, lines: list[str], folder: Path) -> str:
    """Name a file by its content, so that a changed data set is another file."""
    text = "".join(lines)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = folder / f"{corpus.name}-{digest}.{split}.jsonl"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return str(path)


def _shuffle_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return sorted(lines, key=lambda line: hashlib.sha256(line.encode()).hexdigest())


def name_splits(paths: Mapping[str, str]) -> dict[str, str]:
    """Return the files' names without their folder, which differs from machine to machine."""
    return {split: Path(path).name for split, path in paths.items()}
