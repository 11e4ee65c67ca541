"""Tokenise examples, and mark the tokens that the model learns to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jobs.errors import Fault, InputError
from jobs.inspect.datasets.formats import (
    AlpacaExample,
    ChatExample,
    CompletionExample,
    Example,
    LabelledExample,
    TextExample,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label that torch's cross entropy ignores."""


@dataclass(frozen=True)
class Sample:
    """The tokens of one row, with a label per token, or the one label of a classifier."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: int = 0
    """Number of tokens cut off because the row is too long."""

    @property
    def targets(self) -> int:
        """Number of labels that are not ignored; a row without any is dropped."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class Encoder:
    """Turns examples into samples, with one tokenizer, length and set of labels."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, labels: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.label_ids = {label: number for number, label in enumerate(labels)}

    def __call__(self, example: Example, *, where: str) -> Sample:
        """Return the sample of an example. `where` is the file:line of its row, for messages."""
        match example:
            case LabelledExample():
                return self._encode_labelled(example, where)
            case ChatExample():
                return self._encode_chat(example, where)
            case AlpacaExample():
                has_template = bool(self.tokenizer.chat_template)
                return self(example.resolve(has_template=has_template), where=where)
            case CompletionExample():
                return self._encode_completion(example)
            case TextExample():
                ids = self._tokenize(example.text, special=True) + self._get_end_ids()
                return self._make_causal_sample(ids, [(0, len(ids))])

    def _encode_labelled(self, example: LabelledExample, where: str) -> Sample:
        if example.label not in self.label_ids:
            known = ", ".join(list(self.label_ids)[:8])
            problem = f"the label {example.label!r} is not in the training data"
            raise InputError([Fault(where, problem, f"Known labels: {known}.")])
        encoded = self.tokenizer(
            example.text,
            example.text_pair,
            truncation=True,
            max_length=self.max_length,
            # Only the tokenizer knows which special tokens must end a cut text, and what was cut.
            return_overflowing_tokens=True,
            verbose=False,
        )["input_ids"]
        parts: list[list[int]] = encoded if encoded and isinstance(encoded[0], list) else [encoded]
        special = self.tokenizer.num_special_tokens_to_add(pair=example.text_pair is not None)
        truncated = sum(len(part) - special for part in parts[1:])
        return Sample(tuple(parts[0]), (self.label_ids[example.label],), truncated)

    def _encode_completion(self, example: CompletionExample) -> Sample:
        text = example.prompt + example.completion
        ids, (prompt_length,) = self._tokenize_with_boundaries(
            text, [len(example.prompt)], special=True
        )
        ids += self._get_end_ids()
        return self._make_causal_sample(ids, [(prompt_length, len(ids))])

    def _encode_chat(self, example: ChatExample, where: str) -> Sample:
        text, turns = self._render_turns(example, where)
        boundaries = [boundary for turn in turns for boundary in turn]
        ids, starts = self._tokenize_with_boundaries(text, boundaries, special=False)
        spans = list(zip(starts[::2], starts[1::2], strict=True))
        return self._make_causal_sample(
            ids, [self._trim_to_end_of_turn(ids, *span) for span in spans]
        )

    def _render_turns(self, example: ChatExample, where: str) -> tuple[str, list[tuple[int, int]]]:
        """Return the conversation in the model's template, and the span of each assistant's turn.

        A turn begins where the template would have the model begin, and ends with its last
        character: templates seldom mark the turns themselves, but any can be rendered in parts.
        """
        messages = list(example.messages)
        text = self._render_template(messages, example, where)
        turns = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if not index:
                raise InputError([_make_first_turn_fault(where)])
            before = self._render_template(messages[:index], example, where, prompt_answer=True)
            after = (
                text
                if index + 1 == len(messages)
                else self._render_template(messages[: index + 1], example, where)
            )
            if not (text.startswith(after) and after.startswith(before)):
                raise InputError([_make_rewrite_fault(where, index)])
            turns.append((len(before), len(after)))
        return text, turns

    def _render_template(
        self,
        messages: list[Mapping[str, Any]],
        example: ChatExample,
        where: str,
        *,
        prompt_answer: bool = False,
    ) -> str:
        # A template may raise any exception, and jinja adds its own.
        try:
            text: Any = self.tokenizer.apply_chat_template(
                messages,
                tools=list(example.tools) or None,
                tokenize=False,
                add_generation_prompt=prompt_answer,
                **example.options,
            )
        except Exception as error:
            problem = f"the model's chat template rejects the messages ({error})"
            remedy = "Fix the row, or use data.format: prompt-completion with this model."
            raise InputError([Fault(where, problem, remedy)]) from error
        return str(text)

    def _trim_to_end_of_turn(self, ids: list[int], start: int, end: int) -> tuple[int, int]:
        """Return the span without what follows its end-of-turn token: generation stops there."""
        special = set(self.tokenizer.all_special_ids)
        last = next(
            (index for index in range(end - 1, start - 1, -1) if ids[index] in special), None
        )
        if last is None or str(self.tokenizer.decode(ids[last + 1 : end])).strip():
            return start, end
        return start, last + 1

    def _tokenize_with_boundaries(
        self, text: str, boundaries: list[int], *, special: bool
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of the text, and the token at each boundary (an offset in the text).

        At inference the tokens before a boundary do not depend on the text after it. If the whole
        text is tokenised the same way, its tokens are used. If a token would straddle a boundary
        (a turn that begins with a line break), the parts are tokenised separately, so that the
        model trains on the tokens of inference.
        """
        token_ids = self._tokenize(text, special=special)
        prefixes = [self._tokenize(text[:boundary], special=special) for boundary in boundaries]
        if all(token_ids[: len(prefix)] == prefix for prefix in prefixes):
            return token_ids, [len(prefix) for prefix in prefixes]
        edges = [0, *boundaries, len(text)]
        separate_ids, starts = list[int](), list[int]()
        for start, end in pairwise(edges):
            separate_ids += self._tokenize(text[start:end], special=special and start == 0)
            starts.append(len(separate_ids))
        return separate_ids, starts[:-1]

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        if not text and not special:
            return []
        encoded = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        ids: list[int] = list(encoded)
        return ids

    def _get_end_ids(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [int(end)]

    def _make_causal_sample(self, ids: list[int], target_spans: list[tuple[int, int]]) -> Sample:
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in target_spans:
            labels[start:end] = ids[start:end]
        # Nothing precedes the first token, but in a packed sequence another row would seem to.
        labels[:1] = [IGNORE_INDEX]
        # Tokens after the last target change nothing and would only cost time.
        used_length = max(
            (index + 1 for index, label in enumerate(labels) if label != IGNORE_INDEX), default=0
        )
        length = min(used_length, self.max_length)
        return Sample(tuple(ids[:length]), tuple(labels[:length]), used_length - length)


def _make_first_turn_fault(where: str) -> Fault:
    problem = "messages[0] is an assistant turn, but chat templates begin with another role"
    return Fault(where, problem, "Begin with a user or system turn.")


def _make_rewrite_fault(where: str, index: int) -> Fault:
    problem = f"the model's chat template rewrites the turns before messages[{index}]"
    return Fault(where, problem, "Split the row after each assistant turn.")
