"""Streaming routes: a run's events and its log, as server-sent events that resume exactly."""

from __future__ import annotations

import codecs
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from jobs.errors import Fault, InputError, JobsError
from orchestrator.api.auth import AuthenticatedRoute, CurrentPrincipal, Principal, requires_scope
from orchestrator.api.deps import ServiceDep, get_visible_run
from orchestrator.api.parameters import RunPath
from orchestrator.api.problems import describe_problems
from orchestrator.api.request_ids import get_request_id
from orchestrator.api.stream_hub import StreamHub, Subscription
from orchestrator.api.tails import EventTail, LogBuffer, LogTail
from orchestrator.control.supervisor import Service
from orchestrator.registry import runs
from orchestrator.registry.values import Attempt, Run
from orchestrator.schemas.base import ResponseSchema
from orchestrator.schemas.problems import ProblemResponse
from orchestrator.schemas.streams import (
    END_EVENT,
    PROBLEM_EVENT,
    EndResponse,
    EventResponse,
    LogTextResponse,
)

KEEPALIVE_S = 15.0
"""Interval of the comments that keep proxies from closing a silent connection."""
CHUNK_BYTES = 1 << 16
"""Bytes of the log in one event."""
RETRY_MS = 1000
INVALID_TOKEN = "The token was revoked or has expired, so this stream ends. Use another token."
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
LOG_CONTENT = {"text/event-stream": {"schema": {"type": "string"}}, "text/plain": {}}

logger = logging.getLogger(__name__)

_LOG_POSITION = re.compile(r"([1-9][0-9]{0,8}):(0|[1-9][0-9]{0,17})")
_EVENT_POSITION = re.compile(r"0|[1-9][0-9]{0,17}")

LastId = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="The id of the last event received."),
]

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=AuthenticatedRoute)


@router.get(
    "/{run}/events",
    response_class=Response,
    responses={**STREAM_RESPONSE, **describe_problems(404)},
    openapi_extra=requires_scope("viewer"),
)
async def stream_events(
    principal: CurrentPrincipal,
    service: ServiceDep,
    run: RunPath,
    request: Request,
    last_id: LastId = None,
) -> Response:
    """Stream a run's events: `id` is an event's position, `data` its JSON; the last is `end`."""
    await to_thread.run_sync(_load_run, service, principal, run)
    after = _parse_event_position(last_id)
    token = principal.token.id
    return _make_stream(_iterate_events(request.app.state.hub, run, token, after))


@router.get(
    "/{run}/log",
    response_class=Response,
    responses={200: {"content": LOG_CONTENT}, **describe_problems(404)},
    openapi_extra=requires_scope("viewer"),
)
async def stream_log(
    principal: CurrentPrincipal,
    service: ServiceDep,
    run: RunPath,
    request: Request,
    start: Annotated[
        str | None,
        Query(alias="from", pattern=f"^(?:{_LOG_POSITION.pattern})$", description="ATTEMPT:BYTE."),
    ] = None,
    follow: Annotated[
        bool, Query(description="If false, return the log so far as plain text.")
    ] = True,
    last_id: LastId = None,
) -> Response:
    """Stream the output of a run, over all its attempts.

    The `id` of an event is the position of the next one, `<attempt>:<byte>`; its data is
    `{"text": …}`. The last event is `end`, with the run's status. With follow=false, return plain
    text.
    """
    record, attempts = await to_thread.run_sync(_load_run, service, principal, run)
    # A reader that reconnects repeats the URL, so the last id takes precedence.
    attempt, offset = _parse_log_position(last_id if last_id is not None else start, record)
    hub: StreamHub = request.app.state.hub
    if follow:
        return _make_stream(_iterate_log(hub, run, principal.token.id, attempt, offset))
    remaining = [candidate for candidate in attempts if candidate.number >= attempt]
    first_chunk = await to_thread.run_sync(_read_next_chunk, hub, remaining, attempt, offset)
    text = _iterate_plain(hub, principal.token.id, remaining, first_chunk)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)


def _load_run(service: Service, principal: Principal, run_id: str) -> tuple[Run, list[Attempt]]:
    with service.database.read() as session:
        return get_visible_run(session, principal, run_id), runs.list_attempts(session, run_id)


