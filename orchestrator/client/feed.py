"""Server-sent events: read as the standard has them, and gone on with where a connection broke."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx

from orchestrator.client.errors import NotUnderstood, ServiceUnreachable
from orchestrator.client.pauses import Pauses
from orchestrator.client.wire import Wire, told

END = "end"
"""The event that says that nothing more comes."""
LONGEST_LINE = 8 << 20
HEALTHY_S = 10.0
"""A connection that held for so long was one to a service."""

Waiting = Callable[[str], None]


@dataclass(frozen=True)
class Message:
    """One event of a stream."""

    event: str
    data: str
    id: str | None = None


def followed(
    wire: Wire, path: str, *, last: str | None = None, waiting: Waiting | None = None
) -> Iterator[Message]:
    """Every event of a stream once, up to `end` and with it, over restarts of the service.

    An event counts as seen once it has come whole, with its id: what broke off is sent again.
    `waiting` hears why, at the first try of a silence that fails. Raises ClientError.
    """
    pauses = Pauses(wire.patience, wire.patience.follow_s, waiting)
    while True:
        why, began = "the connection was closed", wire.patience.clock()
        try:
            with wire.stream(path, last) as answer:
                for message in messages(answer.iter_bytes(), wire.settings.service):
                    pauses.heard()
                    last = message.id if message.id is not None else last
                    yield message
                    if message.event == END:
                        return
        except ServiceUnreachable as away:
            why = away.why
        except httpx.TransportError as gone:
            why = told(gone)
        if wire.patience.clock() - began > HEALTHY_S:
            # It was there, and had nothing to tell: whoever stands between cuts silent connections.
            pauses.heard()
        if not pauses.again(why):
            raise ServiceUnreachable(wire.settings.service, why)


def messages(chunks: Iterable[bytes], url: str = "") -> Iterator[Message]:
    """The events in a stream of bytes; one that has not ended is none."""
    event, name, data = "", None, list[str]()
    for line in _lines(chunks, url):
        if not line:
            if data or event:
                yield Message(event or "message", "\n".join(data), name)
            # The id stays with the stream, but an event without one of its own moves nothing.
            event, name, data = "", None, []
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            event = value
        elif key == "id" and "\0" not in value:
            name = value


def _lines(chunks: Iterable[bytes], url: str) -> Iterator[str]:
    """Lines end with CR LF, LF or CR, and with nothing else that Python takes for an end."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the end may be half of a CR LF.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        whole = rest[: len(rest) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = whole.split(b"\n")
        rest += held
        if len(rest) > LONGEST_LINE:
            raise NotUnderstood(url, f"a line of more than {LONGEST_LINE >> 20} MiB came")
        for line in lines:
            yield line.decode("utf-8", "replace")
