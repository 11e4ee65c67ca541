"""Files of rows as people bring them, made here, with what is right for each."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.zoo.row_expectations import (
    END,
    Expectation,
    all_of,
    any_of,
    classify,
    count_rows,
    learn,
    learn_all_of,
    learn_nothing_of,
    note,
    refuse,
    show,
    show_as,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\ntools: ' + (tools | tojson) + '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + (m['content'] or '') }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<call>' + (c['function'] | tojson) + '</call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REASONING = CHATML.replace(
    "+ m['content']",
    "+ ('<think>' + m['reasoning_content'] + '</think>' if m['reasoning_content'] else '') "
    "+ m['content']",
)
THINKS_AT_LAST = CHATML.replace(
    "+ m['content']",
    "+ ('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content']",
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    + CHATML
)
NO_END = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\\n' + m['content'] + '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class RowCase:
    """Files, the model's template and the spec's data section, and what is right."""

    name: str
    write: Callable[[Path], None]
    """Writes the files into a folder."""
    right: Expectation
    template: str | None = CHATML
    task: str = "causal-lm"
    data: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the spec's data section; `train` is the folder's rows.jsonl by default."""
    adds: tuple[str, ...] = ()
    """Special tokens that the tokenizer adds by itself: bos, eos."""


def write_jsonl(*rows: Mapping[str, Any], name: str = "rows.jsonl") -> Callable[[Path], None]:
    """Return a writer of JSON lines, as UTF-8."""

    def write(folder: Path) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return write


def write_bytes(content: bytes, name: str) -> Callable[[Path], None]:
    """Return a writer of one file."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def write_each(*writers: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return a writer of several files."""

    def write(folder: Path) -> None:
        for writer in writers:
            writer(folder)

    return write


def write_arrow(folder: Path) -> None:
    """Write a dataset as `datasets` saves it to a disk."""
    from datasets import Dataset

    Dataset.from_list([{"text": "a day"}, {"text": "a night"}]).save_to_disk(folder / "saved")


def write_pandas_parquet(folder: Path) -> None:
    """Write the parquet file of a table with pandas' index in a column."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {"text": ["fine", "poor"], "label": ["good", "bad"], "__index_level_0__": [3, 5]}
    )
    parquet.write_table(table, folder / "rows.parquet")


def chat(*turns: str, **extra: Any) -> dict[str, Any]:
    """Return a conversation: user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
    return {"messages": messages, **extra}


CALL = {"id": "c1", "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "tells the sky",
                                         "parameters": {"type": "object"}}}  # fmt: skip


def make_tool_row(content: str | None) -> dict[str, Any]:
    """Return a conversation with a call of a tool and its answer."""
    return {
        "messages": [
            {"role": "user", "content": "rain in Rome?"},
            {"role": "assistant", "content": content, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "dry"},
            {"role": "assistant", "content": "no rain"},
        ],
        "tools": [TOOL],
    }


def make_weighted_row() -> dict[str, Any]:
    """Return a conversation whose first answer has the weight 0."""
    row = chat("hi", "a bad one", "again", "a good one")
    row["messages"][1]["weight"], row["messages"][3]["weight"] = 0, 1
    return row


def make_reasoning_row() -> dict[str, Any]:
    """Return a conversation whose answer has a reasoning beside its content."""
    row = chat("two and two?", "four")
    row["messages"][1]["reasoning_content"] = "count them"
    return row


def make_parts_row(*kinds: str) -> dict[str, Any]:
    """Return a conversation whose question is a list of parts."""
    parts = [{"type": kind, kind: "hello"} for kind in kinds]
    return {"messages": [{"role": "user", "content": parts},
                         {"role": "assistant", "content": "good day"}]}  # fmt: skip


def make_system_row() -> dict[str, Any]:
    """Return a conversation with a system turn."""
    row = chat("hi", "hello")
    row["messages"].insert(0, {"role": "system", "content": "be kind"})
    return row


LONG = " ".join(["word"] * 60)
CLASSES = {"task": "sequence-classification", "template": None}


def _labelled(*pairs: tuple[str, Any]) -> Sequence[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in pairs]


