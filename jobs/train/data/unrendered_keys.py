"""Find the keys of messages and rows that no chat template renders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from jobs.train.data.chat_template import ChatTemplate, Conversation, TemplateFailed

MAX_TRIES = 5
"""Rows that are rendered without a key until it is taken for one that the template ignores."""
RENDERED_OTHERWISE = frozenset(("role", "content", "weight"))
"""Keys that every template renders, or that are not for the template."""


class KeyWatch:
    """Renders the first rows without each of their keys, and remembers what made no difference."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._ignored = dict[str, tuple[int, str]]()
        """The tries of each key without effect, and the first row."""
        self._rendered = set[str]()

    def observe(self, conversation: Conversation, text: str, where: str) -> None:
        """Compare a rendering with those without each key that is not yet known."""
        for name, without in _iter_reduced(conversation):
            tries, first = self._ignored.get(name, (0, where))
            if name in self._rendered or tries >= MAX_TRIES:
                continue
            if self._makes_difference(without, text):
                self._rendered.add(name)
                self._ignored.pop(name, None)
            else:
                self._ignored[name] = tries + 1, first

    @property
    def note(self) -> str | None:
        """The keys without effect in one sentence, or None."""
        if not self._ignored:
            return None
        names = ", ".join(sorted(self._ignored))
        first = min(first for _, first in self._ignored.values())
        return f"the chat template renders nothing of {names} (first in {first})"

    def _makes_difference(self, conversation: Conversation, text: str) -> bool:
        try:
            return self._template.render(conversation) != text
        except TemplateFailed:
            return True


def _iter_reduced(conversation: Conversation) -> Iterator[tuple[str, Conversation]]:
    """Yield each key's name, and the conversation without it."""
    keys = dict.fromkeys(key for message in conversation.messages for key in message)
    for key in keys:
        if key not in RENDERED_OTHERWISE:
            messages = tuple(
                {name: value for name, value in message.items() if name != key}
                for message in conversation.messages
            )
            yield f"messages.{key}", replace(conversation, messages=messages)
    if conversation.tools:
        yield "tools", replace(conversation, tools=())
    for key in conversation.options:
        options = {name: value for name, value in conversation.options.items() if name != key}
        yield key, replace(conversation, options=options)
