"""Mark the content of messages, to see where a chat template renders it, if at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jobs.train.data.chat_template import ChatTemplate, Conversation, TemplateFailed

SENTINELS = 0xF0000
"""The first of two private characters per message, which mark its content in a second rendering."""
MAX_SENTINELS = 0x7FFF


def get_content(message: Mapping[str, Any]) -> str:
    """Return the content of a message if it is text; empty otherwise."""
    content = message.get("content")
    return content if isinstance(content, str) else ""


def render_with_marks(
    template: ChatTemplate, conversation: Conversation, indices: Iterable[int]
) -> tuple[dict[int, list[int]], str]:
    """Return where each sentinel stands in the rendering without them, and that rendering. The
    message i has the sentinels 2i and 2i + 1. A template may raise any exception.

    The sentinels go around the visible part: templates strip content.
    """
    messages = list(conversation.messages)
    for index in indices:
        content = get_content(messages[index])
        body = content.strip()
        lead, _, tail = content.partition(body)
        opening, closing = (chr(SENTINELS + 2 * index + side) for side in (0, 1))
        marked = f"{lead}{opening}{body}{closing}{tail}"
        messages[index] = {**messages[index], "content": marked}
    return _strip_sentinels(template.render(replace(conversation, messages=tuple(messages))))


def find_dropped_message(
    template: ChatTemplate, conversation: Conversation, text: str
) -> int | None:
    """Return the first message of a user or an assistant whose content is not in the rendering
    `text`, not even in part; None if there is none, or if the template does not let it be known.

    Many templates leave out what an assistant writes beside its tool calls: that is no fault.
    """
    indices = [
        index
        for index, message in enumerate(conversation.messages)
        if message.get("role") in ("user", "assistant")
        and get_content(message).strip()
        and not message.get("tool_calls")
    ]
    if len(conversation.messages) > MAX_SENTINELS or _is_in_order(
        text, (get_content(conversation.messages[index]).strip() for index in indices)
    ):
        return None
    try:
        places, plain = render_with_marks(template, conversation, indices)
    except TemplateFailed:
        return None
    if plain != text:
        return None
    return next((i for i in indices if 2 * i not in places and 2 * i + 1 not in places), None)


def _is_in_order(text: str, contents: Iterable[str]) -> bool:
    """Return whether the text has the contents one after the other: a look without rendering."""
    end = 0
    for content in contents:
        if (start := text.find(content, end)) < 0:
            return False
        end = start + len(content)
    return True


def _strip_sentinels(text: str) -> tuple[dict[int, list[int]], str]:
    """Return where each sentinel stands, in the text without them, and that text."""
    places, characters = dict[int, list[int]](), list[str]()
    for character in text:
        number = ord(character) - SENTINELS
        if 0 <= number < 2 * MAX_SENTINELS + 2:
            places.setdefault(number, []).append(len(characters))
        else:
            characters.append(character)
    return places, "".join(characters)
