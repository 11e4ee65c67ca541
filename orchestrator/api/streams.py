"""Routes that stream: a run's events and its log, as server-sent events that resume exactly."""

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
from orchestrator.api.access import Asker, Guarded, Who, needs
from orchestrator.api.feeds import EventFeed, LogFeed, Tape
from orchestrator.api.given import RunPath
from orchestrator.api.hub import Hub
from orchestrator.api.parts import Behind, visible_run
from orchestrator.api.problems import documented
from orchestrator.registry import runs
from orchestrator.registry.values import Attempt, Event, Run
from orchestrator.service.loop import Service

ALIVE_S = 15.0
"""Between two signs of life, so that nobody on the way thinks the connection dead."""
PIECE = 1 << 16
"""Bytes of a log in one event."""
AGAIN_MS = 1000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
TEXT = {"text/event-stream": {"schema": {"type": "string"}}, "text/plain": {}}

logger = logging.getLogger(__name__)

_PLACE = re.compile(r"([1-9][0-9]{0,8}):(0|[1-9][0-9]{0,17})")
_POSITION = re.compile(r"0|[1-9][0-9]{0,17}")

LastId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that came.")
]

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=Guarded)


@router.get(
    "/{run}/events",
    response_class=Response,
    responses={**STREAM, **documented(404)},
    openapi_extra=needs("viewer"),
)
async def events(
    who: Asker,
    service: Behind,
    run: RunPath,
    request: Request,
    last: LastId = None,
) -> Response:
    """What happens to a run: `id` is the event's position, `data` its JSON; `end` comes last."""
    await to_thread.run_sync(_seen, service, who, run)
    after = _position(last)
    return _stream(_events(request.app.state.hub, run, after))


@router.get(
    "/{run}/log",
    response_class=Response,
    responses={200: {"content": TEXT}, **documented(404)},
    openapi_extra=needs("viewer"),
)
async def log(
    who: Asker,
    service: Behind,
    run: RunPath,
    request: Request,
    start: Annotated[
        str | None,
        Query(alias="from", pattern=f"^(?:{_PLACE.pattern})$", description="ATTEMPT:BYTE."),
    ] = None,
    follow: Annotated[bool, Query(description="false: what there is, as plain text.")] = True,
    last: LastId = None,
) -> Response:
    """What a run prints, over all its attempts.

    The `id` of an event is where the next one begins, `<attempt>:<byte>`; its data is
    `{"text": …}`, and `end` comes last, with the status. With follow=false: plain text.
    """
    found, attempts = await to_thread.run_sync(_seen, service, who, run)
    # A reader that connects again repeats the address and says how far it came.
    attempt, offset = _place(last if last is not None else start, found)
    hub: Hub = request.app.state.hub
    if follow:
        return _stream(_log(hub, run, attempt, offset))
    there = [one for one in attempts if one.number >= attempt]
    first = await to_thread.run_sync(_piece_of, hub, there, attempt, offset)
    text = _plain(hub, there, attempt, offset, first)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)


def _seen(service: Service, who: Who, run_id: str) -> tuple[Run, list[Attempt]]:
    with service.database.read() as session:
        return visible_run(session, who, run_id), runs.attempts(session, run_id)


