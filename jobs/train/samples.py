"""Sample answers: the model's answers to a few held-out prompts, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from jobs.inspect.datasets.formats import (
    AlpacaExample,
    ChatExample,
    CompletionExample,
    TextExample,
    read_example,
)

if TYPE_CHECKING:
    from jobs.train.data.source import RowSource

SAMPLE_COUNT = 3
MAX_NEW_TOKENS = 40
MAX_ROWS_READ = 1000
"""The samples are spread over so many rows."""


@dataclass(frozen=True)
class SamplePrompt:
    """The model's input, the text that a reader sees of it, and the answer in the data."""

    display_text: str
    expected: str
    token_ids: tuple[int, ...]


def pick_prompts(
    source: RowSource, tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> list[SamplePrompt]:
    """Return a few rows, spread over the first thousand, as prompts."""
    rows = list(islice(source.iter_rows(), MAX_ROWS_READ))
    indices = dict.fromkeys(
        len(rows) * (2 * i + 1) // (2 * SAMPLE_COUNT) for i in range(SAMPLE_COUNT)
    )
    examples = [
        read_example(rows[index], source.format, columns=source.columns) for index in indices
    ]
    return [_make_prompt(example, tokenizer, max_length) for example in examples]


def generate_answers(
    model: Any,
    prompts: Sequence[SamplePrompt],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> list[str]:
    """Return the model's greedy answers. Under ZeRO-3 a collective: all ranks generate the same."""
    generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    longest = max(len(prompt.token_ids) for prompt in prompts)
    pad = int(tokenizer.pad_token_id or 0)
    # Padded on the left, where generation expects it.
    ids = [[pad] * (longest - len(p.token_ids)) + list(p.token_ids) for p in prompts]
    mask = [[0] * (longest - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts]
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=generation_config,
        )
    texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def _make_prompt(example: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> SamplePrompt:
    if isinstance(example, AlpacaExample):
        example = example.resolve(has_template=bool(tokenizer.chat_template))
    if isinstance(example, ChatExample):
        last = max(
            index
            for index, message in enumerate(example.messages)
            if message["role"] == "assistant"
        )
        earlier = list(example.messages[:last])
        text = str(
            tokenizer.apply_chat_template(
                earlier,
                tools=list(example.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **example.options,
            )
        )
        display_text = str(earlier[-1]["content"] or "") if earlier else ""
        return _tokenize_prompt(
            tokenizer,
            text,
            display_text,
            str(example.messages[last]["content"] or ""),
            max_length,
            False,
        )
    if isinstance(example, CompletionExample):
        return _tokenize_prompt(
            tokenizer, example.prompt, example.prompt, example.completion, max_length, True
        )
    assert isinstance(example, TextExample)
    words = example.text.split(" ")
    start, rest = " ".join(words[:12]), " ".join(words[12:60])
    return _tokenize_prompt(tokenizer, start, start, rest, max_length, True)


def _tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    display_text: str,
    expected: str,
    max_length: int,
    add_special_tokens: bool,
) -> SamplePrompt:
    token_ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"][-max_length:]
    return SamplePrompt(
        display_text=display_text,
        expected=expected,
        token_ids=tuple(token_ids) or (int(tokenizer.eos_token_id or 0),),
    )
