"""Find the assistant's answers in a rendered conversation, by character."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import TemplateRejection
from jobs.train.data.chat_template import ChatTemplate, Conversation, TemplateFailed
from jobs.train.data.content_marks import (
    MAX_SENTINELS,
    find_dropped_message,
    get_content,
    render_with_marks,
)
from jobs.train.data.template_rejections import REASONING_REMEDY, ROW_REMEDY, THOUGHT_END

LAST_ONLY = (
    "only the last answer of some rows is learnt: the chat template rewrites the earlier ones"
)


@dataclass(frozen=True)
class AnswerSpan:
    """The characters of an answer in the rendering, from the end of its prompt on."""

    message: int
    """Index of the message."""
    start: int
    end: int


@dataclass(frozen=True)
class RenderedAnswers:
    """A rendered conversation, and the answers to learn, in order."""

    text: str
    spans: tuple[AnswerSpan, ...]
    is_marked: bool = False
    """Whether the template marks its answers itself: nothing is to be trimmed or added."""
    notes: tuple[str, ...] = ()


def find_answers(
    template: ChatTemplate, conversation: Conversation, *, end_of_turn: str, where: str
) -> RenderedAnswers:
    """Return the text and the answers whose weight is not 0. Raise InputError if the template
    fails or drops a message, or if the last answer can't be found. `end_of_turn` is the text of
    the template's last token of a turn, or empty.
    """
    try:
        text, marked = template.render_marked(conversation)
    except TemplateFailed as failed:
        # Its markers may fail where the messages alone are rendered.
        raise failed.make_rejection(where) from failed
    if (dropped := find_dropped_message(template, conversation, text)) is not None:
        role = conversation.messages[dropped]["role"]
        reason = f"the chat template renders nothing of the content of a message of the {role}"
        raise TemplateRejection(where, reason, ROW_REMEDY, detail=f" (messages[{dropped}])")
    answers = conversation.answers
    learnt = {index for index in answers if _is_learnt(conversation.messages[index])}
    if marked and (len(marked) == len(answers) or len(learnt) == len(answers)):
        indices = answers if len(marked) == len(answers) else [answers[-1]] * len(marked)
        marks = (AnswerSpan(i, *span) for i, span in zip(indices, marked, strict=True))
        return RenderedAnswers(
            text, tuple(span for span in marks if span.message in learnt), is_marked=True
        )
    search = _AnswerSearch(template, conversation, text, end_of_turn)
    spans = [search.find(index) for index in answers]
    if spans[-1] is None:
        raise _refuse_changed_answer(conversation, answers[-1], text, where)
    notes = (LAST_ONLY,) if None in spans else ()
    if notes:
        spans = spans[-1:]
    learnt_spans = tuple(span for span in spans if span is not None and span.message in learnt)
    return RenderedAnswers(text, learnt_spans, notes=notes)


def _refuse_changed_answer(
    conversation: Conversation, index: int, text: str, where: str
) -> TemplateRejection:
    """Return the error of a last answer that the template does not render as the row has it."""
    _, end_of_thought, answer = get_content(conversation.messages[index]).rpartition(THOUGHT_END)
    detail = f" (messages[{index}])"
    if end_of_thought and answer.strip() in text:
        reason = (
            f"the chat template strips the reasoning, up to {THOUGHT_END}, from the last answer's "
            "content"
        )
        return TemplateRejection(where, reason, REASONING_REMEDY, detail=detail)
    reason = "the chat template changes the last answer's content: it can't be found in the text"
    return TemplateRejection(where, reason, ROW_REMEDY, detail=detail)


def _is_learnt(message: Mapping[str, Any]) -> bool:
    weight = message.get("weight", 1)
    return not (isinstance(weight, int | float) and weight == 0)


class _AnswerSearch:
    """A search for the answers of one conversation, each in the cheapest way that is exact."""

    def __init__(
        self, template: ChatTemplate, conversation: Conversation, text: str, end_of_turn: str
    ) -> None:
        self._template, self._conversation, self._text = template, conversation, text
        self._end_of_turn = end_of_turn
        self._contents: dict[int, tuple[int, int]] | None = None

    def find(self, index: int) -> AnswerSpan | None:
        """Return the span of an answer, or None."""
        start = self._find_prompt_end(index)
        if start is not None and (end := self._find_prefix_end(index, start)) is not None:
            return AnswerSpan(index, start, end)
        content = self._find_content(index)
        if content is None:
            # Only tool calls: they begin where the prompt ends.
            if start is None or self._get_content(index).strip():
                return None
            content = start, start
        begin = start if start is not None and start <= content[0] else content[0]
        end = self._find_turn_end(index, content[1])
        return None if end is None else AnswerSpan(index, begin, end)

    def _find_prompt_end(self, index: int) -> int | None:
        """Return where the template would have the model begin, if that is in the text."""
        try:
            before = self._template.render(self._conversation, index, prompt_answer=True)
        except TemplateFailed:
            return None
        return len(before) if index and self._text.startswith(before) else None

    def _find_prefix_end(self, index: int, start: int) -> int | None:
        """Return the end of the rendering up to this answer, if the text begins with it."""
        if index + 1 == len(self._conversation.messages):
            return len(self._text)
        try:
            after = self._template.render(self._conversation, index + 1)
        except TemplateFailed:
            return None
        return len(after) if self._text.startswith(after) and len(after) >= start else None

    def _find_content(self, index: int) -> tuple[int, int] | None:
        if self._contents is None:
            self._contents = self._mark_contents()
        if index in self._contents:
            return self._contents[index]
        content = self._get_content(index).strip()
        if content and self._text.count(content) == 1:
            start = self._text.index(content)
            return start, start + len(content)
        return None

    def _find_turn_end(self, index: int, start: int) -> int | None:
        """Return the end of the turn whose content ends at `start`."""
        later = [span[0] for other, span in (self._contents or {}).items() if other > index]
        limit = min(later, default=len(self._text))
        has_calls = bool(self._conversation.messages[index].get("tool_calls"))
        end = self._text.find(self._end_of_turn, start, limit) if self._end_of_turn else -1
        if end >= 0 and (has_calls or not self._text[start:end].strip()):
            return end + len(self._end_of_turn)
        return None if has_calls else start

    def _get_content(self, index: int) -> str:
        return get_content(self._conversation.messages[index])

    def _mark_contents(self) -> dict[int, tuple[int, int]]:
        """Return the spans of all answers' contents, from a rendering in which they are marked.

        Without the markers the rendering must be the text itself.
        """
        answers = [i for i in self._conversation.answers if self._get_content(i).strip()]
        if not answers or max(answers) > MAX_SENTINELS:
            return {}
        try:
            places, plain = render_with_marks(self._template, self._conversation, answers)
        except TemplateFailed:
            return {}
        if plain != self._text:
            return {}
        spans = {index: (places.get(2 * index), places.get(2 * index + 1)) for index in answers}
        return {
            index: self._widen(index, start[0], end[0])
            for index, (start, end) in spans.items()
            if start
            and end
            and len(start) == len(end) == 1
            # A content that the template rewrites is not what the row says.
            and plain[start[0] : end[0]] == self._get_content(index).strip()
        }

    def _widen(self, index: int, start: int, end: int) -> tuple[int, int]:
        """Return the span with the white space around the content that the template keeps."""
        content = self._get_content(index)
        lead, _, tail = content.partition(content.strip())
        if lead and self._text[:start].endswith(lead):
            start -= len(lead)
        if tail and self._text.startswith(tail, end):
            end += len(tail)
        return start, end
