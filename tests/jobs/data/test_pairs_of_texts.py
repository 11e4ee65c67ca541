"""Pairs of texts: the model gets the tokens and token types that its tokenizer makes of a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from jobs.errors import InputError
from jobs.inspect.datasets.formats import LabelledExample
from jobs.train.data.collate import Collator
from jobs.train.data.model_inputs import make_model_inputs
from jobs.train.data.packing import join_samples
from jobs.train.data.token_table import TableWriter, TokenTable
from jobs.train.data.tokenization import Encoder, Sample

EXAMPLE = LabelledExample("w1 w2", "b", "w3 w4 w5")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    vocab = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]"])}
    vocab |= {f"w{number}": number + 10 for number in range(20)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def encode(tokenizer: Any, example: LabelledExample, max_length: int = 16) -> Sample:
    encoder = Encoder(tokenizer, max_length=max_length, labels=["a", "b"])
    (sample,) = encoder(example, where="d.csv:2")
    return sample


def test_the_types_of_a_batch_are_those_of_the_tokenizer(tokenizer: Any, tmp_path: Path):
    pair, alone = encode(tokenizer, EXAMPLE), encode(tokenizer, LabelledExample("w1", "a"))
    writer = TableWriter(tmp_path / "table")
    for row, sample in enumerate((pair, alone)):
        writer.append(sample, file=0, row=row)
    writer.close()
    table = TokenTable(tmp_path / "table")
    assert [table[0], table[1]] == [pair, alone]
    sequences = [join_samples([sample]) for sample in (pair, alone)]
    batch = Collator(0, "off", "class", token_types=True)(sequences, length=8)
    expected = tokenizer("w1 w2", "w3 w4 w5")
    assert batch.inputs["token_type_ids"][0].tolist() == expected["token_type_ids"]
    assert batch.inputs["input_ids"][0].tolist() == expected["input_ids"]
    assert not batch.inputs["token_type_ids"][1].any()


@pytest.mark.parametrize("types", [1, 2])
def test_a_model_without_types_gets_none(tokenizer: Any, types: int):
    config = BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, type_vocab_size=types, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    sequences = [join_samples([encode(tokenizer, EXAMPLE)])]
    batch = Collator(0, "off", "class", token_types=True)(sequences, length=8)
    inputs = make_model_inputs(model, batch, device=torch.device("cpu"))
    assert ("token_type_ids" in inputs) == (types == 2)
    model(**inputs)


def test_both_texts_of_a_long_pair_are_cut_and_counted(tokenizer: Any):
    sample = encode(tokenizer, EXAMPLE, max_length=7)
    assert (len(sample.input_ids), sample.truncated, sample.second) == (7, 1, 4)


def test_a_length_without_room_for_a_text_is_refused(tokenizer: Any):
    with pytest.raises(InputError, match="no room beside 3 special tokens"):
        encode(tokenizer, EXAMPLE, max_length=3)
