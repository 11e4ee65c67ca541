"""What the model is asked to predict, read back as text."""

from __future__ import annotations

import copy
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import processors
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
    (sample,) = Encoder(chatml, max_length=500)(TWO_TURNS, where="d:1")
    assert trained_on(chatml, sample) == ["hi, how are you?<|im_end|>", "good\n<|im_end|>"]
    assert chatml.decode(sample.input_ids).startswith("<|im_start|>system\nBe kind<|im_end|>\n")


@pytest.mark.skipif(not SMOLLM.is_dir(), reason="the real model is not in .cache")
def test_smollm2s_own_template_is_masked_the_same() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(SMOLLM)
    (sample,) = Encoder(tokenizer, max_length=500)(TWO_TURNS, where="d:1")
    assert trained_on(tokenizer, sample) == ["hi, how are you?<|im_end|>", "good\n<|im_end|>"]
    assert tokenizer.decode(sample.input_ids).startswith("<|im_start|>system\nYou are a helpful AI")
    whole = tokenizer.apply_chat_template(list(TWO_TURNS.messages))["input_ids"]
    assert list(sample.input_ids) == whole[: len(sample.input_ids)]


def test_an_answer_that_would_merge_with_its_header_is_tokenised_apart(chatml: Any) -> None:
    turns = ChatExample(
        ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "\nfine"})
    )
    (sample,) = Encoder(chatml, max_length=500)(turns, where="d:1")
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
    ("template", "message"),
    [
        (None, "rejects the messages"),
        ("{{ raise_exception('roles must alternate') }}", "rejects the messages.*roles must alter"),
        ("{{ messages[9]['content']['x'] }}", "rejects the messages"),
        ("{% for m in messages %}", "can't be compiled .line 1"),
        ("{{ messages | length }}", r"nothing of the content .* of the user \(messages\[0\]"),
    ],
)
def test_a_template_that_fails_names_the_row(
    chatml: Any, template: str | None, message: str
) -> None:
    tokenizer = copy.deepcopy(chatml)
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=message) as error:
        Encoder(tokenizer, max_length=500)(TWO_TURNS, where="d.jsonl:7")
    assert str(error.value).startswith("d.jsonl:7: ")


def test_a_completion_is_trained_on_with_its_end_and_the_prompt_is_not(chatml: Any) -> None:
    (sample,) = Encoder(chatml, max_length=500)(CompletionExample("how are", " you"), where="d:1")
    assert chatml.decode(sample.input_ids) == "how are you<|im_end|>"
    assert trained_on(chatml, sample) == [" you<|im_end|>"]


def test_a_completion_that_would_merge_with_its_prompt_is_tokenised_apart(words: Any) -> None:
    (sample,) = Encoder(words, max_length=9)(CompletionExample("w1", "w2"), where="d:1")
    assert sample == Sample((11, 12, 1), (IGNORE_INDEX, 12, 1))


def test_a_completion_without_a_prompt_is_trained_on_but_for_its_first_token(words: Any) -> None:
    (sample,) = Encoder(words, max_length=9)(CompletionExample("", "w1 w2"), where="d:1")
    assert sample == Sample((11, 12, 1), (IGNORE_INDEX, 12, 1))


def test_text_is_trained_on_but_for_its_first_token(words: Any) -> None:
    (sample,) = Encoder(words, max_length=9)(TextExample("w1 w2 w3"), where="d:1")
    assert sample == Sample((11, 12, 13, 1), (IGNORE_INDEX, 12, 13, 1))


@pytest.mark.parametrize(("length", "cut"), [(4, 0), (3, 1), (2, 2)])
def test_what_is_too_long_is_cut_at_the_end_and_counted(words: Any, length: int, cut: int) -> None:
    (sample,) = Encoder(words, max_length=length)(CompletionExample("", "w1 w2 w3"), where="d:1")
    assert sample == Sample((11, 12, 13, 1)[:length], (IGNORE_INDEX, 12, 13, 1)[:length], cut)