def _stream(parts: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(parts, media_type="text/event-stream", headers=HEADERS)


async def _events(hub: Hub, run: str, position: int) -> AsyncIterator[str]:
    yield f"retry: {AGAIN_MS}\n\n"
    async with hub.follow(EventFeed, run) as feed:
        hub.look_again(feed)
        while not hub.closed:
            over = feed.over
            for event in feed.behind(position):
                position = event.position
                yield _event(event.kind, _described(event), str(position))
            if over is not None:
                yield _event("end", _ended(over), str(position))
                return
            known = feed.over is not None or feed.behind(position)
            if not known and not await feed.news(ALIVE_S):
                yield ": here\n\n"


async def _log(hub: Hub, run: str, attempt: int, offset: int) -> AsyncIterator[str]:
    yield f"retry: {AGAIN_MS}\n\n"
    async with hub.follow(LogFeed, run) as feed:
        while not hub.closed:
            feed.want(attempt, offset)
            hub.look_again(feed)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            async for data in _attempt_log(hub, feed, attempt, offset):
                if data is None:
                    yield ": here\n\n"
                    continue
                offset += len(data)
                text = decoder.decode(data)
                # Half of a character waits for its other half; who resumes here begins with it.
                place = f"{attempt}:{offset - len(decoder.getstate()[0])}"
                if text:
                    yield _event("log", {"text": text}, place)
            if _closed(hub):
                return
            if rest := decoder.decode(b"", final=True):
                yield _event("log", {"text": rest}, f"{attempt}:{offset}")
            if feed.over is not None and feed.over.attempt <= attempt:
                yield _event("end", _ended(feed.over), f"{attempt}:{offset}")
                return
            if feed.newest > attempt:
                attempt, offset = attempt + 1, 0


async def _attempt_log(
    hub: Hub, feed: LogFeed, attempt: int, offset: int
) -> AsyncIterator[bytes | None]:
    """An attempt's bytes to its end; None where there was nothing for a while."""
    while not hub.closed:
        tape = feed.tapes.get(attempt)
        if tape is not None and offset < tape.start:
            found = await _before(hub, tape, offset)
            for piece in _pieces(found):
                offset += len(piece)
                yield piece
            if found:
                continue
            if tape.whole:
                return
        elif tape is not None and offset < tape.end:
            at = offset - tape.start
            piece = bytes(tape.data[at : at + PIECE])
            offset += len(piece)
            yield piece
            continue
        elif (tape is not None and tape.whole) or feed.over is not None:
            return
        if not await feed.news(ALIVE_S):
            yield None


async def _before(hub: Hub, tape: Tape, offset: int) -> bytes:
    """What comes before the tape begins, read for one follower alone; empty where nothing is."""
    try:
        found = await to_thread.run_sync(
            hub.sources.log_of, tape.attempt, offset, limiter=hub.looks
        )
    except JobsError as error:
        logger.info("run %s: its log can't be read now: %s", tape.attempt.run, error)
        return b""
    return found[: max(0, tape.start - offset)]


def _closed(hub: Hub) -> bool:
    """As a question of its own, since the answer changes while the loop waits."""
    return hub.closed


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]


Piece = tuple[int, int, bytes]
"""The attempt, the byte behind the piece, and the piece; empty at the end of all."""


def _piece_of(hub: Hub, attempts: list[Attempt], attempt: int, offset: int) -> Piece:
    for one in attempts:
        if one.number < attempt:
            continue
        start = offset if one.number == attempt else 0
        if found := hub.sources.log_of(one, start):
            return one.number, start + len(found), found
    return attempt, offset, b""


async def _plain(
    hub: Hub, attempts: list[Attempt], attempt: int, offset: int, piece: Piece
) -> AsyncIterator[bytes]:
    """What there is now. The first piece was read before: an error still has its own answer."""
    while piece[2] and not hub.closed:
        yield piece[2]
        attempt, offset, _ = piece
        piece = await to_thread.run_sync(
            _piece_of, hub, attempts, attempt, offset, limiter=hub.looks
        )


def _event(kind: str, data: dict[str, Any], place: str) -> str:
    """One event. Its JSON is ASCII without line breaks: what a job prints can't end the event."""
    return f"event: {kind}\nid: {place}\ndata: {json.dumps(data)}\n\n"


def _described(event: Event) -> dict[str, Any]:
    return {
        "run": event.run,
        "position": event.position,
        "at": event.at,
        "kind": event.kind,
        "attempt": event.attempt,
        "body": dict(event.body),
    }


def _ended(run: Run) -> dict[str, Any]:
    reason = None if run.reason is None else run.reason.value
    return {"status": run.status.value, "reason": reason, "detail": run.detail}


def _position(last: str | None) -> int:
    if last is None:
        return 0
    if not _POSITION.fullmatch(last):
        remedy = "Send the id of the last event, or none."
        raise InputError([Fault("Last-Event-ID", "it is no position of an event", remedy)])
    return int(last)


def _place(text: str | None, run: Run) -> tuple[int, int]:
    if text is None:
        return 1, 0
    found = _PLACE.fullmatch(text)
    if found is None or int(found[1]) > max(1, run.attempt):
        remedy = "Send the id of the last event, or none."
        raise InputError([Fault("from", "it is no place in this run's log", remedy)])
    return int(found[1]), int(found[2])
