"""Server-sent events: read as the standard has them, and gone on with where a connection broke."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx

from orchestrator.client.errors import ServiceUnreachable, UnexpectedResponse
from orchestrator.client.retry import Backoff
from orchestrator.client.transport import Transport, describe_error

END = "end"
"""The event that says that nothing more comes."""
MAX_LINE_BYTES = 8 << 20
HEALTHY_CONNECTION_S = 10.0
"""A connection that held for so long was one to a service."""

OnRetry = Callable[[str], None]


@dataclass(frozen=True)
class ServerEvent:
    """One event of a stream."""

    event: str
    data: str
    id: str | None = None


def follow_stream(
    transport: Transport, path: str, *, last_id: str | None = None, on_retry: OnRetry | None = None
) -> Iterator[ServerEvent]:
    """Every event of a stream once, up to `end` and with it, over restarts of the service.

    An event counts as seen once it has come whole, with its id: what broke off is sent again.
    `waiting` hears why, at the first try of a silence that fails. Raises ClientError.
    """
    backoff = Backoff(transport.retry_budget, transport.retry_budget.follow_s, on_retry)
    while True:
        reason, connected_at = "the connection was closed", transport.retry_budget.clock()
        try:
            with transport.open_stream(path, last_id) as response:
                for event in parse_events(response.iter_bytes(), transport.settings.url):
                    backoff.reset()
                    last_id = event.id if event.id is not None else last_id
                    yield event
                    if event.event == END:
                        return
        except ServiceUnreachable as unreachable:
            reason = unreachable.reason
        except httpx.TransportError as error:
            reason = describe_error(error)
        if transport.retry_budget.clock() - connected_at > HEALTHY_CONNECTION_S:
            # It was there, and had nothing to tell: whoever stands between cuts silent connections.
            backoff.reset()
        if not backoff.wait_to_retry(reason):
            raise ServiceUnreachable(transport.settings.url, reason)


def parse_events(chunks: Iterable[bytes], url: str = "") -> Iterator[ServerEvent]:
    """The events in a stream of bytes; one that has not ended is none."""
    event, event_id, data = "", None, list[str]()
    for line in _split_lines(chunks, url):
        if not line:
            if data or event:
                yield ServerEvent(event or "message", "\n".join(data), event_id)
            # The id stays with the stream, but an event without one of its own moves nothing.
            event, event_id, data = "", None, []
            continue
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            event = value
        elif key == "id" and "\0" not in value:
            event_id = value


def _split_lines(chunks: Iterable[bytes], url: str) -> Iterator[str]:
    """Lines end with CR LF, LF or CR, and with nothing else that Python takes for an end."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the end may be half of a CR LF.
        pending_cr = rest[-1:] if rest.endswith(b"\r") else b""
        complete = rest[: len(rest) - len(pending_cr)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = complete.split(b"\n")
        rest += pending_cr
        if len(rest) > MAX_LINE_BYTES:
            raise UnexpectedResponse(url, f"a line of more than {MAX_LINE_BYTES >> 20} MiB came")
        for line in lines:
            yield line.decode("utf-8", "replace")
