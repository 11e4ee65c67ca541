"""The model card: what a manifest tells, in Markdown that its text cannot break."""

from __future__ import annotations

import yaml

from jobs.plan.audit import AuditLine
from jobs.store.adapters.manifest import AdapterFile, BaseRecord, Manifest
from jobs.store.adapters.serving_options import list_serving_options
from jobs.tools.hub.model_card import make_card
from tests.jobs.store.builders import DIGESTS, make_draft

HOSTILE = "x | y\n---\nlicense: mit <script> `a` [b](c)"
LORA = {"task_type": "CAUSAL_LM", "r": 8}


def make_manifest(**changes: object) -> Manifest:
    file = AdapterFile(name="adapter_config.json", size=2, sha256=DIGESTS["d"])
    draft = make_draft(**changes).model_dump()
    return Manifest(**draft, version=3, created="2026-01-01T00:00:00Z", files=(file,))


def test_a_card_has_the_origin_the_figures_the_audit_and_how_to_load():
    base = BaseRecord(path="org/base", revision="c" * 40, digest=DIGESTS["a"])
    manifest = make_manifest(base=base)
    audit = (
        AuditLine("peak memory", "bytes", 1000, 1100, 150, "15%"),
        AuditLine("gradients, sparse", "bytes", 10, 20, 0, "exact"),
    )
    options = list_serving_options(manifest, LORA)
    card = make_card(manifest, task="causal-lm", options=options, audit=audit, licence="apache-2.0")
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "apache-2.0",
        "base_model": "org/base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["slora", "lora"],
    }
    for words in (
        f"| SHA-256 | {DIGESTS['b']} |",
        "| before training | 3.5 |",
        "    vllm serve org/base --enable-lora --max-lora-rank 8 --lora-modules chat=FOLDER",
        "Not as planned: gradients, sparse.",
        "| peak memory (bytes) | 1,000 | 1,100 | 15% | ok |",
        "random, density 0.01, seed 0",
    ):
        assert words in body


def test_a_card_of_a_folder_names_no_model_of_the_hub_and_no_licence():
    manifest = make_manifest(base=BaseRecord(path="/home/me/secret/base", digest=DIGESTS["a"]))
    card = make_card(manifest, task=None, options=())
    assert "/home/me" not in card
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "unknown" and "base_model" not in header
    assert "were not in the store" in card and "Not stated" in card


def test_a_card_of_values_says_how_to_merge_them_without_a_store():
    file = AdapterFile(name="sparse_config.json", size=2, sha256=DIGESTS["d"])
    manifest = make_manifest(kind="sparse").model_copy(update={"files": (file,)})
    config = {"task_type": "CAUSAL_LM", "values": ["a"], "rank": None}
    card = make_card(manifest, task="causal-lm", options=list_serving_options(manifest, config))
    assert "merge_adapter(base, read_adapter(Path(FOLDER)))" in card
    assert "slora adapters" not in card and "vLLM with the plug-in" in card


def test_the_text_of_a_manifest_cannot_break_the_card():
    manifest = make_manifest(
        code_version=HOSTILE, parent=HOSTILE, evaluation={HOSTILE: {HOSTILE: 1.0}},
        ledger={HOSTILE: 1}, base=BaseRecord(path=HOSTILE, revision=HOSTILE, digest="a" * 64),
    )  # fmt: skip
    card = make_card(manifest, task="causal-lm", options=list_serving_options(manifest, LORA))
    header = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---\n"))
    assert header["license"] == "unknown" and "base_model" not in header
    body = card.split("\n---\n", 1)[1]
    shown = "\n".join(line for line in body.splitlines() if not line.startswith("    "))
    assert "<script>" not in shown.replace("\\<", "") and "\n---\n" not in body
    tables = [line for line in body.splitlines() if line.startswith("| ")]
    cells = {len(line.replace("\\|", "").split("|")) for line in tables if "x" not in line}
    assert cells <= {4, 5}