def test_a_text_that_is_too_long_is_split_and_each_token_learnt_once(words: Any) -> None:
    pieces = Encoder(words, max_length=3)(TextExample("w1 w2 w3 w4"), where="d:1")
    assert pieces == (
        Sample((11, 12, 13), (IGNORE_INDEX, 12, 13)), Sample((13, 14, 1), (IGNORE_INDEX, 14, 1)),
    )  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=[*HealthCheck])
@given(count=st.integers(1, 60), length=st.integers(3, 20), bos=st.booleans())
def test_the_pieces_of_a_text_have_all_its_tokens_as_targets(
    words: Any, with_bos: Any, count: int, length: int, bos: bool
) -> None:
    text = TextExample(" ".join(f"w{number}" for number in range(count)))
    pieces = Encoder(with_bos if bos else words, max_length=length)(text, where="d:1")
    learnt = [label for piece in pieces for label in piece.labels if label != IGNORE_INDEX]
    assert learnt == [*range(10 if bos else 11, 10 + count), 1]
    assert all(len(piece.input_ids) <= length for piece in pieces)
    assert not bos or all(piece.input_ids[0] == 2 for piece in pieces)


def make_words_with_ends(words: Any, template: str) -> Any:
    """Return the words with a tokenizer that adds <unk> as its BOS, <eos>, or both."""
    tokenizer = copy.deepcopy(words)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=[("<unk>", 2), ("<eos>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def with_bos(words: Any) -> Any:
    return make_words_with_ends(words, "<unk> $0")


@pytest.mark.parametrize(
    ("template", "ids"),
    [("<unk> $0", (2, 11, 12, 1)), ("$0 <eos>", (11, 12, 1)), ("<unk> $0 <eos>", (2, 11, 12, 1))],
)
def test_bos_and_eos_stand_once_whatever_the_tokenizer_adds(
    words: Any, template: str, ids: tuple[int, ...]
) -> None:
    encode = Encoder(make_words_with_ends(words, template), max_length=9)
    for text in ("w1 w2", "w1 w2 <eos>", "<unk> w1 w2" if ids[0] == 2 else "w1 w2"):
        (whole,) = encode(TextExample(text), where="d:1")
        assert whole.input_ids == ids
    (pair,) = encode(CompletionExample("w1 ", "w2"), where="d:1")
    assert pair == Sample(ids, (*[IGNORE_INDEX] * (len(ids) - 2), 12, 1))


def test_a_token_without_an_embedding_is_named(words: Any) -> None:
    encode = Encoder(words, max_length=9, embeddings=12)
    encode(TextExample("w1"), where="d:1")
    with pytest.raises(InputError, match=r"d:2: the token 'w2' has the id 12, .* 12 embeddings"):
        encode(TextExample("w1 w2"), where="d:2")


def test_a_sample_whose_answer_is_cut_off_has_no_target(words: Any) -> None:
    (sample,) = Encoder(words, max_length=2)(CompletionExample("w1 w2", "w3"), where="d:1")
    assert (sample.targets, sample.truncated) == (0, 2)


def test_a_label_is_encoded_by_its_index(words: Any) -> None:
    encode = Encoder(words, max_length=2, labels=("x", "y"))
    (sample,) = encode(LabelledExample("w1 w2", "y"), where="d:1")
    assert sample == Sample((11, 12), (1,), kind="class")
    assert encode(LabelledExample("w1 w2 w3 w4 w5", "x"), where="d:1") == (
        Sample((11, 12), (0,), truncated=3, kind="class"),
    )
    with pytest.raises(InputError, match=r"d:1: the label 'z'.*Known labels: x, y"):
        encode(LabelledExample("w1", "z"), where="d:1")


@pytest.mark.skipif(not MINILM.is_dir(), reason="the real model is not in .cache")
def test_a_cut_text_keeps_the_special_tokens_that_a_classifier_reads() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MINILM)
    (sample,) = Encoder(tokenizer, max_length=4, labels=("x",))(
        LabelledExample("a b c d e", "x"), where=""
    )
    assert tokenizer.decode(sample.input_ids) == "[CLS] a b [SEP]" and sample.truncated == 3