CASES: tuple[RowCase, ...] = (
    RowCase("chat", write_jsonl(chat("hi", "hello")), learn("hello" + END)),
    RowCase("two-turns", write_jsonl(chat("a", "b", "c", "d")), learn(f"b{END}d{END}")),
    RowCase("prompt-completion", write_jsonl({"prompt": "a b", "completion": " c"}),
            learn(" c" + END)),
    RowCase("text", write_jsonl({"text": "some words"}), show_as("some words" + END)),
    RowCase("text-file", write_bytes(b"one line\nanother\n", "rows.txt"), show("one line"),
            data={"train": "rows.txt"}),
    RowCase("gzip", write_bytes(gzip.compress(b'{"text": "zipped"}\n'), "rows.jsonl.gz"),
            show_as("zipped" + END), data={"train": "rows.jsonl.gz"}),
    RowCase("labels", write_jsonl(*_labelled(("fine", "good"), ("poor", "bad"))),
            classify("good", "bad", rows=2), **CLASSES),
    # names of columns
    RowCase("alpaca", write_jsonl({"instruction": "greet", "input": "", "output": "hello"},
                                  {"instruction": "add", "input": "1 2", "output": "3"}),
            all_of(learn("hello" + END, "3" + END), show("greet", "add", "1 2"))),
    RowCase("sharegpt", write_jsonl({"conversations": [{"from": "human", "value": "hi"},
                                                       {"from": "gpt", "value": "hello"}]}),
            all_of(learn("hello" + END), show("user\nhi"))),
    RowCase("columns", write_jsonl({"question": "who", "answer": " me"}), learn(" me" + END),
            data={"columns": {"prompt": "question", "completion": "answer"}}),
    RowCase("columns-of-turns",
            write_jsonl({"talk": [{"who": "user", "said": "hi"},
                                  {"who": "assistant", "said": "hello"}]}),
            learn("hello" + END),
            data={"columns": {"messages": "talk", "role": "who", "content": "said"}}),
    RowCase("unknown-columns", write_jsonl({"foo": "a", "bar": "b"}), refuse("foo", "columns")),
    # what messages hold beside their text
    RowCase("tool-calls", write_jsonl(make_tool_row("let me look")),
            all_of(show("tools: ", "tells the sky"),
                   learn_all_of("<call>", "Rome", "no rain"), learn_nothing_of("dry")),
            template=TOOLS, data={"max_length": 512}),
    RowCase("null-content", write_jsonl(make_tool_row(None)),
            all_of(learn_all_of("<call>", "no rain"), learn_nothing_of("None")), template=TOOLS,
            data={"max_length": 512}),
    RowCase("unrendered-tools", write_jsonl(make_tool_row("let me look")),
            any_of(note("tool_calls"), refuse("tool_calls"))),
    RowCase("weight-0", write_jsonl(make_weighted_row()),
            all_of(learn("a good one" + END), show("a bad one"))),
    RowCase("reasoning", write_jsonl(make_reasoning_row()),
            learn(f"<think>count them</think>four{END}"), template=REASONING),
    RowCase("text-parts", write_jsonl(make_parts_row("text", "text")),
            all_of(learn("good day" + END), show("hellohello"))),
    RowCase("image-parts", write_jsonl(chat("hi", "hello"), make_parts_row("image")),
            refuse("rows.jsonl:2", "image")),
    # what templates refuse or do
    RowCase("system-refused", write_jsonl(chat("hi", "hello"), make_system_row(),
                                          make_system_row()),
            any_of(refuse("rows.jsonl:2", "rows.jsonl:3", "no system turns"),
                   all_of(learn("hello" + END), show("be kind"), count_rows(3))),
            template=NO_SYSTEM),
    RowCase("broken-skipped", write_jsonl(chat("hi", "hello"), {"messages": "broken"}),
            all_of(learn("hello" + END), count_rows(1), note("skip")),
            data={"on_bad_row": "skip", "max_dropped": 0.5}),
    RowCase("too-many-skipped", write_jsonl(chat("hi", "hello"), {"messages": "broken"}),
            refuse("max_dropped", "50%"), data={"on_bad_row": "skip"}),
    RowCase("rewritten-turns", write_jsonl(chat("a", "b", "c", "d")),
            any_of(learn(f"b{END}<think></think>d{END}"),
                   all_of(learn_all_of("d" + END), note("last answer"))),
            template=THINKS_AT_LAST),
    RowCase("no-end", write_jsonl(chat("hi", "hello")),
            all_of(learn_all_of(END), note("end")), template=NO_END),
    RowCase("no-template", write_jsonl(chat("hi", "hello")), refuse("chat template"),
            template=None),
    # lengths
    RowCase("long-prompts", write_jsonl(chat("hi", "hello"), chat(LONG, "hello")),
            any_of(refuse("max_dropped"), note("target"))),
    RowCase("long-documents", write_jsonl({"text": LONG}), count_rows(-(-301 // 64)),
            data={"max_length": 64}),
    # files and folders
    RowCase("split-folder", write_each(write_jsonl({"text": "learn"}, name="set/train.jsonl"),
                                       write_jsonl({"text": "examine"}, name="set/test.jsonl")),
            all_of(show("learn"), show_as("learn" + END)), data={"train": "set"}),
    RowCase("readme-beside", write_each(write_jsonl(chat("hi", "hello"), name="set/a.jsonl"),
                                        write_bytes(b"# About\n", "set/README.md"),
                                        write_bytes(b"licence\n", "set/LICENSE.txt")),
            learn("hello" + END), data={"train": "set"}),
    RowCase("ndjson", write_bytes(b'{"text": "lines"}\n', "rows.ndjson"), show_as("lines" + END),
            data={"train": "rows.ndjson"}),
    RowCase("saved-arrow", write_arrow, show_as("a day" + END, "a night" + END),
            data={"train": "saved"}),
    RowCase("pandas-index", write_pandas_parquet, classify("good", "bad", rows=2),
            data={"train": "rows.parquet"}, **CLASSES),
    RowCase("excel-csv",
            write_bytes(b'\xef\xbb\xbftext,label\r\n"He said ""hi"", ok\r\nthen",a\r\nno,b\r\n',
                        "rows.csv"),
            all_of(classify("a", "b", rows=2), show('He said "hi", ok')),
            data={"train": "rows.csv"}, **CLASSES),
    RowCase("semicolon-csv", write_bytes(b"text;label\nfine;good\npoor;bad\n", "rows.csv"),
            classify("good", "bad", rows=2), data={"train": "rows.csv"}, **CLASSES),
    RowCase("broken-line", write_bytes(b'{"text": "a"}\n{"text": \n', "rows.jsonl"),
            refuse("rows.jsonl:2")),
    RowCase("empty-file", write_bytes(b"", "rows.jsonl"), refuse("rows.jsonl")),
    # labels
    RowCase("bool-labels", write_jsonl(*_labelled(("fine", True), ("poor", False))),
            any_of(classify("true", "false", rows=2), classify("True", "False", rows=2)),
            **CLASSES),
    RowCase("float-labels", write_jsonl(*_labelled(("fine", 1.0), ("poor", 0.0))),
            classify("1", "0", rows=2), **CLASSES),
    RowCase("half-labels", write_jsonl(*_labelled(("fine", 0.5), ("poor", 1))),
            refuse("rows.jsonl:1", "0.5"), **CLASSES),
    RowCase("spaced-labels", write_jsonl(*_labelled(("fine", "1"), ("poor", "1 "), ("bad", "2"))),
            note("'1 '"), **CLASSES),
    RowCase("cased-labels", write_jsonl(*_labelled(("a", "Good"), ("b", "good"), ("c", "bad"))),
            note("Good", "good"), **CLASSES),
    RowCase("one-label", write_jsonl(*_labelled(("a", "x"), ("b", "x"))), refuse("label"),
            **CLASSES),
    # tokenizers that add tokens of their own
    RowCase("text-bos", write_jsonl({"text": "words"}), show_as(f"<bos>words{END}"),
            adds=("bos",)),
    RowCase("text-bos-eos", write_jsonl({"text": "words"}), show_as(f"<bos>words{END}"),
            adds=("bos", "eos")),
    RowCase("pair-bos-eos", write_jsonl({"prompt": "a", "completion": "b"}),
            all_of(show_as(f"<bos>ab{END}"), learn("b" + END)), adds=("bos", "eos")),
    RowCase("chat-bos", write_jsonl(chat("hi", "hello")),
            all_of(show("<bos><|im_start|>user"), learn_nothing_of("<bos>")),
            template="{{ bos_token }}" + CHATML, adds=("bos",)),
)  # fmt: skip
