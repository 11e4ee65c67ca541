"""What the model is asked to predict, read back as text."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jobs.errors import InputError
from jobs.inspect.datasets.formats import (
    ChatExample,
    CompletionExample,
    LabelledExample,
    TextExample,
)
from jobs.train.data.tokenization import IGNORE_INDEX, Encoder, Sample

SMOLLM = Path(__file__).parents[3] / ".cache/models/smollm2-135m-instruct"
MINILM = Path(__file__).parents[3] / ".cache/models/minilm"

TWO_TURNS = ChatExample(
    (
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi, how are you?"},
        {"role": "user", "content": "fine\n\nthanks"},
        {"role": "assistant", "content": "good\n"},
    )
)


def trained_on(tokenizer: Any, sample: Sample) -> list[str]:
    """Each run of tokens with a label, as text."""
    pairs = zip(sample.input_ids, sample.labels, strict=True)
    assert all(label in (token, IGNORE_INDEX) for token, label in pairs)
    runs = groupby(sample.labels, key=lambda label: label != IGNORE_INDEX)
    return [tokenizer.decode(list(run)) for is_target, run in runs if is_target]


def test_chat_trains_on_every_answer_and_its_end_of_turn_and_on_nothing_else(chatml: Any) -> None:
    sample = Encoder(chatml, max_length=500)(TWO_TURNS, where="d:1")
    assert trained_on(chatml, sample) == ["hi, how are you?<|im_end|>", "good\n<|im_end|>"]
    assert chatml.decode(sample.input_ids).startswith("<|im_start|>system\nBe kind<|im_end|>\n")


@pytest.mark.skipif(not SMOLLM.is_dir(), reason="the real model is not in .cache")
def test_smollm2s_own_template_is_masked_the_same() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(SMOLLM)
    sample = Encoder(tokenizer, max_length=500)(TWO_TURNS, where="d:1")
    assert trained_on(tokenizer, sample) == ["hi, how are you?<|im_end|>", "good\n<|im_end|>"]
    assert tokenizer.decode(sample.input_ids).startswith("<|im_start|>system\nYou are a helpful AI")
    whole = tokenizer.apply_chat_template(list(TWO_TURNS.messages))["input_ids"]
    assert list(sample.input_ids) == whole[: len(sample.input_ids)]


def test_an_answer_that_would_merge_with_its_header_is_tokenised_apart(chatml: Any) -> None:
    turns = ChatExample(
        ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "\nfine"})
    )
    sample = Encoder(chatml, max_length=500)(turns, where="d:1")
    prompt_ids = chatml.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )["input_ids"]
    assert list(sample.input_ids[: len(prompt_ids)]) == prompt_ids
    assert trained_on(chatml, sample) == ["\nfine<|im_end|>"]


def test_what_follows_the_last_answer_is_not_computed(chatml: Any) -> None:
    more = ChatExample((*TWO_TURNS.messages, {"role": "user", "content": "and then?"}))
    encode = Encoder(chatml, max_length=500)
    assert encode(more, where="d:1") == encode(TWO_TURNS, where="d:1")


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        pytest.param(
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            TWO_TURNS.messages, r"rewrites the turns before messages\[1\]", id="rewrites",
        ),
        pytest.param(None, TWO_TURNS.messages, "rejects the messages", id="no template"),
        pytest.param(
            "{{ raise_exception('roles must alternate') }}",
            TWO_TURNS.messages, "rejects the messages.*roles must alternate", id="raises",
        ),
        pytest.param(
            "same",
            ({"role": "assistant", "content": "hi"},),
            r"messages\[0\] is an assistant turn",
            id="bot first",
        ),
    ],
)  # fmt: skip
def test_a_template_that_fails_names_the_row(
    chatml: Any, template: str | None, turns: tuple[dict[str, str], ...], message: str
) -> None:
    original = chatml.chat_template
    try:
        chatml.chat_template = original if template == "same" else template
        with pytest.raises(InputError, match=message) as error:
            Encoder(chatml, max_length=500)(ChatExample(turns), where="d.jsonl:7")
    finally:
        chatml.chat_template = original
    assert str(error.value).startswith("d.jsonl:7: ")


def test_a_completion_is_trained_on_with_its_end_and_the_prompt_is_not(chatml: Any) -> None:
    sample = Encoder(chatml, max_length=500)(CompletionExample("how are", " you"), where="d:1")
    assert chatml.decode(sample.input_ids) == "how are you<|im_end|>"
    assert trained_on(chatml, sample) == [" you<|im_end|>"]


def test_a_completion_that_would_merge_with_its_prompt_is_tokenised_apart(words: Any) -> None:
    sample = Encoder(words, max_length=9)(CompletionExample("w1", "w2"), where="d:1")
    assert sample == Sample((11, 12, 1), (IGNORE_INDEX, 12, 1))


def test_a_completion_without_a_prompt_is_trained_on_but_for_its_first_token(words: Any) -> None:
    sample = Encoder(words, max_length=9)(CompletionExample("", "w1 w2"), where="d:1")
    assert sample == Sample((11, 12, 1), (IGNORE_INDEX, 12, 1))


def test_text_is_trained_on_but_for_its_first_token(words: Any) -> None:
    sample = Encoder(words, max_length=9)(TextExample("w1 w2 w3"), where="d:1")
    assert sample == Sample((11, 12, 13, 1), (IGNORE_INDEX, 12, 13, 1))


@pytest.mark.parametrize(("length", "cut"), [(4, 0), (3, 1), (2, 2)])
def test_what_is_too_long_is_cut_at_the_end_and_counted(words: Any, length: int, cut: int) -> None:
    sample = Encoder(words, max_length=length)(TextExample("w1 w2 w3"), where="d:1")
    assert sample == Sample((11, 12, 13, 1)[:length], (IGNORE_INDEX, 12, 13, 1)[:length], cut)


def test_a_sample_whose_answer_is_cut_off_has_no_target(words: Any) -> None:
    sample = Encoder(words, max_length=2)(CompletionExample("w1 w2", "w3"), where="d:1")
    assert (sample.targets, sample.truncated) == (0, 2)


def test_a_label_is_encoded_by_its_index(words: Any) -> None:
    encode = Encoder(words, max_length=2, labels=("x", "y"))
    assert encode(LabelledExample("w1 w2", "y"), where="d:1") == Sample((11, 12), (1,))
    assert encode(LabelledExample("w1 w2 w3 w4 w5", "x"), where="d:1") == Sample(
        (11, 12), (0,), truncated=3
    )
    with pytest.raises(InputError, match=r"d:1: the label 'z'.*Known labels: x, y"):
        encode(LabelledExample("w1", "z"), where="d:1")


@pytest.mark.skipif(not MINILM.is_dir(), reason="the real model is not in .cache")
def test_a_cut_text_keeps_the_special_tokens_that_a_classifier_reads() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MINILM)
    sample = Encoder(tokenizer, max_length=4, labels=("x",))(
        LabelledExample("a b c d e", "x"), where=""
    )
    assert tokenizer.decode(sample.input_ids) == "[CLS] a b [SEP]" and sample.truncated == 3
