"""The folder, the rows and the spec of one model of the zoo."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.tiny import CHATML, _byte_tokenizer, merge_spec
from tests.zoo.small_configs import WINDOW, Maker

TASKS = {
    "CAUSAL": "causal-lm",
    "VLM": "causal-lm",
    "CLASSIFY": "sequence-classification",
    "SEQ2SEQ": "seq2seq",
}
TEXTS = (
    "the red cup stands on the old table near the window of",
    "a blue boat lies in the small harbour behind the mill",
    "seven white hats hang in the hall where nobody goes",
    "the lamp of the keeper burns all night above the stones",
)
"""Rows that are longer than a window, two of which fit into a sequence."""
LABELS = ("warm", "cold", "warm", "cold")
MAX_LENGTH = 120
KINDS = ("slora", "lora", "sparse", "full")

assert all(WINDOW < len(text) < MAX_LENGTH // 2 - 1 for text in TEXTS)


@dataclass(frozen=True)
class ZooCase:
    """A model's folder as it comes from a hub, and rows for it."""

    name: str
    group: str
    folder: Path
    """Holds base/, rows.jsonl, eval.jsonl and store/."""

    @property
    def task(self) -> str:
        return TASKS[self.group]

    @property
    def base(self) -> Path:
        return self.folder / "base"

    def make_spec(self, kind: str, **changes: Any) -> dict[str, Any]:
        """Return the spec of a short run of this kind, as plain values."""
        spec = {
            "name": f"zoo-{kind}",
            "model": {"path": str(self.base), "task": self.task, "dtype": "float32"},
            "data": {
                "train": str(self.folder / "rows.jsonl"),
                "eval": str(self.folder / "eval.jsonl"),
                "max_length": MAX_LENGTH,
            },
            "method": {"kind": kind, "density": 0.1, "rank": 4, "alpha": 8, "sparse_share": 0.5},
            "train": {
                "steps": 8 if kind == "slora" else 4,
                "batch_size": 4,
                "micro_batch_size": 2,
                "learning_rate": 1e-3 if kind == "full" else 5e-3,
                "checkpoint_every": None,
                "schedule": "constant",
                "warmup": 0.0,
            },
            "cluster": {"workers": 1},
            "store": f"file://{self.folder / 'store'}",
        }
        return merge_spec(spec, changes)


def make_case(name: str, group: str, maker: Maker, folder: Path) -> ZooCase:
    """Write the model, a byte-level tokenizer and the rows."""
    case = ZooCase(name, group, folder)
    tokenizer = _byte_tokenizer()
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = maker()
    if model.config.is_encoder_decoder:
        add_end_token(tokenizer)
    model.save_pretrained(case.base)
    tokenizer.save_pretrained(case.base)
    rows = "".join(json.dumps(row) + "\n" for row in _make_rows(group))
    for file_name in ("rows.jsonl", "eval.jsonl"):
        (folder / file_name).write_text(rows, encoding="utf-8")
    return case


def add_end_token(tokenizer: Any) -> None:
    """Let the tokenizer end each text, as those of encoder-decoders do."""
    from tokenizers.processors import TemplateProcessing

    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", pair=f"$A $B {end[0]}", special_tokens=[end]
    )


def _make_rows(group: str) -> list[dict[str, str]]:
    if group == "CLASSIFY":
        return [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    if group == "SEQ2SEQ":
        return [{"prompt": text, "completion": text.split()[1]} for text in TEXTS]
    return [{"text": text} for text in TEXTS]
