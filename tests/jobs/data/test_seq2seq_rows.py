"""Rows for encoder-decoders: the prompt for the encoder, the completion for the decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from jobs.errors import InputError
from jobs.inspect.datasets.data_row import Row
from jobs.inspect.datasets.formats import CompletionExample, LabelledExample, read_example
from jobs.inspect.datasets.scan import scan_dataset
from jobs.train.data.global_batches import Feed
from jobs.train.data.source import RowSource, StreamedSamples, TableSamples
from jobs.train.data.token_pass import TokenInputs, ensure_table
from jobs.train.data.tokenization import Encoder, Sample
from tests.jobs.data.conftest import write_jsonl

END = 1


@pytest.fixture(scope="module")
def ended(words: Any) -> Any:
    """Words, each text ended by <eos>, as tokenizers of T5 and BART do."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer.from_str(words.backend_tokenizer.to_str()),
        pad_token="<pad>", eos_token="<eos>", unk_token="<unk>",
    )  # fmt: skip
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", END)]
    )
    return tokenizer


def encode(tokenizer: Any, prompt: str, completion: str, max_length: int = 9) -> Sample:
    encoder = Encoder(tokenizer, max_length=max_length, is_seq2seq=True)
    (sample,) = encoder(CompletionExample(prompt, completion), where="d:1")
    return sample


def test_both_sides_end_as_the_tokenizer_ends_a_text(ended: Any):
    sample = encode(ended, "w1 w2", "w3")
    assert sample == Sample((11, 12, END), (13, END), 0, "completion")
    assert (sample.targets, sample.tokens) == (2, 5)


def test_an_answer_gets_an_end_that_the_tokenizer_does_not_add(words: Any):
    assert encode(words, "w1", "w2") == Sample((11,), (12, END), 0, "completion")


def test_each_side_is_cut_to_the_length_and_a_cut_answer_has_no_end(ended: Any):
    sample = encode(ended, "w1 w2 w3 w4", "w5 w6 w7", max_length=3)
    assert sample == Sample((11, 12, END), (15, 16, 17), 2 + 1, "completion")


ROWS: list[dict[str, object]] = [
    {"prompt": "w1 w2 w3 w4 w5 w6", "completion": "w7"},
    {"prompt": "w1", "completion": "w2 w3 w4 w5"},
    {"prompt": "w9", "completion": "w8"},
]


def make_feed(tokenizer: Any, folder: Path, *, table: bool, rank: int = 0, ranks: int = 1) -> Feed:
    path = write_jsonl(folder / "d.jsonl", ROWS)
    rows = RowSource((path,), "prompt-completion")
    encoder = Encoder(tokenizer, max_length=20, is_seq2seq=True)
    source: Any = StreamedSamples(rows, encoder, "seq2seq")
    if table:
        inputs = TokenInputs(folder, (path,), "prompt-completion", {}, "seq2seq", (), 20)
        source = TableSamples(ensure_table(inputs, lambda: encoder), rows)
    return Feed(
        source, tokenizer, kind="completion", max_length=20, packing="off", batch_size=4,
        micro_batch_size=2, rank=rank, world_size=ranks, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("table", [False, True])
def test_a_batch_pads_each_side_by_itself(
    ended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bool
):
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    (step,) = make_feed(ended, tmp_path, table=table).iter_epoch()
    first, second = step.micros
    assert first.inputs["input_ids"].tolist()[1] == [11, END] + [0] * 6
    assert first.inputs["attention_mask"].sum(1).tolist() == [7, 2]
    assert first.labels.tolist() == [[17, END] + [-100] * 6, [12, 13, 14, 15, END] + [-100] * 3]
    # The filler is a row whose answer the decoder reads, and from which nothing is learnt.
    assert second.labels[1].tolist() == [-100] * 8
    assert second.inputs["labels"][1].tolist() == [17, END] + [-100] * 6
    assert (step.targets, step.tokens, second.targets) == (9, 7 + 2 + 2 + 5 + 2 + 2, 2)


def test_workers_get_slices_of_the_same_shapes(ended: Any, tmp_path: Path):
    steps = [next(make_feed(ended, tmp_path, table=False, rank=rank, ranks=2).iter_epoch())
             for rank in (0, 1)]  # fmt: skip
    shapes = [step.micros[0].inputs["labels"].shape for step in steps]
    assert shapes[0] == shapes[1]
    assert sum(micro.targets for step in steps for micro in step.micros) == steps[0].targets


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, "an encoder-decoder answers a prompt"),
        ({"text": "a"}, "Use rows with prompt and completion"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "is a conversation"),
        ({"question": "a", "answer": "b"}, "data.columns: {prompt: question, completion: answer}"),
    ],
)
def test_rows_of_other_kinds_are_refused_with_the_way_out(values: Any, message: str):
    with pytest.raises(InputError, match=message):
        read_example(Row(values, "d.jsonl", 3), "auto", task="seq2seq")


def test_alpaca_rows_become_prompts_also_beside_a_chat_template(chatml: Any, tmp_path: Path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"instruction": "say", "input": "", "output": "x"}])
    scan = scan_dataset(str(path), "auto", "seq2seq", "data.train")
    assert scan.format == "alpaca" and not scan.needs_template
    example = Encoder(chatml, max_length=500, is_seq2seq=True).resolve(
        read_example(Row({"instruction": "say", "output": "x"}, "d", 1), "alpaca", task="seq2seq")
    )
    assert isinstance(example, CompletionExample) and "### Instruction:\nsay" in example.prompt


def test_a_classifier_that_reads_the_end_refuses_a_text_with_another_one(ended: Any, words: Any):
    encode_row = Encoder(ended, max_length=9, labels=("x",), reads_class_at_end=True)
    assert encode_row(LabelledExample("w1", "x"), where="d:1")[0].input_ids == (11, END)
    assert encode_row(LabelledExample("w1", "x", "w2"), where="d:1")[0].input_ids == (11, 1, 12, 1)
    with pytest.raises(InputError, match=r"d:2: the row has 2 end tokens.*reads 1.*Remove <eos>"):
        encode_row(LabelledExample("w1 <eos> w2", "x"), where="d:2")
    encode_row = Encoder(words, max_length=9, labels=("x",), reads_class_at_end=True)
    with pytest.raises(InputError, match="ends no row with an end token"):
        encode_row(LabelledExample("w1", "x"), where="d:1")
