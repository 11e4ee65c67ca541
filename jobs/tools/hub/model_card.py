"""The model card of an adapter: README.md, from the manifest, the plan and the ledger.

A manifest holds text of others: nothing in it may change the card's tables, or its YAML header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from jobs.plan.audit import AuditLine, list_violations
from jobs.store.adapters.manifest import Manifest, detect_form
from jobs.store.adapters.serving_options import ServingOption, format_pull
from jobs.train.monitor.event_text import name_evaluation

CARD = "README.md"
UNKNOWN_LICENCE = "unknown"
"""The hub's identifier for a licence that nobody has named."""
_COMPACT_SNIPPET = """In Python, with slora installed:

    from slora.formats.merge import merge_adapter
    from slora.formats.peft import read_adapter

    merge_adapter(base, read_adapter(Path(FOLDER)))  # base: the model in transformers"""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_PIPELINES = {
    "causal-lm": "text-generation",
    "seq2seq": "text2text-generation",
    "sequence-classification": "text-classification",
}


def make_card(
    manifest: Manifest,
    *,
    task: str | None,
    options: Sequence[ServingOption],
    audit: Sequence[AuditLine] = (),
    licence: str | None = None,
) -> str:
    """Return the card, in Markdown with a YAML header.

    `task`: that of the adapter, if its config tells. `audit`: the plan beside what the run has
    recorded; nothing where its files are gone. `licence`: an identifier of the hub: apache-2.0.
    """
    header = yaml.safe_dump(_make_header(manifest, task, licence), sort_keys=False)
    sections = [
        f"---\n{header}---",
        f"# {manifest.label}",
        _describe(manifest),
        "## How to load it",
        _list_options(manifest, options),
        "## Evaluation",
        _list_evaluations(manifest),
        "## Data",
        _list_data(manifest),
        "## Training",
        _list_training(manifest),
        "## Plan and audit",
        _list_audit(audit),
        "## Licence",
        escape_markdown(licence) if licence else "Not stated by who pushed this.",
    ]
    return "\n\n".join(sections) + "\n"


def escape_markdown(text: object) -> str:
    """Return text on one line that Markdown shows as it is, in a table too."""
    line = "".join(
        character if character.isprintable() else " " for character in " ".join(str(text).split())
    )
    for character in "\\`*_[]<>|#":
        line = line.replace(character, "\\" + character)
    return line


def _make_header(manifest: Manifest, task: str | None, licence: str | None) -> dict[str, Any]:
    form = detect_form(manifest)
    libraries = {"peft": "peft", "model": "transformers"}
    tags = ["slora", manifest.kind, *({"peft": ["lora"]}.get(form, []))]
    header: dict[str, Any] = {"license": licence or UNKNOWN_LICENCE}
    if manifest.base.revision is not None and _HUB_ID.fullmatch(manifest.base.path):
        # A hub id: a folder or a bucket of the training is no model of the hub.
        header["base_model"] = manifest.base.path
        header["base_model_relation"] = "finetune" if form == "model" else "adapter"
    if form in libraries:
        header["library_name"] = libraries[form]
    if task is not None:
        header["pipeline_tag"] = _PIPELINES[task]
    return {**header, "tags": list(dict.fromkeys(tags))}


def _describe(manifest: Manifest) -> str:
    kinds = {
        "slora": "an adapter of two stages, sparse values handed over to low-rank factors",
        "sparse": "sparse values: a share of the base's weights that moved",
        "lora": "a LoRA",
        "full": "a fully fine-tuned model",
    }
    base = manifest.base
    name = str(base) if base.revision else base.path.rstrip("/").rpartition("/")[2]
    return (
        f"{kinds[manifest.kind].capitalize()}, of the base {escape_markdown(name)} "
        f"(digest `{base.digest}`). Trained with slora {escape_markdown(manifest.code_version)}; "
        "`manifest.json` beside this file has the digest of every file."
    )


def _list_options(manifest: Manifest, options: Sequence[ServingOption]) -> str:
    """Return how the files of the repository are loaded, without the store that they come from."""
    own = [option for option in options if option.prepare == format_pull(manifest)]
    blocks = [
        f"{option.server}{f' ({escape_markdown(option.note)})' if option.note else ''}:\n\n"
        f"    {''.join(c if c.isprintable() else ' ' for c in option.command)}"
        for option in own
    ]
    if detect_form(manifest) == "compact":
        blocks.append(_COMPACT_SNIPPET)
    folder = "FOLDER is this repository's folder on your machine."
    return "\n\n".join([*blocks, folder])


def _list_evaluations(manifest: Manifest) -> str:
    stages = {stage: metrics for stage, metrics in manifest.evaluation.items() if metrics}
    names = list(dict.fromkeys(name for metrics in stages.values() for name in metrics))
    if not names:
        return "The run recorded none."
    rows = [
        [name_evaluation(stage), *(_format(metrics.get(name)) for name in names)]
        for stage, metrics in stages.items()
    ]
    return "On held-out rows:\n\n" + _make_table(["", *names], rows)


def _list_data(manifest: Manifest) -> str:
    data = manifest.data
    rows = [["rows", f"{data.rows:,}"], ["order", data.row_order], ["SHA-256", data.train_sha256]]
    if data.eval_sha256:
        rows.append(["SHA-256 of the held-out rows", data.eval_sha256])
    return "The rows are not in this repository.\n\n" + _make_table(["", ""], rows)


def _list_training(manifest: Manifest) -> str:
    mask, rates = manifest.mask, manifest.rates
    rows = [["kind", manifest.kind], ["run", f"{manifest.run}, attempt {manifest.attempt}"]]
    if mask is not None:
        rows.append(["mask", f"{mask.strategy}, density {mask.density:g}, seed {mask.seed}"])
    for stage, rate in (rates.stages if rates else {}).items():
        rows.append([f"learning rate, {stage}", f"{rate:g}"])
    rows += [
        ["workers", str(manifest.world_size)],
        ["started from", manifest.parent or "-"],
        ["SHA-256 of the spec", manifest.spec_sha256],
        ["date", manifest.created],
    ]
    rows += [[name, _format(value)] for name, value in manifest.ledger.items()]
    return _make_table(["", ""], rows)


def _list_audit(lines: Sequence[AuditLine]) -> str:
    if not lines:
        return "The files of the run, with its plan and its ledger, were not in the store."
    rows = [
        [
            f"{line.name} ({line.unit})",
            _format(line.planned),
            _format(line.actual),
            line.tolerance_text,
            "" if line.tolerance is None else "exceeded" if line.violated else "ok",
        ]
        for line in lines
    ]
    violations = ", ".join(escape_markdown(line.name) for line in list_violations(tuple(lines)))
    verdict = f"Not as planned: {violations}." if violations else "All values are as planned."
    return f"{verdict}\n\n" + _make_table(["", "planned", "recorded", "tolerance", ""], rows)


def _make_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    ruled = [
        cells if at == 1 else [escape_markdown(cell) for cell in cells]
        for at, cells in enumerate(lines)
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ruled)


def _format(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
