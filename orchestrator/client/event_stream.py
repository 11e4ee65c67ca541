"""Server-sent events: parsed by the standard, and resumed where a connection broke."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx

from orchestrator.client.errors import ServiceUnreachable, UnexpectedResponse
from orchestrator.client.problem_errors import make_stream_error
from orchestrator.client.retry import Backoff
from orchestrator.client.transport import Transport, describe_error
from orchestrator.schemas.streams import END_EVENT, PROBLEM_EVENT

MAX_LINE_BYTES = 8 << 20
HEALTHY_CONNECTION_S = 10.0
"""A connection that lasted this long resets the retry budget."""

OnRetry = Callable[[str], None]


@dataclass(frozen=True)
class ServerEvent:
    """An event of a stream."""

    event: str
    data: str
    id: str | None = None


def follow_stream(
    transport: Transport, path: str, *, last_id: str | None = None, on_retry: OnRetry | None = None
) -> Iterator[ServerEvent]:
    """Yield every event of a stream once, including `end`, across restarts of the service.

    An event counts once it is complete, with its id; a partial one is sent again. `on_retry` gets
    the reason of the first failure of each interruption. Raise ClientError, also for a problem that
    ends the stream.
    """
    backoff = Backoff(transport.retry_budget, transport.retry_budget.follow_s, on_retry)
    while True:
        reason, connected_at = "the connection was closed", transport.retry_budget.clock()
        try:
            with transport.open_stream(path, last_id) as response:
                for event in parse_events(response.iter_bytes(), transport.settings.url):
                    backoff.reset()
                    if event.event == PROBLEM_EVENT:
                        raise make_stream_error(transport.settings, event.data)
                    last_id = event.id if event.id is not None else last_id
                    yield event
                    if event.event == END_EVENT:
                        return
        except ServiceUnreachable as unreachable:
            reason = unreachable.reason
        except httpx.TransportError as error:
            reason = describe_error(error)
        if transport.retry_budget.clock() - connected_at > HEALTHY_CONNECTION_S:
            # The service was reachable: a proxy may have closed the silent connection.
            backoff.reset()
        if not backoff.wait_to_retry(reason):
            raise ServiceUnreachable(transport.settings.url, reason)


def parse_events(chunks: Iterable[bytes], url: str = "") -> Iterator[ServerEvent]:
    """Yield the events in a stream of bytes. An event without its end is dropped."""
    event, event_id, data = "", None, list[str]()
    for line in _split_lines(chunks, url):
        if not line:
            if data or event:
                yield ServerEvent(event or "message", "\n".join(data), event_id)
            # By the standard the last id stays valid, but only an id of its own moves our position.
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
    """Split at CR LF, LF and CR only, not at the other line ends that Python knows."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        # A CR at the end may be half of a CR LF.
        pending_cr = rest[-1:] if rest.endswith(b"\r") else b""
        complete = rest[: len(rest) - len(pending_cr)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = complete.split(b"\n")
        rest += pending_cr
        if len(rest) > MAX_LINE_BYTES:
            raise UnexpectedResponse(url, f"a line of more than {MAX_LINE_BYTES >> 20} MiB")
        for line in lines:
            yield line.decode("utf-8", "replace")
