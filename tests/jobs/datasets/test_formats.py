"""Which fields make which example, and what a wrong row is told."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.columns import find_columns
from jobs.inspect.datasets.formats import (
    ChatExample,
    CompletionExample,
    LabelledExample,
    TextExample,
    read_example,
)
from tests.jobs.datasets.builders import make_row as row

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        pytest.param({"messages": [], "text": ""}, None, "chat", id="chat"),
        pytest.param({"prompt": "", "completion": ""}, None, "prompt-completion", id="prompt"),
        pytest.param({"text": "", "label": 1}, None, "classification", id="classification"),
        pytest.param({"text": "", "label": 1}, "causal-lm", "text", id="a label nobody asks for"),
        pytest.param({"text": "", "id": 1}, None, "text", id="text, and more"),
        pytest.param({"text": ""}, "sequence-classification", None, id="no label"),
        pytest.param({"prompt": ""}, None, None, id="half"),
        pytest.param({}, None, None, id="nothing"),
    ],
)
def test_the_format_follows_from_fields_and_task(
    values: dict[str, Any], task: str, expected: str
) -> None:
    match = find_columns(values, "auto", task=task)
    assert (match and match[0]) == expected


def test_each_format_is_read_into_its_own_class() -> None:
    assert read_example(row(messages=[USER, BOT]), "auto") == ChatExample(
        ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})
    )
    assert read_example(row(prompt="", completion="b"), "auto") == CompletionExample("", "b")
    assert read_example(row(text="a", label="x"), "text") == TextExample("a")
    assert read_example(row(text="a", label=-3), "auto") == LabelledExample("a", "-3")


BAD_MESSAGES = {
    "not a list": ("hi", "messages is 'hi'"),
    "no message": ([], "roles: none"),
    "no answer": ([USER], "roles: user"),
    "a bare string": ([USER, "ho"], r"messages\[1\] is 'ho'"),
    "other names": ([{"from": "human"}], r"\[0\] is missing 'role' and 'content'; it has 'from'"),
    "unknown role": (
        [{**BOT, "role": "narrator"}],
        r"\[0\].role is 'narrator'.*system, developer, user, assistant, tool",
    ),
    "role a list": ([{**BOT, "role": ["a"]}], r"\[0\].role is \['a'\]"),
    "a part without text": (
        [USER, {**BOT, "content": [{"type": "text"}]}],
        r"\[1\].content\[0\].text is None",
    ),
    "empty answer": ([USER, {**BOT, "content": ""}], r"\[1\].content is empty"),
}
BAD_LABELS = {
    "no label": (None, "label is missing"),
    "a fraction": (1.5, "label is 1.5"),
    "not a number": (float("nan"), "label is missing"),
    "empty label": ("", "label is empty"),
}
BAD_TEXTS = {
    "null": (None, "text is None. It should be a string"),
    "a number": (3, "text is 3"),
    "blank": (" \n", "text is empty"),
    "a surrogate": ("a\ud800", r"an unpaired surrogate \(U\+D800\)"),
}
BAD_ROWS = {
    "unknown fields": (
        "auto",
        {"a": 1, "b": 2},
        "no format fits the columns 'a', 'b'.*chat needs mess",
    ),
    "what formats need": ("auto", {"a": 1}, "prompt-completion needs prompt, completion"),
    "no fields": ("auto", {}, "no format fits the columns no columns"),
    "missing": ("text", {"Text": "a"}, "text needs 'text'; the row has 'Text'"),
    "nothing to learn": ("auto", {"prompt": "a", "completion": ""}, "completion is empty"),
    **{id: ("chat", {"messages": value}, said) for id, (value, said) in BAD_MESSAGES.items()},
    **{id: ("auto", {"text": "a", "label": v}, said) for id, (v, said) in BAD_LABELS.items()},
    **{id: ("text", {"text": value}, said) for id, (value, said) in BAD_TEXTS.items()},
}


@pytest.mark.parametrize(("fmt", "values", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_an_invalid_row_is_reported_with_location_problem_and_fix(
    fmt: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_example(row(**values), fmt)
    assert str(error.value).startswith("d.jsonl:7: ")
    assert len(str(error.value)) < 400


def test_a_long_value_is_shortened_in_a_message() -> None:
    with pytest.raises(InputError) as error:
        read_example(row(text=["x" * 10**6]), "text")
    assert len(str(error.value)) < 200
