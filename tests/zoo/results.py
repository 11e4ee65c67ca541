"""Results of the zoo as JSON: printed as they come, or kept in a file that later ones update."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.zoo.cells import COLUMNS, Row

LIBRARIES = ("transformers", "peft", "torch", "deepspeed")


def print_json(rows: Iterator[Row]) -> list[Row]:
    """Print one JSON document, a model a line, as they come; return the rows."""
    results = []
    print(_format_head())
    print('"models": [', end="")
    for row in rows:
        print(",\n" if results else "\n", json.dumps(row.to_json()), sep="", end="", flush=True)
        results.append(row)
    print("\n]}")
    return results


def update_results(path: Path, rows: Iterator[Row], order: Sequence[tuple[str, str]]) -> list[Row]:
    """Write each row into a file of results, beside those of other models and columns.

    The file is written after each row, so that a long measurement can be ended and taken up again.
    """
    results = []
    cells = _read_cells(path)
    for row in rows:
        results.append(row)
        values: Any = row.to_json()["cells"]
        # A refused model has no cells of another time.
        old = {} if row.is_refused else cells.get((row.group, row.name), {})
        merged = {**old, **values}
        cells[row.group, row.name] = {name: merged[name] for name in COLUMNS if name in merged}
        path.write_text(_format_document(cells, order), encoding="utf-8")
    return results


def _read_cells(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not path.is_file():
        return {}
    models = json.loads(path.read_text("utf-8"))["models"]
    return {(model["group"], model["name"]): model["cells"] for model in models}


def _format_document(
    cells: dict[tuple[str, str], dict[str, Any]], order: Sequence[tuple[str, str]]
) -> str:
    models = [
        json.dumps({"name": name, "group": group, "cells": cells[group, name]})
        for group, name in order
        if (group, name) in cells
    ]
    text = ",\n".join(models)
    return f'{_format_head()}\n"models": [\n{text}\n]}}\n'


def _format_head() -> str:
    versions = {name: version(name) for name in LIBRARIES}
    return f'{{"versions": {json.dumps(versions)},\n"columns": {json.dumps(COLUMNS)},'
