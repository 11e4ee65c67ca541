"""The outside baseline: words counted and weighted, and a linear classifier over them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

WHOLE = Path(".cache/data/newsgroups.train.jsonl")


def tfidf(data: Mapping[str, str]) -> dict[str, float]:
    """Test accuracy when it learns the same rows as the methods, and when it learns all."""
    return {
        "same rows": _accuracy(Path(data["train"]), Path(data["test"])),
        "all rows": _accuracy(WHOLE, Path(data["test"])),
    }


def _accuracy(train: Path, test: Path) -> float:
    texts, labels = _rows(train)
    model = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, min_df=2), LogisticRegression(C=10.0, max_iter=300)
    )
    model.fit(texts, labels)
    return float(model.score(*_rows(test)))


def _rows(path: Path) -> tuple[list[str], list[str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["text"] for row in rows], [row["label"] for row in rows]
