"""Each request is answered by one state of the weights: before a swap, or after it."""

from __future__ import annotations

import asyncio
import json

import pytest

from slora.serving.refusals import ServingRefused
from slora.serving.request_gate import GateMiddleware, RequestGate

POST = {"type": "http", "method": "POST", "path": "/v1/completions"}


class Served:
    """An app whose answers wait for `finish`, and what has happened in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.finish = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        self.events.append(f"start {scope['path']}")
        await self.finish.wait()
        self.events.append(f"end {scope['path']}")


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_swap_waits_for_requests_in_flight_and_others_wait_for_it():
    async def scenario() -> list[str]:
        gate, app = RequestGate(), Served()
        middleware = GateMiddleware(app, gate)

        async def swap() -> None:
            async with gate.close():
                app.events.append("swap")

        tasks = [asyncio.create_task(middleware({**POST, "path": "/v1/a"}, None, None))]
        await settle()
        tasks.append(asyncio.create_task(swap()))
        await settle()
        tasks.append(asyncio.create_task(middleware({**POST, "path": "/v1/b"}, None, None)))
        await settle()
        assert app.events == ["start /v1/a"]
        app.finish.set()
        await asyncio.gather(*tasks)
        return app.events

    events = asyncio.run(scenario())
    assert events == ["start /v1/a", "end /v1/a", "swap", "start /v1/b", "end /v1/b"]


def test_a_swap_gives_up_when_a_request_does_not_end_and_the_gate_opens_again():
    async def scenario() -> list[str]:
        gate, app = RequestGate(), Served()
        middleware = GateMiddleware(app, gate)
        task = asyncio.create_task(middleware(POST, None, None))
        await settle()
        with pytest.raises(ServingRefused, match="1 requests still run"):
            async with gate.close(drain_s=0):
                app.events.append("swap")
        app.finish.set()
        await asyncio.gather(task, middleware(POST, None, None))
        return app.events

    assert "swap" not in asyncio.run(scenario())


def test_what_computes_nothing_passes_beside_a_closed_gate():
    async def scenario() -> list[str]:
        gate, app = RequestGate(), Served()
        app.finish.set()
        middleware = GateMiddleware(app, gate)
        async with gate.close():
            await middleware({"type": "http", "method": "GET", "path": "/health"}, None, None)
            await middleware(
                {**POST, "path": "/root/slora/names", "root_path": "/root"}, None, None
            )
            await middleware({"type": "lifespan"} | {"path": ""}, None, None)
        return app.events

    assert len(asyncio.run(scenario())) == 6


def test_after_a_failed_swap_requests_are_refused_with_the_reason():
    async def scenario() -> list[dict]:
        gate, app, sent = RequestGate(), Served(), []
        gate.problem = "the weights are broken"

        async def send(message) -> None:
            sent.append(message)

        await GateMiddleware(app, gate)(POST, None, send)
        assert app.events == []
        return sent

    start, body = asyncio.run(scenario())
    assert start["status"] == 503
    assert json.loads(body["body"])["error"]["message"] == "the weights are broken"
