"""Question and answer, in the `messages` form, out of ChatterBot's English corpus (BSD)."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from wheels import member, members

FOLDER = "chatterbot_corpus/data/english/"
HELD_OUT = 0.08

ALTERNATIVES = frozenset({"computers", "emotion"})
"""Topics whose longer lists are one question and several answers to it, not a dialogue."""


@dataclass(frozen=True)
class Conversation:
    topic: str
    turns: tuple[str, ...]
    """User and assistant in turn; the assistant has the last word."""

    def row(self) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(self.turns)]
        return json.dumps({"messages": messages, "topic": self.topic}, ensure_ascii=False)


def make_chat(wheel: Path, into: Path) -> str:
    """Write `chat.train.jsonl` and `chat.eval.jsonl`; no question of a user stands in both."""
    read = [talk for name in members(wheel, FOLDER) for talk in _read(wheel, name)]
    # Whole support answers stand in the corpus more than a hundred times each.
    talks = list({talk.turns: talk for talk in read if len(talk.turns) >= 2}.values())
    talks.sort(key=lambda talk: _hash("order", *talk.turns))
    shared = _groups(talks)
    held = [talk for talk in talks if _share(shared[_key(talk.turns[0])]) < HELD_OUT]
    kept = [talk for talk in talks if _share(shared[_key(talk.turns[0])]) >= HELD_OUT]
    for name, rows in (("chat.train.jsonl", kept), ("chat.eval.jsonl", held)):
        text = "".join(talk.row() + "\n" for talk in rows)
        (into / name).write_text(text, encoding="utf-8", newline="\n")
    short = sum(len(talk.turns) < 2 for talk in read)
    return (
        f"{len(read)} conversations read, {short} without an answer and"
        f" {len(read) - short - len(talks)} duplicates dropped:"
        f" {len(kept)} rows to train on, {len(held)} held out"
    )


def _read(wheel: Path, name: str) -> list[Conversation]:
    topic = PurePosixPath(name).stem
    with member(wheel, name) as file:
        listed = yaml.safe_load(file)["conversations"]
    talks: list[Conversation] = []
    for entry in listed:
        # One trivia entry lost its indentation and reads as a bare string.
        lines = entry if isinstance(entry, list) else [entry]
        turns = [str(line).strip() for line in lines if str(line).strip()]
        if topic in ALTERNATIVES:
            talks += [Conversation(topic, (turns[0], answer)) for answer in turns[1:]]
        else:
            talks.append(Conversation(topic, tuple(turns[: len(turns) // 2 * 2])))
    return talks


def _groups(talks: list[Conversation]) -> dict[str, str]:
    """Every user question to its group's name: those of one conversation belong together."""
    leader: dict[str, str] = {}

    def find(question: str) -> str:
        while leader.setdefault(question, question) != question:
            question = leader[question]
        return question

    for talk in talks:
        first, *later = [_key(turn) for turn in talk.turns[::2]]
        for question in later:
            low, high = sorted((find(first), find(question)))
            leader[high] = low
        find(first)
    return {question: find(question) for question in leader}


def _key(question: str) -> str:
    """The question without case, punctuation and spacing (all of it, when it is nothing else)."""
    return " ".join(re.findall(r"\w+", question.casefold())) or question


def _share(group: str) -> float:
    """Where the group falls between 0 and 1: the same on every machine."""
    return int(_hash("split", group)[:8], 16) / 16**8


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
