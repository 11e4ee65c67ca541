"""Tokenise examples, and mark the tokens that the model learns to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from jobs.inspect.datasets.labels import Label, list_names, shorten_number
from jobs.spec.tasks import TargetKind
from jobs.train.data.answer_spans import AnswerSpan, RenderedAnswers, find_answers
from jobs.train.data.chat_template import ChatTemplate, Conversation
from jobs.train.data.encoder_texts import EncoderTexts
from jobs.train.data.special_tokens import SpecialTokens
from jobs.train.data.unrendered_keys import KeyWatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label that torch's cross entropy ignores."""
END_ADDED = "the chat template marks no end of an answer: {} is appended to each row's last answer"
NO_END = "neither the chat template nor the tokenizer has a token that ends an answer"
EMPTY_ANSWER = "an answer of which the chat template renders nothing is not learnt"
END_UNMARKED = "the template's generation markers leave out the end of the turn: it is not learnt"


@dataclass(frozen=True)
class Sample:
    """The tokens of one row, and what is learnt of it."""

    input_ids: tuple[int, ...]
    labels: tuple[float, ...]
    """One for each token; the tokens of a completion; the number of a class; 0 or 1 for each of
    several classes; or a number."""
    truncated: int = 0
    """Number of tokens cut off because the row is too long."""
    kind: TargetKind = "tokens"
    second: int = 0
    """Start of the second of two texts, whose tokens have the type 1; 0 if there is none."""

    @property
    def targets(self) -> int:
        """Number of labels that are not ignored; a row without any is dropped."""
        return sum(label != IGNORE_INDEX for label in self.labels)

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads and writes."""
        return len(self.input_ids) + (len(self.labels) if self.kind == "completion" else 0)

    @property
    def longest_side(self) -> int:
        """Number of tokens of the prompt or of its completion; of the row, if it is one text."""
        return max(len(self.input_ids), len(self.labels) if self.kind == "completion" else 0)


class Encoder:
    """Turns examples into samples, with one tokenizer, length and set of labels."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        labels: Sequence[str] = (),
        embeddings: int | None = None,
        is_seq2seq: bool = False,
        reads_class_at_end: bool = False,
    ) -> None:
        """`embeddings`: the number of tokens that the model knows; None if it is not known.
        `is_seq2seq`: a prompt is for the encoder, and its completion for the decoder.
        `reads_class_at_end`: a classifier that finds each row by its last end token.
        """
        self.tokenizer, self.max_length, self.embeddings = tokenizer, max_length, embeddings
        self.is_seq2seq, self._reads_class_at_end = is_seq2seq, reads_class_at_end
        self.label_ids = {label: number for number, label in enumerate(labels)}
        self._labels_by_number = {shorten_number(label): label for label in labels}
        self.special = SpecialTokens(tokenizer)
        self._encoder_texts = EncoderTexts(tokenizer, self.special, max_length)
        self.template = ChatTemplate(tokenizer)
        self._keys = KeyWatch(self.template)
        self._notes = dict[str, None]()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the rows encoded so far, each once."""
        keys = self._keys.note
        return (*self._notes, *([keys] if keys else []))

    def __call__(self, example: Example, *, where: str) -> tuple[Sample, ...]:
        """Return the samples of an example: one, or the pieces of a long text.

        `where` is the file:line of its row, for messages. Raise InputError.
        """
        example = self.resolve(example)
        samples: tuple[Sample, ...]
        match example:
            case LabelledExample():
                samples = (self._encode_labelled(example, where),)
            case ChatExample():
                samples = (self._encode_chat(example, where),)
            case CompletionExample() if self.is_seq2seq:
                samples = (self._encode_pair(example),)
            case CompletionExample():
                samples = (self._encode_completion(example),)
            case TextExample():
                samples = self._encode_text(example)
        self._check_ids(samples, where)
        return samples

    def resolve(self, example: Example) -> Example:
        """Return an example of Alpaca as a conversation or as a prompt; others as they are."""
        if not isinstance(example, AlpacaExample):
            return example
        has_template = bool(self.tokenizer.chat_template) and not self.is_seq2seq
        return example.resolve(has_template=has_template)

    def adapt(self, example: ChatExample, where: str) -> Conversation:
        """Return a conversation as the template gets it. Raise InputError."""
        return self.template.adapt(example, where)

    def tokenize_prompt(self, text: str) -> list[int]:
        """Return the tokens of a text that is to be continued, or answered by a decoder."""
        if self.is_seq2seq:
            return list(self._encoder_texts.tokenize(text).ids)
        return self._add_prefix(self.special.tokenize(text))

    def _encode_labelled(self, example: LabelledExample, where: str) -> Sample:
        text = self._encoder_texts.tokenize(example.text, example.text_pair)
        if not text.ids:
            problem = f"the tokenizer makes no token of {example.text[:40]!r}"
            raise InputError([Fault(where, problem, "Remove the row.")])
        if self._reads_class_at_end:
            is_pair = example.text_pair is not None
            self._encoder_texts.check_end(text.ids, pair=is_pair, where=where)
        kind, labels = self._encode_label(example.label, where)
        return Sample(text.ids, labels, text.truncated, kind, text.second)

    def _encode_label(self, label: Label, where: str) -> tuple[TargetKind, tuple[float, ...]]:
        if isinstance(label, float):
            return "number", (label,)
        numbers = {self._find_class(name, where) for name in list_names(label)}
        if isinstance(label, str):
            return "class", tuple(numbers)
        return "classes", tuple(int(n in numbers) for n in range(len(self.label_ids)))

    def match_label(self, name: str) -> str:
        """Return the label of the model that a name means: a table may write `1.0` for `1`."""
        if name in self.label_ids:
            return name
        return self._labels_by_number.get(shorten_number(name), name)

    def _find_class(self, name: str, where: str) -> int:
        name = self.match_label(name)
        if name not in self.label_ids:
            known = ", ".join(list(self.label_ids)[:8])
            problem = f"the label {name!r} is not in the training data"
            raise InputError([Fault(where, problem, f"Known labels: {known}.")])
        return self.label_ids[name]

    def _encode_pair(self, example: CompletionExample) -> Sample:
        """Return the prompt for the encoder, and the tokens that the decoder learns to write."""
        prompt = self._encoder_texts.tokenize(example.prompt)
        answer, truncated = self._encoder_texts.tokenize_answer(example.completion)
        return Sample(prompt.ids, answer, prompt.truncated + truncated, "completion")

    def _encode_text(self, example: TextExample) -> tuple[Sample, ...]:
        """Return the pieces of a text. Each begins as a text does, and repeats one token, so that
        every token of the text is learnt once, but for the first.
        """
        ids = self._add_ends(self.special.tokenize(example.text))
        if len(ids) <= self.max_length:
            return (self._make_causal_sample(ids, [(0, len(ids))]),)
        prefix = self._add_prefix([])
        body = ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids
        room = self.max_length - len(prefix)
        if room < 2:
            prefix, body, room = [], ids, self.max_length
        pieces = []
        for start in range(0, len(body) - 1, max(1, room - 1)):
            piece = [*prefix, *body[start : start + room]]
            first = len(prefix) + 1 if start else 0
            pieces.append(self._make_causal_sample(piece, [(first, len(piece))]))
        return tuple(pieces)

    def _encode_completion(self, example: CompletionExample) -> Sample:
        text = example.prompt + example.completion
        body, (prompt_length,) = self._tokenize_with_boundaries(text, [len(example.prompt)])
        ids = self._add_prefix(body)
        start = prompt_length + len(ids) - len(body)
        ids = self._add_suffix(ids)
        return self._make_causal_sample(ids, [(start, len(ids))])

    def _encode_chat(self, example: ChatExample, where: str) -> Sample:
        conversation = self.adapt(example, where)
        end_id = self.template.find_end_of_turn(conversation)
        end_text = "" if end_id is None else str(self.tokenizer.convert_ids_to_tokens(end_id))
        answers = find_answers(self.template, conversation, end_of_turn=end_text, where=where)
        self._keys.observe(conversation, answers.text, where)
        self._add_notes((*conversation.notes, *answers.notes))
        spans = answers.spans
        if not answers.is_marked and end_id is None:
            spans = tuple(_trim_blank_end(answers.text, span, conversation) for span in spans)
        boundaries = [edge for span in spans for edge in (span.start, span.end)]
        ids, starts = self._tokenize_with_boundaries(answers.text, boundaries)
        targets = list(zip(starts[::2], starts[1::2], strict=True))
        if not answers.is_marked:
            targets = [self._trim_to_end_of_turn(ids, *span, end_id) for span in targets]
        messages = [conversation.messages[span.message] for span in spans]
        targets = [*self._leave_out_empty(ids, targets, messages)]
        return self._make_causal_sample(*self._end_last_answer(ids, targets, answers))

    def _leave_out_empty(
        self,
        ids: list[int],
        targets: Iterable[tuple[int, int]],
        messages: Iterable[Mapping[str, Any]],
    ) -> Iterator[tuple[int, int]]:
        """Yield the targets of answers that the template renders something of.

        An answer of tool calls that the template ignores would teach the model to end its turn.
        """
        for (start, end), message in zip(targets, messages, strict=True):
            tokens = ids[start:end]
            has_text = bool(str(message.get("content") or "").strip())
            if has_text or not all(map(self.special.is_silent, tokens)):
                yield start, end
            else:
                self._add_notes([EMPTY_ANSWER])

    def _end_last_answer(
        self, ids: list[int], targets: list[tuple[int, int]], answers: RenderedAnswers
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Append an end token to the last answer if nothing else ends it."""
        if not targets:
            return ids, targets
        start, end = targets[-1]
        if end > start and ids[end - 1] in self.special.control:
            return ids, targets
        following = next((t for t in ids[end:] if not self.special.is_blank(t)), None)
        if answers.is_marked and following in self.special.control:
            self._add_notes([END_UNMARKED])
            return ids, targets
        if (eos := self.tokenizer.eos_token_id) is None:
            self._add_notes([NO_END])
            return ids, targets
        self._add_notes([END_ADDED.format(self.tokenizer.eos_token)])
        return [*ids[:end], int(eos)], [*targets[:-1], (start, end + 1)]

    def _trim_to_end_of_turn(
        self, ids: list[int], start: int, end: int, end_id: int | None
    ) -> tuple[int, int]:
        """Return the span without what follows its end-of-turn token: generation stops there."""
        control = self.special.control
        begin = end
        while begin > start and self.special.is_silent(ids[begin - 1]):
            begin -= 1
        trailing = ids[begin:end]
        if end_id in trailing:
            return start, begin + trailing.index(end_id) + 1
        last = max((at for at, token in enumerate(trailing) if token in control), default=None)
        return (start, end) if last is None else (start, begin + last + 1)

    def _tokenize_with_boundaries(
        self, text: str, boundaries: list[int]
    ) -> tuple[list[int], list[int]]:
        """Return the tokens of the text, and the token at each boundary (an offset in the text).

        At inference the tokens before a boundary do not depend on the text after it. If the whole
        text is tokenised the same way, its tokens are used. If a token would straddle a boundary
        (a turn that begins with a line break), the parts are tokenised separately, so that the
        model trains on the tokens of inference.
        """
        tokenize = self.special.tokenize
        token_ids = tokenize(text)
        parts = [tokenize(text[start:end]) for start, end in pairwise([0, *boundaries, len(text)])]
        starts, position = list[int](), 0
        for part in parts[:-1]:
            starts.append(position := position + len(part))
        joined = [token for part in parts for token in part]
        if joined == token_ids:
            return token_ids, starts
        prefixes = [tokenize(text[:boundary]) for boundary in boundaries]
        if all(token_ids[: len(prefix)] == prefix for prefix in prefixes):
            return token_ids, [len(prefix) for prefix in prefixes]
        if self.special.joins_with_space:
            # Parts of their own would begin with a space: the token in between is of what follows.
            return token_ids, [_count_common(token_ids, prefix) for prefix in prefixes]
        return joined, starts

    def _add_prefix(self, ids: list[int]) -> list[int]:
        prefix = list(self.special.prefix)
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]

    def _add_suffix(self, ids: list[int]) -> list[int]:
        suffix = list(self.special.suffix)
        return ids if suffix and ids[-len(suffix) :] == suffix else [*ids, *suffix]

    def _add_ends(self, ids: list[int]) -> list[int]:
        return self._add_suffix(self._add_prefix(ids))

    def _make_causal_sample(self, ids: list[int], target_spans: list[tuple[int, int]]) -> Sample:
        labels: list[float] = [IGNORE_INDEX] * len(ids)
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

    def _check_ids(self, samples: Iterable[Sample], where: str) -> None:
        """Raise InputError for a token that the model has no embedding for."""
        if self.embeddings is None:
            return
        for sample in samples:
            answer = sample.labels if sample.kind == "completion" else ()
            if (largest := int(max((*sample.input_ids, *answer), default=0))) >= self.embeddings:
                token: Any = self.tokenizer.convert_ids_to_tokens(largest)
                problem = (
                    f"the token {token!r} has the id {largest}, but the model has "
                    f"{self.embeddings} embeddings"
                )
                remedy = "Use the tokenizer that belongs to the model, or resize its embeddings."
                raise InputError([Fault(where, problem, remedy)])

    def _add_notes(self, notes: Iterable[str]) -> None:
        self._notes |= dict.fromkeys(notes)


def _trim_blank_end(text: str, span: AnswerSpan, conversation: Conversation) -> AnswerSpan:
    """Return the span without the white space that the template puts after an answer."""
    segment = text[span.start : span.end]
    content = conversation.messages[span.message].get("content")
    visible = len(segment.rstrip())
    if isinstance(content, str) and content and (at := segment.rfind(content)) >= 0:
        visible = max(visible, at + len(content))
    return AnswerSpan(span.message, span.start, span.start + visible)


def _count_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the equal tokens at the start of both."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
