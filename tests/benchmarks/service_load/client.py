"""A cheap HTTP client, so that the benchmark measures the server on the other core."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class LoadClient:
    """A client with one persistent connection."""

    def __init__(self, address: str, token: str) -> None:
        self._host, _, port = address.removeprefix("http://").partition(":")
        self._port, self._token = int(port), token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """Send a request and return the status and the body."""
        reader, _ = await self._send(method, path, body, headers)
        status, length = await _read_head(reader)
        assert length is not None
        return status, await reader.readexactly(length)

    async def stream(self, path: str) -> bytes:
        """Read a stream up to its `end` event."""
        reader, _ = await self._send("GET", path, None, {})
        status, length = await _read_head(reader)
        assert (status, length) == (200, None)
        parts = bytearray()
        while size := int(await reader.readline(), 16):
            parts += await reader.readexactly(size)
            await reader.readexactly(2)
        return bytes(parts)

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()

    def reset(self) -> None:
        """Close the connection; the next request opens another one."""
        self.close()
        self._streams = None

    async def _send(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        reader, writer = self._streams
        data = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {self._host}",
            f"Authorization: Bearer {self._token}",
            f"Content-Length: {len(data)}",
            "Content-Type: application/json",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        await writer.drain()
        return reader, writer


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, int | None]:
    """Read the status and the length of the body, which is None if it is chunked."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    status = int(head.split(" ", 2)[1])
    for line in head.splitlines()[1:]:
        name, _, value = line.partition(":")
        if name == "content-length":
            return status, int(value)
    return status, None
