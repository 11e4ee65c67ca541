"""Conversations as people write them: names of roles, tool calls, parts, weights, Alpaca rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.errors import InputError
from jobs.inspect.datasets.columns import find_columns
from jobs.inspect.datasets.formats import (
    AlpacaExample,
    ChatExample,
    CompletionExample,
    LabelledExample,
    read_example,
)
from tests.jobs.datasets.builders import make_row

USER, BOT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
PARSED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def read_chat(**values: Any) -> ChatExample:
    example = read_example(make_row(**values), "auto", task="causal-lm")
    assert isinstance(example, ChatExample)
    return example


def test_a_message_keeps_every_key_and_a_row_its_tools_and_options() -> None:
    answer = {**BOT, "weight": 0.0, "reasoning_content": "hm", "name": "x", "extra": {"k": [1]}}
    example = read_chat(messages=[USER, answer], tools=[TOOL], documents=[{"text": "d"}])
    assert example.messages == (USER, {**answer, "weight": 0})
    assert example.tools == (TOOL,)
    assert example.options == {"documents": [{"text": "d"}]}


def test_tool_calls_may_stand_without_content_and_have_arguments_as_text() -> None:
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, BOT]
    expected = {"role": "assistant", "content": None, "tool_calls": [PARSED]}
    assert read_chat(messages=turns).messages[1] == expected
    del turns[1]["content"]
    assert read_chat(messages=turns).messages[1] == expected


def test_older_forms_of_calls_become_tool_calls() -> None:
    function = CALL["function"]
    call = {"type": "function", "function": PARSED["function"]}
    turns = [USER, {**BOT, "function_call": function}]
    old = read_chat(messages=turns, functions=[TOOL["function"]])
    assert old.tools == (TOOL,)
    assert old.messages[1] == {**BOT, "tool_calls": [call]}
    turn = {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"a": [1]}})}
    share = read_chat(conversations=[{"from": "human", "value": "hi"}, turn], tools="[]")
    assert share.messages[1] == {"role": "assistant", "content": None, "tool_calls": [call]}
    bare = read_chat(messages=[USER, BOT], tools=json.dumps([{"name": "f", "parameters": {}}]))
    assert bare.tools == (TOOL,)


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("GPT", "assistant"), ("bot", "assistant"), ("model", "assistant"),
     ("function", "tool"), ("observation", "tool"), ("ipython", "tool"), ("developer", "developer"),
     ("System", "system")],
)  # fmt: skip
def test_names_of_roles_are_translated(name: str, role: str) -> None:
    turn = {"from": name, "value": "x"}
    example = read_chat(conversations=[turn, {"from": "gpt", "value": "ho"}], system="")
    assert example.messages[0] == {"role": role, "content": "x"}


def test_a_system_column_is_the_first_turn_but_not_a_second_one() -> None:
    system = {"role": "system", "content": "be kind"}
    assert read_chat(messages=[USER, BOT], system="be kind").messages == (system, USER, BOT)
    assert read_chat(messages=[system, USER, BOT], system="be kind").messages[1] == USER
    with pytest.raises(InputError, match="system turn with another text"):
        read_chat(messages=[system, USER, BOT], system="be rude")


@pytest.mark.parametrize(("train", "weight"), [(False, 0), (True, 1), (0, 0), (1, 1)])
def test_the_key_train_of_a_message_is_its_weight(train: Any, weight: int) -> None:
    expected = (USER, {**BOT, "weight": weight}, USER, BOT)
    turn = {**BOT, "train": train}
    assert read_chat(messages=[USER, turn, USER, {**BOT, "train": None}]).messages == expected
    agreeing = {**turn, "weight": weight}
    assert read_chat(messages=[USER, agreeing, USER, BOT]).messages == expected
    shared = {"from": "gpt", "value": "ho", "train": train}
    (_, message) = read_chat(conversations=[{"from": "human", "value": "hi"}, shared]).messages
    assert message == {**BOT, "weight": weight}


def test_text_parts_are_joined_and_others_are_refused_by_their_type() -> None:
    parts = [{"type": "text", "text": "a"}, "b", {"type": "output_text", "text": "c"}]
    assert read_chat(messages=[USER, {**BOT, "content": parts}]).messages[1]["content"] == "abc"
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(InputError, match=r"messages\[0\].content\[0\] is a part .* 'image_url'"):
        read_chat(messages=[{**USER, "content": [image]}, BOT])


BAD_TURNS = {
    "null content": ({**BOT, "content": None}, r"\[1\].content is null"),
    "weight": ({**BOT, "weight": 0.5}, r"\[1\].weight is 0.5. Use 1"),
    "weight of a text": ({**BOT, "weight": "1"}, r"weight is '1'"),
    "weight of a boolean": ({**BOT, "weight": True}, r"weight is True"),
    "train of a text": ({**BOT, "train": "no"}, r"\[1\].train is 'no'. Use true .* false"),
    "train of a number": ({**BOT, "train": 2}, r"\[1\].train is 2"),
    "train and weight": (
        {**BOT, "train": False, "weight": 1},
        "has train False and weight 1. Remove one",
    ),
    "broken arguments": (
        {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": '{"a"'}}]},
        r"tool_calls\[0\].function.arguments is not valid JSON",
    ),
    "arguments of a list": (
        {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        r"arguments is \[1\]",
    ),
    "a call without a name": ({**BOT, "tool_calls": [{"function": {}}]}, "needs function.name"),
    "calls as a text": ({**BOT, "tool_calls": "f()"}, r"tool_calls is 'f\(\)'"),
    "other keys": ({"speaker": "bot", "utterance": "x"}, "{role: speaker, content: utterance}"),
    "two roles": ({**BOT, "from": "gpt"}, None),
}


@pytest.mark.parametrize(("turn", "message"), BAD_TURNS.values(), ids=BAD_TURNS)
def test_a_wrong_message_is_named_with_its_line(turn: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert read_chat(messages=[USER, turn]).messages[1]["from"] == "gpt"
        return
    with pytest.raises(InputError, match=message) as error:
        read_chat(messages=[USER, turn])
    assert str(error.value).startswith("d.jsonl:7: messages[1]")


def test_lists_of_messages_as_prompt_and_completion_are_a_conversation() -> None:
    example = read_chat(prompt=[USER, BOT, USER], completion=[BOT])
    assert example.messages == (USER, {**BOT, "weight": 0}, USER, BOT)
    assert read_chat(prompt=[USER], completion="ho").messages == (USER, BOT)
    with pytest.raises(InputError, match="no message is from the assistant"):
        read_chat(prompt=[USER, BOT], completion=[USER])


def test_preferences_are_refused_with_the_way_out() -> None:
    with pytest.raises(InputError, match=r"preferences.*\{prompt: prompt, completion: chosen\}"):
        read_example(make_row(prompt="a", chosen="b", rejected="c"), "auto")
    with pytest.raises(InputError, match=r"\{messages: chosen\}"):
        read_example(make_row(chosen=[USER, BOT], rejected=[USER, BOT]), "auto")
    with pytest.raises(InputError, match="preference, not trained on"):
        read_example(make_row(prompt="a", completion="b", label=False), "auto")
    columns = {"prompt": "prompt", "completion": "chosen"}
    row = make_row(prompt="a", chosen="b", rejected="c")
    assert read_example(row, "auto", columns=columns) == CompletionExample("a", "b")


def test_an_alpaca_row_is_a_conversation_or_the_alpaca_prompt() -> None:
    row = make_row(
        instruction="add", input="1 2", output="3", system="be brief", history=[["hi", "ho"]]
    )
    example = read_example(row, "auto", task="causal-lm")
    assert isinstance(example, AlpacaExample)
    assert [turn["content"] for turn in example.chat.messages] == [
        "be brief", "hi", "ho", "add\n1 2", "3",
    ]  # fmt: skip
    assert example.resolve(has_template=False) == CompletionExample(
        "be brief\n\n### Instruction:\nhi\n\n### Response:\nho\n\n"
        "### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n",
        "3",
    )
    plain = read_example(make_row(instruction="say", input="", output="x"), "alpaca")
    assert isinstance(plain, AlpacaExample)
    assert plain.completion.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nsay\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    "names", [("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"),
              ("question", "passage")],
)  # fmt: skip
def test_pairs_of_texts_are_recognised(names: tuple[str, str]) -> None:
    row = make_row(**{names[0]: "a", names[1]: "b", "label": 1})
    assert read_example(row, "auto") == LabelledExample("a", "1", "b")


COLUMNS = [
    ({"question": "a", "answer": "b"}, {"prompt": "question", "completion": "answer"}),
    ({"review": "a", "stars": 5}, {"text": "review", "label": "stars"}),
    ({"dialog": [USER, BOT]}, {"messages": "dialog"}),
    ({"dialogue": [{"from": "human", "value": "hi"}]}, {"messages": "dialogue"}),
    ({"Prompt ": "a", "Completion": "b"}, {"prompt": "Prompt ", "completion": "Completion"}),
    ({"txt": "a", "lable": 1}, {"text": "txt", "label": "lable"}),
]


@pytest.mark.parametrize(("values", "columns"), COLUMNS)
def test_the_advice_on_columns_works_when_it_is_followed(
    values: dict[str, Any], columns: dict[str, str]
) -> None:
    task = "sequence-classification" if "label" in columns else "causal-lm"
    advice = ", ".join(f"{key}: {column}" for key, column in columns.items())
    with pytest.raises(InputError) as error:
        read_example(make_row(**values), "auto", task=task)
    assert f"Use data.columns: {{{advice}}}" in str(error.value)
    match = find_columns(values, "auto", task=task, columns=columns)
    assert match is not None and match[1].items() >= columns.items()


def test_columns_map_any_names_of_a_conversation() -> None:
    values = {"turns": [{"who": "human", "says": "hi"}, {"who": "bot", "says": "ho"}]}
    columns = {"messages": "turns", "role": "who", "content": "says"}
    example = read_example(make_row(**values), "auto", columns=columns)
    assert example == ChatExample((USER, BOT))
    with pytest.raises(InputError, match=r"No format reads prompt, label together"):
        read_example(make_row(a="x", b="y"), "auto", columns={"prompt": "a", "label": "b"})
