"""The page of models and data that work, from the results that `python -m tests.zoo` printed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parents[2] / "docs" / "measured"
MODELS, ROWS = MEASURED / "zoo.json", MEASURED / "zoo_rows.json"
GROUPS = {
    "CAUSAL": "Language models",
    "VLM": "Language models with a vision tower",
    "SEQ2SEQ": "Encoder-decoders",
    "CLASSIFY": "Classifiers",
}
SIGNS = {"ok": "✓", "refused": "refused", "WRONG": "wrong", "-": "–"}

Result = Mapping[str, Any]


def render_zoo() -> str:
    """Return the page, from those of the two files of results that exist."""
    models, rows = (_read_results(path) for path in (MODELS, ROWS))
    lines = [
        "# Which models and data work",
        "",
        "Small random models of many architectures, and small files of rows, are tried with",
        "`python -m tests.zoo`, and a model of your own with",
        "`python -m tests.zoo --models FILE.py`. A refusal comes from `slora plan`, before",
        "anything starts, and says what to do instead.",
        "",
        *_render_source(models),
        *(_render_models(models) if models else ()),
        *(_render_rows(rows["rows"]) if rows else ()),
    ]
    return "\n".join(lines) + "\n"


def _read_results(path: Path) -> Result | None:
    """Return the results in a file, or None if nobody has made them here."""
    if not path.is_file():
        return None
    results: Result = json.loads(path.read_text("utf-8"))
    return results


def _render_source(models: Result | None) -> Iterator[str]:
    """Yield where the tables come from, or that there are none."""
    if models is None:
        yield "The table of models has not been made for this copy of the pages. Make it with"
    else:
        versions = models["versions"]
        yield f"The table of models is that of transformers {versions['transformers']} and peft"
        yield f"{versions['peft']}, made with"
    yield from (
        "",
        "    python -m tests.zoo --json > docs/measured/zoo.json",
        "    python -m tests.zoo --rows --json > docs/measured/zoo_rows.json",
        "",
    )


def _render_models(document: Mapping[str, Any]) -> Iterator[str]:
    columns: Mapping[str, str] = document["columns"]
    yield from ("## Models", "", "| column | a tick means |", "|---|---|")
    yield from (f"| {name} | {meaning} |" for name, meaning in columns.items())
    yield ""
    for group, title in GROUPS.items():
        models = [model for model in document["models"] if model["group"] == group]
        if models:
            yield from (f"### {title}", "", _count_models(models), "")
            yield from _render_table(models, list(columns))
            yield from _render_reasons(models)


def _count_models(models: Sequence[Result]) -> str:
    counts = Counter(_classify(model) for model in models)
    return (
        f"{len(models)} architectures: {counts['ok']} train, {counts['refused']} are refused, "
        f"{counts['WRONG']} go wrong."
    )


def _classify(model: Result) -> str:
    cells = [_read_cell(cell)[0] for cell in model["cells"].values()]
    if "WRONG" in cells:
        return "WRONG"
    return "refused" if _read_cell(model["cells"]["plan"])[0] == "refused" else "ok"


def _render_table(models: Sequence[Result], columns: Sequence[str]) -> Iterator[str]:
    yield f"| model | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for model in models:
        cells = [_read_cell(model["cells"].get(column, "-"))[0] for column in columns]
        if _classify(model) == "refused":
            cells = ["refused", *("-" for _ in cells[1:])]
        yield f"| {model['name']} | {' | '.join(SIGNS[cell] for cell in cells)} |"
    yield ""


def _render_reasons(models: Sequence[Result]) -> Iterator[str]:
    """Yield each reason once, with the columns that it is the reason of."""
    for model in models:
        reasons: dict[tuple[str, str], list[str]] = {}
        for column, cell in model["cells"].items():
            status, reason = _read_cell(cell)
            if reason:
                reasons.setdefault((status, reason), []).append(column)
        for (status, reason), columns in reasons.items():
            place = "" if "plan" in columns and status == "refused" else f" ({', '.join(columns)})"
            yield f"- **{model['name']}**{place}, {SIGNS[status]}: {_escape(reason)}"
    yield ""


def _render_rows(rows: Sequence[Result]) -> Iterator[str]:
    yield from ("## Rows", "", "| rows | result | what is said |", "|---|---|---|")
    for row in rows:
        yield f"| {row['name']} | {SIGNS[row['status']]} | {_escape(row['reason'])} |"


def _read_cell(cell: Any) -> tuple[str, str]:
    """Return status and reason of a cell, which is a status alone if there is no reason."""
    return (cell, "") if isinstance(cell, str) else (cell[0], cell[1])


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
