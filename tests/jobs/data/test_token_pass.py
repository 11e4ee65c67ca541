"""The pass before the first step: every fault together, a table that equals the stream, a tally."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.plan.token_tally import TokenTally, check_dropped, iter_tally_notes, make_tally
from jobs.train.data.source import RowSource, StreamedSamples, TableSamples
from jobs.train.data.token_pass import (
    TokenInputs,
    ensure_table,
    read_sealed_tally,
    recall_tally,
)
from jobs.train.data.tokenization import Encoder, Sample
from tests.jobs.data.conftest import write_jsonl


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_inputs(folder: Path, *files: list[dict[str, object]], **more: Any) -> TokenInputs:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/tokenizer.json").write_text("{}")
    paths = [write_jsonl(folder / f"{number}.jsonl", rows) for number, rows in enumerate(files)]
    options = {
        "format": "text",
        "columns": {},
        "task": "causal-lm",
        "labels": (),
        "max_length": 6,
    } | more
    return TokenInputs(folder / "model", tuple(paths), **options)


def make_texts(count: int, length: int = 3) -> list[dict[str, object]]:
    return [
        {"text": " ".join(f"w{number + at}" for at in range(length))} for number in range(count)
    ]


def write_table(inputs: TokenInputs, tokenizer: Any) -> Path:
    encoder = Encoder(tokenizer, max_length=inputs.max_length, labels=inputs.labels)
    return ensure_table(inputs, lambda: encoder)


def list_samples(source: Any, **order: Any) -> list[Sample]:
    return [sample for samples in source.iter_rows_of_samples(**order) for sample in samples]


def refuse_encoder() -> Encoder:
    raise AssertionError("the rows are tokenised again")


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_table_holds_what_the_stream_yields_in_the_same_order(
    words: Any, tmp_path: Path, split: Any
):
    inputs = make_inputs(tmp_path, make_texts(30), make_texts(20, 5), make_texts(3))
    folder = write_table(inputs, words)
    rows = RowSource(inputs.files, "text", eval_fraction=0.3, split=split, seed=4)
    stream = StreamedSamples(rows, Encoder(words, max_length=6), "causal-lm")
    table = TableSamples(folder, rows)
    assert len(list_samples(table)) > 5
    assert list_samples(table) == list_samples(stream)
    for epoch in (0, 1):
        order = {"epoch": epoch, "shuffle_seed": 7}
        assert list_samples(table, **order) == list_samples(stream, **order)


def test_labels_and_cut_rows_come_back_from_the_table(words: Any, tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"text": "w1 w2", "label": "b"}, {"text": "w1 " * 9, "label": "a"},
    ]  # fmt: skip
    options = {"format": "classification", "task": "sequence-classification"}
    inputs = make_inputs(tmp_path, rows, labels=("a", "b"), **options)
    table = TableSamples(write_table(inputs, words), RowSource(inputs.files, "classification"))
    assert list_samples(table) == [
        Sample((11, 12), (1,), kind="class"), Sample((11,) * 6, (0,), truncated=3, kind="class"),
    ]  # fmt: skip
    tally = read_sealed_tally(inputs)
    assert tally is not None and tally.labels == {"a": 1, "b": 1} and tally.cut_tokens == 3


def test_a_second_pass_reads_no_row_and_any_change_makes_another_table(words: Any, tmp_path: Path):
    inputs = make_inputs(tmp_path, make_texts(3))
    folder = write_table(inputs, words)
    assert ensure_table(inputs, refuse_encoder) == folder
    others = [replace(inputs, max_length=7), replace(inputs, skips_bad_rows=True)]
    assert len({folder, *(other.find_table() for other in others)}) == 3
    (tmp_path / "model/chat_template.jinja").write_text("x")
    assert inputs.find_table() != folder
    (tmp_path / "model/chat_template.jinja").unlink()
    assert inputs.find_table() == folder
    write_jsonl(tmp_path / "0.jsonl", make_texts(3))
    assert inputs.find_table() != folder


def test_the_first_rows_are_tokenised_once_and_leave_no_table(words: Any, tmp_path: Path):
    inputs = make_inputs(tmp_path, make_texts(9))
    first = replace(inputs, limit=4)
    tally = recall_tally(first, lambda: Encoder(words, max_length=6))
    assert tally.rows == 4 and not tally.is_complete
    assert recall_tally(first, refuse_encoder) == tally
    with pytest.raises(AssertionError, match="tokenised again"):
        recall_tally(replace(inputs, limit=5), refuse_encoder)
    assert read_sealed_tally(first) is None and read_sealed_tally(inputs) is None


def test_all_bad_rows_are_told_together_and_leave_no_table(words: Any, tmp_path: Path, cache: Path):
    inputs = make_inputs(tmp_path, [{"text": "w1"}, {"text": 1}, {"text": "w2"}, {"text": ""}])
    with pytest.raises(InputError) as error:
        write_table(inputs, words)
    assert [fault.key.rpartition("/")[2] for fault in error.value.faults] == [
        "0.jsonl:2", "0.jsonl:4",
    ]  # fmt: skip
    assert read_sealed_tally(inputs) is None
    assert [path for path in (cache / "tokens").iterdir() if path.is_dir()] == []


def test_bad_rows_are_skipped_if_the_spec_says_so(words: Any, tmp_path: Path):
    rows: list[dict[str, object]] = [{"text": "w1 w2"}, {"text": 1}, {"text": "w3"}]
    inputs = make_inputs(tmp_path, rows, skips_bad_rows=True)
    with inputs.files[0].open("a") as file:
        file.write("no json\n")
    source = RowSource(inputs.files, "text", skips_bad_rows=True)
    stream = StreamedSamples(source, Encoder(words, max_length=6), "causal-lm")
    table = TableSamples(write_table(inputs, words), source)
    assert len(list_samples(table)) == 2 and list_samples(table) == list_samples(stream)
    tally = read_sealed_tally(inputs)
    assert tally is not None and tally.dropped == {"bad row": 2} and tally.rows == 4
    assert "0.jsonl:2" in tally.notes[0]


def test_the_tally_counts_rows_tokens_cuts_and_duplicates(words: Any, tmp_path: Path):
    rows: list[dict[str, object]] = [
        {"prompt": "w1 ", "completion": "w2"},
        {"prompt": "w1 ", "completion": "w2"},
        {"prompt": "w1 " * 9, "completion": "w2"},
        {"prompt": "w1 ", "completion": "w2 " * 9},
    ]
    inputs = make_inputs(tmp_path, rows, format="prompt-completion")
    write_table(inputs, words)
    tally = read_sealed_tally(inputs)
    assert tally == TokenTally(
        rows=4, samples=3, tokens=12, targets=9, longest=11, cut=2, cut_tokens=10,
        dropped={"answer cut off": 1}, duplicates=1,
    )  # fmt: skip
    assert make_tally(tally.to_json()) == tally
    assert "25% of the rows are dropped" in next(iter_tally_notes(tally, "data.train"))
    assert check_dropped(tally, "data.train", limit=0.25) == []
    (fault,) = check_dropped(tally, "data.train", limit=0.2)
    assert "1 answer cut off" in fault.problem


def test_a_table_that_nobody_uses_is_removed(words: Any, tmp_path: Path):
    import os

    old, new = make_inputs(tmp_path, make_texts(2)), make_inputs(tmp_path, make_texts(2))
    folder = write_table(old, words)
    os.utime(folder / "tally.json", (0, 0))
    write_table(replace(new, max_length=9), words)
    assert not folder.exists()


@pytest.mark.parametrize("key", ["data.train", "data.eval"])
def test_rows_that_teach_nothing_are_refused_whatever_share_may_be_dropped(key: str):
    note = "a bad row is skipped: a.jsonl:1: messages[0].content is 3. It should be a string"
    tally = TokenTally(
        rows=5, samples=0, tokens=0, targets=0, longest=90, cut=2, cut_tokens=40,
        dropped={"bad row": 3, "answer cut off": 2}, notes=(note,),
    )  # fmt: skip
    (fault,) = check_dropped(tally, key, limit=1.0)
    assert fault.key == key and "3 bad row, 2 answer cut off" in fault.problem
    assert "a.jsonl:1" in fault.remedy and "max_length (the longest row has 90" in fault.remedy
    assert check_dropped(replace(tally, is_complete=False), key, limit=1.0) == []
    (silent,) = check_dropped(replace(tally, dropped={"nothing to learn": 5}), key, limit=1.0)
    assert "weight" in silent.remedy and "bad rows" not in silent.remedy
