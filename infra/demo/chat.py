"""Question and answer, in the `messages` form, out of ChatterBot's English corpus (BSD)."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from wheels import list_members, open_member

FOLDER = "chatterbot_corpus/data/english/"
HELD_OUT = 0.08

ALTERNATIVES = frozenset({"computers", "emotion"})
"""Topics whose longer lists are one question and several answers to it, not a dialogue."""


@dataclass(frozen=True)
class DemoConversation:
    topic: str
    turns: tuple[str, ...]
    """User and assistant in turn; the assistant has the last word."""

    def to_row(self) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]
        return json.dumps({"messages": messages, "topic": self.topic}, ensure_ascii=False)


def make_chat(wheel: Path, into: Path) -> str:
    """Write `chat.train.jsonl` and `chat.eval.jsonl`; no question of a user stands in both."""
    read = [
        talk for name in list_members(wheel, FOLDER) for talk in _read_conversations(wheel, name)
    ]
    # Whole support answers stand in the corpus more than a hundred times each.
    talks = list({talk.turns: talk for talk in read if len(talk.turns) >= 2}.values())
    talks.sort(key=lambda talk: _hash("order", *talk.turns))
    groups = _group_questions(talks)
    held_out = [
        talk
        for talk in talks
        if _hash_to_fraction(groups[_normalize_question(talk.turns[0])]) < HELD_OUT
    ]
    train = [
        talk
        for talk in talks
        if _hash_to_fraction(groups[_normalize_question(talk.turns[0])]) >= HELD_OUT
    ]
    for name, rows in (("chat.train.jsonl", train), ("chat.eval.jsonl", held_out)):
        text = "".join(talk.to_row() + "\n" for talk in rows)
        (into / name).write_text(text, encoding="utf-8", newline="\n")
    short = sum(len(talk.turns) < 2 for talk in read)
    return (
        f"{len(read)} conversations read, {short} without an answer and"
        f" {len(read) - short - len(talks)} duplicates dropped:"
        f" {len(train)} rows to train on, {len(held_out)} held out"
    )


def _read_conversations(wheel: Path, name: str) -> list[DemoConversation]:
    topic = PurePosixPath(name).stem
    with open_member(wheel, name) as file:
        entries = yaml.safe_load(file)["conversations"]
    talks: list[DemoConversation] = []
    for entry in entries:
        # One trivia entry lost its indentation and reads as a bare string.
        lines = entry if isinstance(entry, list) else [entry]
        turns = [str(line).strip() for line in lines if str(line).strip()]
        if topic in ALTERNATIVES:
            talks += [DemoConversation(topic, (turns[0], answer)) for answer in turns[1:]]
        else:
            talks.append(DemoConversation(topic, tuple(turns[: len(turns) // 2 * 2])))
    return talks


def _group_questions(talks: list[DemoConversation]) -> dict[str, str]:
    """Every user question to its group's name: those of one conversation belong together."""
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
    """The question without case, punctuation and spacing (all of it, when it is nothing else)."""
    return " ".join(re.findall(r"\w+", question.casefold())) or question


def _hash_to_fraction(group: str) -> float:
    """Where the group falls between 0 and 1: the same on every machine."""
    return int(_hash("split", group)[:8], 16) / 16**8


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
