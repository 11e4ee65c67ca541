"""The rows of a part as files: train, validation and test, the same ones every time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from tests.benchmarks.paper.plan import Part


class NoData(Exception):
    """A part's data or model is not on this machine."""


def prepared(part: Part, folder: Path) -> dict[str, str]:
    """Paths by kind. Validation is cut from the training rows; test rows choose nothing."""
    for path in (*part.data.values(), part.model):
        if not Path(path).exists():
            raise NoData(f"{path} is missing: python infra/demo/prepare.py {part.name}")
    name = f"{part.name}-{part.train_rows}-{part.validation_rows}-{part.test_rows}"
    paths = {kind: folder / f"{name}.{kind}.jsonl" for kind in ("train", "validation", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (_dealt(_shuffled(Path(part.data[kind]))) for kind in ("train", "test"))
    rest = _shuffled_lines(train[part.validation_rows :])
    rows = {
        "validation": train[: part.validation_rows],
        "train": rest[: part.train_rows],
        "test": test[: part.test_rows],
    }
    for kind, path in paths.items():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(rows[kind]), encoding="utf-8")
        partial.replace(path)
    return {kind: str(path) for kind, path in paths.items()}


def _shuffled(path: Path) -> list[str]:
    return _shuffled_lines(path.read_text(encoding="utf-8").splitlines(keepends=True))


def _shuffled_lines(lines: list[str]) -> list[str]:
    return sorted(lines, key=lambda line: hashlib.sha256(line.encode()).hexdigest())


def _dealt(lines: list[str]) -> list[str]:
    """One of every label or president, then a second of each: the first few have them all."""
    seen, order = Counter[str](), list[tuple[int, int]]()
    for at, line in enumerate(lines):
        row = json.loads(line)
        kind = str(row.get("label", row.get("president")))
        order.append((seen[kind], at))
        seen[kind] += 1
    return [lines[at] for _, at in sorted(order)]