def _make_stream(messages: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(messages, media_type="text/event-stream", headers=HEADERS)


async def _iterate_events(
    hub: StreamHub, run: str, token_id: str, position: int
) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    async with hub.follow(EventTail, run, token_id) as subscription:
        tail = subscription.tail
        hub.ensure_polling(tail)
        while subscription.is_open():
            final_run = tail.final_run
            for event in tail.list_events_after(position):
                if not subscription.is_open():
                    break
                position = event.position
                yield _format_event(event.kind, EventResponse.model_validate(event), str(position))
            if final_run is not None and subscription.is_open():
                yield _format_event(END_EVENT, EndResponse.model_validate(final_run), str(position))
                return
            has_news = tail.final_run is not None or tail.list_events_after(position)
            if not has_news and not await tail.wait_for_update(KEEPALIVE_S):
                yield ": keep-alive\n\n"
        if not subscription.token.is_valid:
            yield _format_invalid_token(str(position))


async def _iterate_log(
    hub: StreamHub, run: str, token_id: str, attempt: int, offset: int
) -> AsyncIterator[str]:
    yield f"retry: {RETRY_MS}\n\n"
    async with hub.follow(LogTail, run, token_id) as subscription:
        tail, position = subscription.tail, f"{attempt}:{offset}"
        while subscription.is_open():
            tail.add_reader(attempt, offset)
            hub.ensure_polling(tail)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            async for data in _iterate_attempt_log(subscription, attempt, offset):
                if data is None:
                    yield ": keep-alive\n\n"
                    continue
                offset += len(data)
                text = decoder.decode(data)
                # Bytes of an incomplete character stay in the decoder: resume in front of them.
                position = f"{attempt}:{offset - len(decoder.getstate()[0])}"
                if text:
                    yield _format_event("log", LogTextResponse(text=text), position)
            if not subscription.is_open():
                break
            if rest := decoder.decode(b"", final=True):
                yield _format_event("log", LogTextResponse(text=rest), f"{attempt}:{offset}")
            if tail.final_run is not None and tail.final_run.attempt <= attempt:
                end = EndResponse.model_validate(tail.final_run)
                yield _format_event(END_EVENT, end, f"{attempt}:{offset}")
                return
            if tail.newest_attempt > attempt:
                attempt, offset = attempt + 1, 0
        if not subscription.token.is_valid:
            yield _format_invalid_token(position)


async def _iterate_attempt_log(
    subscription: Subscription[LogTail], attempt: int, offset: int
) -> AsyncIterator[bytes | None]:
    """Yield an attempt's bytes up to its end, and None whenever KEEPALIVE_S pass without any."""
    hub, tail = subscription.hub, subscription.tail
    while subscription.is_open():
        buffer = tail.buffers.get(attempt)
        if buffer is not None and offset < buffer.start:
            earlier = await _read_before(hub, buffer, offset)
            for chunk in _split_chunks(earlier):
                offset += len(chunk)
                yield chunk
            if earlier:
                continue
            if buffer.is_complete:
                return
        elif buffer is not None and offset < buffer.end:
            start = offset - buffer.start
            chunk = bytes(buffer.data[start : start + CHUNK_BYTES])
            offset += len(chunk)
            yield chunk
            continue
        elif (buffer is not None and buffer.is_complete) or tail.final_run is not None:
            return
        if not await tail.wait_for_update(KEEPALIVE_S):
            yield None


async def _read_before(hub: StreamHub, buffer: LogBuffer, offset: int) -> bytes:
    """Read what precedes the buffer, for this follower only; empty if it can't be read."""
    try:
        data = await to_thread.run_sync(
            hub.sources.read_log, buffer.attempt, offset, limiter=hub.poll_limiter
        )
    except JobsError as error:
        logger.info("run %s: the log can't be read: %s", buffer.attempt.run, error)
        return b""
    return data[: max(0, buffer.start - offset)]


def _split_chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


PlainChunk = tuple[int, int, bytes]
"""The attempt, the offset after the chunk, and the chunk, which is empty at the end of the log."""


def _read_next_chunk(
    hub: StreamHub, attempts: list[Attempt], attempt: int, offset: int
) -> PlainChunk:
    for record in attempts:
        if record.number < attempt:
            continue
        start = offset if record.number == attempt else 0
        if data := hub.sources.read_log(record, start):
            return record.number, start + len(data), data
    return attempt, offset, b""


async def _iterate_plain(
    hub: StreamHub, token_id: str, attempts: list[Attempt], chunk: PlainChunk
) -> AsyncIterator[bytes]:
    """Yield the log so far. The first chunk is read earlier, so that an error sets the status."""
    async with hub.token_watch.watch(token_id) as token:
        while chunk[2] and token.is_valid and not hub.closed:
            yield chunk[2]
            attempt, offset, _ = chunk
            chunk = await to_thread.run_sync(
                _read_next_chunk, hub, attempts, attempt, offset, limiter=hub.poll_limiter
            )
        if not token.is_valid:
            yield f"\n{INVALID_TOKEN}\n".encode()


def _format_event(kind: str, data: ResponseSchema, event_id: str) -> str:
    """Format an event. Its JSON is ASCII without line breaks, so no job's output can end it."""
    return f"event: {kind}\nid: {event_id}\ndata: {json.dumps(data.model_dump())}\n\n"


def _format_invalid_token(event_id: str) -> str:
    """Format the last event of a stream whose token has become invalid."""
    problem = ProblemResponse(
        title="Unauthorized", status=401, detail=INVALID_TOKEN, request_id=get_request_id()
    )
    return _format_event(PROBLEM_EVENT, problem, event_id)


def _parse_event_position(last_id: str | None) -> int:
    if last_id is None:
        return 0
    if not _EVENT_POSITION.fullmatch(last_id):
        remedy = "Send the id of the last event, or omit it."
        raise InputError([Fault("Last-Event-ID", "not the position of an event", remedy)])
    return int(last_id)


def _parse_log_position(text: str | None, run: Run) -> tuple[int, int]:
    if text is None:
        return 1, 0
    match = _LOG_POSITION.fullmatch(text)
    if match is None or int(match[1]) > max(1, run.attempt):
        remedy = "Send the id of the last event, or omit it."
        raise InputError([Fault("from", "not a position in this run's log", remedy)])
    return int(match[1]), int(match[2])
