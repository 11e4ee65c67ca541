"""Sample answers: what the model says to a few held-out prompts, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from jobs.data.formats import Completion, Conversation, Text, read_example

if TYPE_CHECKING:
    from jobs.data.source import Source

SAMPLES = 3
NEW_TOKENS = 40
LOOKED_AT = 1000
"""Rows among which the samples are spread."""


@dataclass(frozen=True)
class Prompt:
    """What the model is given, what a reader sees of it, and the answer of the data."""

    shown: str
    wanted: str
    ids: tuple[int, ...]


def pick_prompts(
    source: Source, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[Prompt]:
    """A few rows, spread over the first thousand, as prompts."""
    rows = list(islice(source.rows(), LOOKED_AT))
    places = dict.fromkeys(len(rows) * (2 * i + 1) // (2 * SAMPLES) for i in range(SAMPLES))
    examples = [read_example(rows[place], source.format) for place in places]
    return [_prompt(example, tokenizer, max_length) for example in examples]


def answer(
    model: Any, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> list[str]:
    """The model's greedy answers. Under ZeRO-3 a collective: every rank asks the same."""
    asked = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    longest = max(len(prompt.ids) for prompt in prompts)
    pad = int(tokenizer.pad_token_id or 0)
    # Padded on the left, where generation expects it.
    ids = [[pad] * (longest - len(p.ids)) + list(p.ids) for p in prompts]
    mask = [[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts]
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=asked,
        )
    texts = tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def _prompt(example: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Prompt:
    if isinstance(example, Conversation):
        last = max(i for i, m in enumerate(example.messages) if m.role == "assistant")
        before = [{"role": m.role, "content": m.content} for m in example.messages[:last]]
        text = str(
            tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        )
        shown = before[-1]["content"] if before else ""
        return _made(tokenizer, text, shown, example.messages[last].content, max_length, False)
    if isinstance(example, Completion):
        return _made(
            tokenizer, example.prompt, example.prompt, example.completion, max_length, True
        )
    assert isinstance(example, Text)
    words = example.text.split(" ")
    start, rest = " ".join(words[:12]), " ".join(words[12:60])
    return _made(tokenizer, start, start, rest, max_length, True)


def _made(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    shown: str,
    wanted: str,
    max_length: int,
    special: bool,
) -> Prompt:
    ids = tokenizer(text, add_special_tokens=special)["input_ids"][-max_length:]
    return Prompt(shown=shown, wanted=wanted, ids=tuple(ids) or (int(tokenizer.eos_token_id or 0),))
