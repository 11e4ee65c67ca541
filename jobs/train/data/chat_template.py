"""Render whole conversations with a model's chat template, adapted to what the template knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateSyntaxError

from jobs.errors import TemplateRejection
from jobs.inspect.datasets.formats import ChatExample
from jobs.train.data.special_tokens import SpecialTokens
from jobs.train.data.template_rejections import TEMPLATE_REMEDY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
SYSTEM_PROBE, ANSWER_PROBE = "slora probes the system turn", "slora probes an answer"
RENDERER_ARGUMENTS = frozenset(
    (
        *("conversations", "messages", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "return_assistant_tokens_mask"),
    )
)
"""Names that the row's options may not replace."""
FOLDED = "a system turn is folded into the next user turn: the chat template does not render it"
DEVELOPER = "the role developer is rendered as system: the chat template does not know it"


class TemplateFailed(Exception):
    """The template, which is a program of whoever made the model, raised `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error

    def make_rejection(self, where: str) -> TemplateRejection:
        """Return the error of the row at `where`."""
        reason = " ".join(str(self.error).split())[:200] or type(self.error).__name__
        if isinstance(self.error, TemplateSyntaxError):
            line = self.error.lineno
            problem = f"the model's chat template can't be compiled (line {line}: {reason})"
            return TemplateRejection(where, problem, TEMPLATE_REMEDY, fails_always=True)
        problem = f"the model's chat template rejects the messages ({reason})"
        remedy = "Fix the row, or use data.format: prompt-completion with this model."
        return TemplateRejection(where, problem, remedy)


@dataclass(frozen=True)
class Conversation:
    """Messages as the template gets them."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    template: str
    notes: tuple[str, ...] = ()
    """How the messages differ from those of the row."""

    @property
    def answers(self) -> tuple[int, ...]:
        """The indices of the assistant's messages."""
        return tuple(
            index
            for index, message in enumerate(self.messages)
            if message.get("role") == "assistant"
        )


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._keeps_system = dict[str, bool]()
        self._end_of_turn = dict[str, int | None]()

    def adapt(self, example: ChatExample, where: str) -> Conversation:
        """Return the conversation in a form that the template renders. Raise InputError."""
        # As transformers does: many templates fail on a null, but know a missing key.
        messages = tuple(
            {key: value for key, value in message.items() if value is not None}
            for message in example.messages
        )
        try:
            template = self._choose_template(example.tools)
        except TemplateFailed as failed:
            raise failed.make_rejection(where) from failed
        options = {k: v for k, v in example.options.items() if k not in RENDERER_ARGUMENTS}
        conversation = Conversation(messages, tuple(example.tools), options, template)
        return self._fill_gaps(self._adapt_roles(conversation), where)

    def render(
        self, conversation: Conversation, end: int | None = None, *, prompt_answer: bool = False
    ) -> str:
        """Return the first `end` messages as text. Raise TemplateFailed."""
        text, _ = self._render(conversation, conversation.messages[:end], prompt_answer)
        return text

    def render_marked(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the spans between the template's generation markers.

        Raise TemplateFailed.
        """
        if not GENERATION.search(conversation.template):
            return self.render(conversation), []
        return self._render(conversation, conversation.messages, prompt_answer=False, marked=True)

    def find_end_of_turn(self, conversation: Conversation) -> int | None:
        """Return the control token with which the template ends an answer, or None."""
        template = conversation.template
        if template not in self._end_of_turn:
            self._end_of_turn[template] = self._probe_end_of_turn(template)
        return self._end_of_turn[template]

    def find_default_end(self) -> int | None:
        """Return the control token that ends an answer in the template without tools, or None."""
        try:
            template = self._choose_template(())
        except TemplateFailed:
            return None
        return self.find_end_of_turn(_make_probe(template))

    def _choose_template(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Return the template for conversations with these tools. Raise TemplateFailed."""
        with _translate_failures():
            return str(self._tokenizer.get_chat_template(None, list(tools) or None))

    def _render(
        self,
        conversation: Conversation,
        messages: Sequence[Mapping[str, Any]],
        prompt_answer: bool = False,
        marked: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template
        with _translate_failures():
            texts, spans = render(
                conversations=[list(messages)],
                tools=list(conversation.tools) or None,
                chat_template=conversation.template,
                add_generation_prompt=prompt_answer,
                return_assistant_tokens_mask=marked,
                **{**self._tokenizer.special_tokens_map, **conversation.options},
            )
        return str(texts[0]), [(int(start), int(end)) for start, end in spans[0]] if marked else []

    def _adapt_roles(self, conversation: Conversation) -> Conversation:
        messages, notes = conversation.messages, list[str]()
        if _has_role(messages, "developer") and "developer" not in conversation.template:
            notes.append(DEVELOPER)
            messages = tuple(
                {**message, "role": "system"} if message.get("role") == "developer" else message
                for message in messages
            )
        if _has_role(messages, "system") and not self._renders_system(conversation.template):
            folded = fold_system_turns(messages)
            notes += [FOLDED] if folded != messages else []
            messages = folded
        return replace(conversation, messages=messages, notes=tuple(notes))

    def _fill_gaps(self, conversation: Conversation, where: str) -> Conversation:
        """Return the first variant that the template renders: the messages as they are, or with
        empty content instead of none, or with the arguments of tool calls as JSON.
        """
        first_failure: TemplateFailed | None = None
        for variant in _iter_variants(conversation):
            try:
                self.render(variant)
            except TemplateFailed as failed:
                first_failure = first_failure or failed
            else:
                return variant
        assert first_failure is not None
        raise first_failure.make_rejection(where) from first_failure

    def _renders_system(self, template: str) -> bool:
        """Return whether the text of a system turn is in the rendering."""
        if template not in self._keeps_system:
            turns = ("system", SYSTEM_PROBE), ("user", "u"), ("assistant", "a")
            with_system = _make_probe(template, *turns)
            try:
                keeps = SYSTEM_PROBE in self.render(with_system)
            except TemplateFailed:
                keeps = not self._can_render(_make_probe(template, *turns[1:]))
            self._keeps_system[template] = keeps
        return self._keeps_system[template]

    def _can_render(self, conversation: Conversation) -> bool:
        try:
            self.render(conversation)
        except TemplateFailed:
            return False
        return True

    def _probe_end_of_turn(self, template: str) -> int | None:
        probe = _make_probe(template, ("user", "u"), ("assistant", ANSWER_PROBE))
        try:
            _, found, rest = self.render(probe).rpartition(ANSWER_PROBE)
        except TemplateFailed:
            return None
        return SpecialTokens(self._tokenizer).find_first_control(rest) if found else None


@contextmanager
def _translate_failures() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the template's own code runs here, which raises anything
        raise TemplateFailed(error) from error


def fold_system_turns(messages: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
    """Return the messages with each system turn at the start of the next user turn, if any."""
    folded, pending = list[Mapping[str, Any]](), list[str]()
    for message in messages:
        if message.get("role") == "system":
            pending += [text] if (text := str(message.get("content") or "")) else []
        elif pending and message.get("role") == "user":
            content = "\n\n".join([*pending, str(message.get("content") or "")])
            folded.append({**message, "content": content})
            pending = []
        else:
            folded.append(message)
    return messages if pending else tuple(folded)


def _has_role(messages: Sequence[Mapping[str, Any]], role: str) -> bool:
    return any(message.get("role") == role for message in messages)


def _make_probe(template: str, *turns: tuple[str, str]) -> Conversation:
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Conversation(messages, (), {}, template)


def _iter_variants(conversation: Conversation) -> Iterator[Conversation]:
    messages = conversation.messages
    lacks_content = any("content" not in message for message in messages)
    has_calls = any(message.get("tool_calls") for message in messages)
    for as_json, filled in product(
        (False, True)[: 1 + has_calls], (False, True)[: 1 + lacks_content]
    ):
        variant = messages
        if filled:
            variant = tuple({"content": "", **message} for message in variant)
        if as_json:
            variant = tuple(map(_encode_arguments, variant))
        yield replace(conversation, messages=variant)


def _encode_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with the arguments of its tool calls as JSON, as some templates read."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return message
    return {**message, "tool_calls": [_encode_call(call) for call in calls]}


def _encode_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    arguments = json.dumps(function.get("arguments"), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
