"""From an example to the tokens a model is fed, and which of them it is asked to predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jobs.data.formats import Completion, Conversation, Example, Labelled, Text
from jobs.errors import Fault, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that nothing is asked of, as torch's cross entropy has it."""


@dataclass(frozen=True)
class Sample:
    """The tokens of one row, and what is asked: a label a token, or a classifier's one label."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut: int = 0
    """Tokens left out because the row is too long."""

    @property
    def targets(self) -> int:
        """What the model is asked for; a row without is no use."""
        return sum(label != IGNORED for label in self.labels)


class Encoder:
    """Turns examples into samples, with one tokenizer, length and set of labels."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.label_ids = {label: number for number, label in enumerate(labels)}

    def __call__(self, example: Example, *, where: str) -> Sample:
        """`where` is the row's file:line, for messages."""
        match example:
            case Labelled():
                return self._labelled(example, where)
            case Conversation():
                return self._conversation(example, where)
            case Completion():
                return self._completion(example)
            case Text():
                ids = self._ids(example.text, special=True) + self._end()
                return self._causal(ids, [(0, len(ids))])

    def _labelled(self, example: Labelled, where: str) -> Sample:
        if example.label not in self.label_ids:
            known = ", ".join(list(self.label_ids)[:8])
            problem = f"the label {example.label!r} is not one of the training data's"
            raise InputError([Fault(where, problem, f"It knows {known}.")])
        found = self.tokenizer(
            example.text,
            truncation=True,
            max_length=self.max_length,
            # Only the tokenizer knows which special tokens must end a cut text, and what was cut.
            return_overflowing_tokens=True,
            verbose=False,
        )["input_ids"]
        parts: list[list[int]] = found if found and isinstance(found[0], list) else [found]
        special = self.tokenizer.num_special_tokens_to_add()
        cut = sum(len(part) - special for part in parts[1:])
        return Sample(tuple(parts[0]), (self.label_ids[example.label],), cut)

    def _completion(self, example: Completion) -> Sample:
        whole = example.prompt + example.completion
        ids, (seam,) = self._split(whole, [len(example.prompt)], special=True)
        ids += self._end()
        return self._causal(ids, [(seam, len(ids))])

    def _conversation(self, example: Conversation, where: str) -> Sample:
        text, turns = self._rendered(example, where)
        seams = [at for turn in turns for at in turn]
        ids, starts = self._split(text, seams, special=False)
        spans = list(zip(starts[::2], starts[1::2], strict=True))
        return self._causal(ids, [self._to_end_of_turn(ids, *span) for span in spans])

    def _rendered(self, example: Conversation, where: str) -> tuple[str, list[tuple[int, int]]]:
        """The conversation in the model's template, and where in it each assistant's turn lies.

        A turn begins where the template would have the model begin, and ends with its last
        character: templates seldom mark the turns themselves, but any can be rendered in parts.
        """
        messages = [{"role": turn.role, "content": turn.content} for turn in example.messages]
        text = self._render(messages, where)
        turns = []
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if not at:
                raise InputError([_unasked(where)])
            before = self._render(messages[:at], where, ask=True)
            after = text if at + 1 == len(messages) else self._render(messages[: at + 1], where)
            if not (text.startswith(after) and after.startswith(before)):
                raise InputError([_rewritten(where, at)])
            turns.append((len(before), len(after)))
        return text, turns

    def _render(self, messages: list[dict[str, str]], where: str, *, ask: bool = False) -> str:
        # Templates are free to raise what they like, and jinja to add its own.
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask
            )
        except Exception as wrong:
            problem = f"the model's chat template refuses the messages ({wrong})"
            remedy = "Mend the row, or use data.format: prompt-completion with such a model."
            raise InputError([Fault(where, problem, remedy)]) from wrong
        return str(text)

    def _to_end_of_turn(self, ids: list[int], start: int, end: int) -> tuple[int, int]:
        """Without what the template puts behind the end-of-turn token: nothing generates that."""
        special = set(self.tokenizer.all_special_ids)
        last = next((at for at in range(end - 1, start - 1, -1) if ids[at] in special), None)
        if last is None or str(self.tokenizer.decode(ids[last + 1 : end])).strip():
            return start, end
        return start, last + 1

    def _split(self, text: str, seams: list[int], *, special: bool) -> tuple[list[int], list[int]]:
        """The tokens of the text, and the token at which each seam (a character) lies.

        At inference the tokens before a seam are made without knowing what follows. Where that is
        how the whole is tokenised too, the whole is taken. Where a token would straddle a seam
        (a turn that begins with a line break), the parts are tokenised apart, so that the model
        trains on what it will see.
        """
        whole = self._ids(text, special=special)
        heads = [self._ids(text[:seam], special=special) for seam in seams]
        if all(whole[: len(head)] == head for head in heads):
            return whole, [len(head) for head in heads]
        edges = [0, *seams, len(text)]
        apart, starts = list[int](), list[int]()
        for start, end in pairwise(edges):
            apart += self._ids(text[start:end], special=special and start == 0)
            starts.append(len(apart))
        return apart, starts[:-1]

    def _ids(self, text: str, *, special: bool) -> list[int]:
        if not text and not special:
            return []
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        ids: list[int] = list(found)
        return ids

    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def _causal(self, ids: list[int], asked: list[tuple[int, int]]) -> Sample:
        labels = [IGNORED] * len(ids)
        for start, end in asked:
            labels[start:end] = ids[start:end]
        # Nothing stands before the first token. In a packed sequence another row would seem to.
        labels[:1] = [IGNORED]
        # What follows the last target can change nothing: it would only be computed.
        used = max((at + 1 for at, label in enumerate(labels) if label != IGNORED), default=0)
        kept = min(used, self.max_length)
        return Sample(tuple(ids[:kept]), tuple(labels[:kept]), used - kept)


def _unasked(where: str) -> Fault:
    problem = "messages[0] is the assistant's, and no template asks a model to begin"
    return Fault(where, problem, "Begin with a user's or a system's turn.")


def _rewritten(where: str, at: int) -> Fault:
    problem = f"the model's chat template rewrites the turns before messages[{at}]"
    return Fault(where, problem, "Split the row after each answer.")
