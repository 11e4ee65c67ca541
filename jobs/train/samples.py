"""Sample answers: the model's answers to a few held-out prompts, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from jobs.errors import InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.formats import (
    ChatExample,
    CompletionExample,
    TextExample,
    read_example,
)
from jobs.train.data.chat_template import TemplateFailed
from jobs.train.data.global_batches import choose_pad_id
from jobs.train.data.special_tokens import find_decoder_start, find_end_ids

if TYPE_CHECKING:
    from jobs.train.data.source import RowSource
    from jobs.train.data.tokenization import Encoder

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


def pick_prompts(source: RowSource, encoder: Encoder) -> list[SamplePrompt]:
    """Return a few rows, spread over the first thousand, as prompts."""
    rows = list(islice(source.iter_rows(), MAX_ROWS_READ))
    indices = dict.fromkeys(
        len(rows) * (2 * i + 1) // (2 * SAMPLE_COUNT) for i in range(SAMPLE_COUNT)
    )
    prompts = (_try_prompt(rows[index], source, encoder) for index in indices if rows)
    return [prompt for prompt in prompts if prompt is not None]


def generate_answers(
    model: Any, prompts: Sequence[SamplePrompt], encoder: Encoder, device: torch.device
) -> list[str]:
    """Return the model's greedy answers. Under ZeRO-3 a collective: all ranks generate the same."""
    tokenizer: Any = encoder.tokenizer
    end_of_turn = encoder.template.find_default_end()
    end_ids = list(find_end_ids(tokenizer, model=model, end_of_turn=end_of_turn))
    pad = choose_pad_id(tokenizer, encoder.embeddings)
    generation_config = GenerationConfig(
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=end_ids or None,
        **find_decoder_start(model),
    )
    longest = max(len(prompt.token_ids) for prompt in prompts)
    ids, mask = [], []
    for prompt in prompts:
        tokens, blank = list(prompt.token_ids), longest - len(prompt.token_ids)
        marks = [1] * len(tokens)
        # Padded on the left, where generation expects it, but not for an encoder.
        left, right = (0, blank) if encoder.is_seq2seq else (blank, 0)
        ids.append([pad] * left + tokens + [pad] * right)
        mask.append([0] * left + marks + [0] * right)
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=generation_config,
        )
    # An encoder-decoder returns its answer alone.
    answers = output if encoder.is_seq2seq else output[:, longest:]
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [str(text).strip() for text in texts]


def describe_samples(
    prompts: Sequence[SamplePrompt], answers: Sequence[str]
) -> list[dict[str, str]]:
    """Return prompts and answers as the run's events record them."""
    return [
        {"prompt": prompt.display_text, "expected": prompt.expected, "answer": answer}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _try_prompt(row: Row, source: RowSource, encoder: Encoder) -> SamplePrompt | None:
    """Return the row as a prompt, or None if it is a bad one, which the run may skip."""
    try:
        return _make_prompt(
            read_example(row, source.format, columns=source.columns), encoder, row.location
        )
    except InputError:
        return None


def _make_prompt(example: Any, encoder: Encoder, where: str) -> SamplePrompt:
    example = encoder.resolve(example)
    if isinstance(example, ChatExample):
        return _make_chat_prompt(example, encoder, where)
    if isinstance(example, CompletionExample):
        ids = encoder.tokenize_prompt(example.prompt)
        return _cut_prompt(encoder, ids, example.prompt, example.completion)
    assert isinstance(example, TextExample)
    words = example.text.split(" ")
    start, rest = " ".join(words[:12]), " ".join(words[12:60])
    return _cut_prompt(encoder, encoder.tokenize_prompt(start), start, rest)


def _make_chat_prompt(example: ChatExample, encoder: Encoder, where: str) -> SamplePrompt:
    """Return the conversation up to its last answer, as the template begins that answer."""
    conversation = encoder.adapt(example, where)
    last = conversation.answers[-1]
    try:
        text = encoder.template.render(conversation, last, prompt_answer=True)
    except TemplateFailed:
        # The template refuses a conversation without an answer.
        text = ""
    question = conversation.messages[last - 1] if last else {}
    answer = conversation.messages[last].get("content")
    ids = encoder.special.tokenize(text)
    return _cut_prompt(encoder, ids, str(question.get("content") or ""), str(answer or ""))


def _cut_prompt(encoder: Encoder, ids: list[int], display_text: str, expected: str) -> SamplePrompt:
    token_ids = tuple(ids[-encoder.max_length :])
    empty = (int(encoder.tokenizer.eos_token_id or 0),)
    return SamplePrompt(display_text, expected, token_ids or empty)
