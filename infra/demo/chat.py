"""Questions and answers as `messages`, from the English corpus of ChatterBot (BSD)."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from packages import list_members, open_member
from rows import hash_parts, write_rows

FOLDER = "chatterbot_corpus/data/english/"
HELD_OUT = 0.08

ALTERNATIVES = frozenset({"computers", "emotion"})
"""Topics whose lists are one question with several answers, not a dialogue."""


@dataclass(frozen=True)
class DemoConversation:
    topic: str
    turns: tuple[str, ...]
    """Turns of user and assistant; the last one is the assistant's."""

    def to_row(self) -> dict[str, Any]:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]
        return {"messages": messages, "topic": self.topic}


def make_chat(wheel: Path, into: Path) -> str:
    """Write `chat.train.jsonl` and `chat.eval.jsonl`, which share no question of a user."""
    read = [
        talk for name in list_members(wheel, FOLDER) for talk in _read_conversations(wheel, name)
    ]
    # The corpus repeats some support answers more than a hundred times.
    talks = list({talk.turns: talk for talk in read if len(talk.turns) >= 2}.values())
    talks.sort(key=lambda talk: hash_parts("order", *talk.turns))
    groups = _group_questions(talks)
    train, held_out = list[DemoConversation](), list[DemoConversation]()
    for talk in talks:
        group = groups[_normalize_question(talk.turns[0])]
        (held_out if _hash_to_fraction(group) < HELD_OUT else train).append(talk)
    for name, rows in (("chat.train.jsonl", train), ("chat.eval.jsonl", held_out)):
        write_rows(into / name, (talk.to_row() for talk in rows), ensure_ascii=False)
    short = sum(len(talk.turns) < 2 for talk in read)
    return (
        f"{len(read)} conversations read, {short} without an answer and"
        f" {len(read) - short - len(talks)} duplicates dropped:"
        f" {len(train)} rows for training, {len(held_out)} held out"
    )


def _read_conversations(wheel: Path, name: str) -> list[DemoConversation]:
    topic = PurePosixPath(name).stem
    with open_member(wheel, name) as file:
        entries = yaml.safe_load(file)["conversations"]
    talks: list[DemoConversation] = []
    for entry in entries:
        # One trivia entry has lost its indentation, and is a plain string.
        lines = entry if isinstance(entry, list) else [entry]
        turns = [str(line).strip() for line in lines if str(line).strip()]
        if topic in ALTERNATIVES:
            talks += [DemoConversation(topic, (turns[0], answer)) for answer in turns[1:]]
        else:
            talks.append(DemoConversation(topic, tuple(turns[: len(turns) // 2 * 2])))
    return talks


def _group_questions(talks: list[DemoConversation]) -> dict[str, str]:
    """Map every user question to its group: questions of one conversation share a group."""
    leader: dict[str, str] = {}

    def find(question: str) -> str:
        while leader.setdefault(question, question) != question:
            question = leader[question]
        return question

    for talk in talks:
        first, *later = [_normalize_question(turn) for turn in talk.turns[::2]]
        for question in later:
            low, high = sorted((find(first), find(question)))
            leader[high] = low
        find(first)
    return {question: find(question) for question in leader}


def _normalize_question(question: str) -> str:
    """Return the question without case, punctuation and spacing, unless nothing is left."""
    return " ".join(re.findall(r"\w+", question.casefold())) or question


def _hash_to_fraction(group: str) -> float:
    """Return a number between 0 and 1 for the group, the same on every machine."""
    return int(hash_parts("split", group)[:8], 16) / 16**8
