"""Rows, templates and configs that try to break the pass: a tally comes out, or faults do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.columns import FORMATS
from jobs.inspect.datasets.scan import DatasetScan, scan_dataset
from jobs.plan.token_tally import make_tally
from jobs.spec.load import validate_spec
from jobs.train.data.token_pass import TokenInputs, write_table
from jobs.train.data.token_table import TokenTable
from jobs.train.data.tokenization import Encoder
from tests.tiny import tiny_spec

HYPOTHESIS = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", " ", "\n", "fine", "<|im_end|>", "<|im_start|>assistant\n", "\U000f0000", "\U000f0003",
         "\ud800", "{{ x }}", "{% generation %}", "[]", "{", "fine fine", "\x00", "user", "\ufeff"]
    ),
)  # fmt: skip
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
KEYS = ["role", "content", "from", "value", "name", "type", "text", "function", "arguments",
        "weight", "tool_calls", "reasoning_content", "messages", "bos_token", "chat_template",
        "self", "loop", "conversation", "add_generation_prompt", "tokenize", "x y"]  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=6,
)
ROLES = st.sampled_from(["system", "user", "assistant", "assistant", "tool", "developer", "gpt",
                         "function_call", "observation"])  # fmt: skip
CALLS = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXTS, "arguments": VALUES})})
    | VALUES,
    max_size=2,
)
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "tool_calls": CALLS | VALUES,
        "weight": st.sampled_from([0, 1, 0.0, 2, None, "0"]),
        "train": st.sampled_from([False, True, 0, None, "no", [1]]),
        "reasoning_content": TEXTS,
        "name": VALUES,
    },
)
TURNS = st.builds(
    lambda role, content, extra: {"role": role, "content": content, **extra},
    ROLES, TEXTS | TEXTS | VALUES, EXTRAS | st.just({}),
)  # fmt: skip
CHATS = st.builds(
    lambda turns, more: {"messages": turns, **more},
    st.lists(TURNS, max_size=4) | VALUES,
    st.just({})
    | st.fixed_dictionaries(
        {},
        optional={
            "tools": VALUES,
            "chat_template_kwargs": st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2)
            | VALUES,
            "documents": VALUES,
            "system": TEXTS,
        },
    ),
)
FIELDS = ["messages", "conversations", "prompt", "completion", "text", "label", "instruction",
          "output", "input", "history", "chosen", "rejected", "text_pair"]  # fmt: skip
OTHERS = st.dictionaries(st.sampled_from(FIELDS), TEXTS | VALUES, max_size=4)
PAIRS = st.fixed_dictionaries({"prompt": TEXTS, "completion": TEXTS})
ROWS = st.lists(CHATS | OTHERS | PAIRS, min_size=1, max_size=4)

PARTS = st.sampled_from(
    [
        "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] + '\\n' }}",
        "{% generation %}", "{% endgeneration %}", "{{ m.tool_calls | tojson }}", "<|im_end|>\n",
        "{{ raise_exception('no') }}", "{% if loop.last %}", "{% endif %}", "{{ 1 / 0 }}",
        "{{ messages[9].content }}", "{{ m.content.split('x')[1] }}", "{{ tools }}", "{{", "%}",
        "{% if add_generation_prompt %}<|im_start|>a\n{% endif %}", "{{ m.content | trim }}",
        "{{ namespace }}", "{{ m.content | upper }}", "{{ 'a' * m.weight }}", "{{ bos_token }}",
        "<|im_start|>",
    ]
)  # fmt: skip
TURN = st.lists(PARTS, max_size=4).map("".join)
TEMPLATES = st.lists(PARTS, max_size=6).map("".join) | st.builds(
    lambda before, turn, after: f"{before}{{% for m in messages %}}{turn}{{% endfor %}}{after}",
    st.sampled_from(["", "{{ bos_token }}", "{{ messages[0].content }}"]),
    st.just("<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n")
    | st.just("{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
              "{% else %}{{ m.content }}{% endif %}")
    | TURN,
    st.sampled_from(["", "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "a"]),
)  # fmt: skip
TASKS = ("causal-lm", "sequence-classification")


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def collect_faults(work: Callable[[], object]) -> tuple[Fault, ...]:
    """Return the faults that the work raises, if any; any other exception is an error."""
    try:
        work()
    except InputError as error:
        return error.faults
    return ()


def tokenize(scan: DatasetScan, tokenizer: Any, folder: Path, task: str, **options: Any) -> None:
    """Tokenise the rows into a table, and check that its tally counts what it holds."""
    inputs = TokenInputs(
        folder, scan.files, scan.format, scan.columns, task, scan.labels, **options
    )
    encoder = Encoder(tokenizer, max_length=inputs.max_length, labels=scan.labels, embeddings=400)
    target = folder / f"table-{len(list(folder.iterdir()))}"
    tally = write_table(target, inputs, encoder)
    assert make_tally(json.loads(json.dumps(tally.to_json()))) == tally
    table = TokenTable(target)
    samples = [table[index] for index in range(len(table))]
    assert all(len(sample.input_ids) <= inputs.max_length for sample in samples)
    assert tally.targets == sum(sample.targets for sample in samples)
    dropped = sum(tally.dropped.values())
    assert tally.rows == len({tuple(row) for row in table.list_rows()}) + tally.dropped.get(
        "bad row", 0
    )
    assert dropped <= tally.rows and bool(tally.targets) == (dropped < tally.rows)


@HYPOTHESIS
@given(
    ROWS, TEMPLATES, st.sampled_from(TASKS), st.sampled_from(["auto", *FORMATS]), st.booleans(),
    st.integers(1, 40), st.dictionaries(st.sampled_from(["role", "content", *FIELDS]),
                                        st.sampled_from([*FIELDS, "x"]), max_size=2),
)  # fmt: skip
def test_any_rows_make_a_tally_or_faults(
    chatml: Any,
    tmp_path: Path,
    rows: list[Any],
    template: str,
    task: str,
    fmt: str,
    skips: bool,
    max_length: int,
    columns: dict[str, str],
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", rows)
    before, chatml.chat_template = chatml.chat_template, template

    def work() -> None:
        row_faults: Any = "skip" if skips else "return"
        scan = scan_dataset(
            str(path), fmt, task, "data.train", columns=columns, row_faults=row_faults
        )
        options = {"max_length": max_length, "skips_bad_rows": skips}
        tokenize(scan, chatml, tmp_path, task, **options)

    try:
        faults = collect_faults(work)
    finally:
        chatml.chat_template = before
    assert all(fault.key and fault.problem for fault in faults)


@HYPOTHESIS
@given(
    st.dictionaries(
        st.sampled_from(["train", "eval", "format", "columns", "max_length", "packing", "streaming",
                         "on_bad_row", "max_dropped", "eval_fraction", "labels", "x"]),
        VALUES | st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=4,
    ),
    st.sampled_from([*TASKS, "seq2seq", ""]),
)  # fmt: skip
def test_any_data_section_is_a_spec_or_faults(
    tmp_path: Path, data: dict[str, Any], task: str
) -> None:
    spec = tiny_spec(tmp_path)
    spec["data"] = {**spec["data"], **data}
    spec["model"] = {**spec["model"], "task": task}
    assert all(fault.key for fault in collect_faults(lambda: validate_spec(spec)))


@pytest.mark.parametrize("content", ["\ud800", "\U000f0000 and \U000f0001", "<|im_end|>" * 9])
def test_texts_that_look_like_marks_are_rows_or_faults(
    chatml: Any, tmp_path: Path, content: str
) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
    path = write_rows(tmp_path / "rows.jsonl", [{"messages": turns}])

    def work() -> None:
        scan = scan_dataset(str(path), "auto", "causal-lm", "data.train")
        tokenize(scan, chatml, tmp_path, "causal-lm", max_length=200)

    problems = [fault.problem for fault in collect_faults(work)]
    assert all("surrogate" in problem for problem in problems), problems
