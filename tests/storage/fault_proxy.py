"""A proxy before a real S3 server that counts the requests and injects a fault into one."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = {
    "500": (500, "InternalError"),
    "500 after": (500, "InternalError"),
    "503 slow down": (503, "SlowDown"),
    "expired credentials": (403, "ExpiredToken"),
    "disk full": (507, "InsufficientStorage"),
    "not allowed": (403, "AccessDenied"),
}
FAULTS = (*ANSWERS, "reset", "reset after", "time-out", "time-out after", "wrong checksum")
"""`after`: the server handles the request, and the client never gets the response."""
HOP = ("connection", "expect", "transfer-encoding", "keep-alive")


class FaultProxy:
    """Forwards requests to the server; the `at`-th one after `arm` meets the fault."""

    def __init__(self, server_port: int) -> None:
        self.server_port, self._lock = server_port, threading.Lock()
        self._fault, self._at, self.count = "", 0, 0
        self._act: Callable[[], None] = lambda: None
        self.lies = False
        """Answers 200 for a failed condition, as a server that ignores conditions does."""
        self.hides_absent = False
        """Answers 403 for an absent object, as S3 does to those who may not list the bucket."""
        self.denied: tuple[str, ...] = ()
        """HTTP methods that the client may not use."""
        self.requests = list[str]()
        self.headers = list[dict[str, str]]()
        self.release = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def arm(self, fault: str, at: int, act: Callable[[], None] = lambda: None) -> None:
        """Reset the counter and set the fault; "do" and "do after" call `act`."""
        self.release.set()
        self.release = threading.Event()
        with self._lock:
            self._fault, self._at, self._act, self.count = fault, at, act, 0
            self.requests.clear()
            self.headers.clear()

    def disarm(self) -> None:
        """Forward all requests."""
        self.arm("", 0)

    def kill_client(self, fault: str, at: int, pid: Callable[[], int]) -> None:
        """SIGKILL the client at its `at`-th request: before ("do") or after ("do after") it."""
        self.arm(fault, at, lambda: os.kill(pid(), signal.SIGKILL))

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def fault_for(self, line: str, headers: dict[str, str]) -> str:
        with self._lock:
            self.count += 1
            self.requests.append(line)
            self.headers.append(headers)
            return self._fault if self.count == self._at else ""

    def act(self) -> None:
        self._act()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, *_: Any) -> None:
        return

    def handle(self) -> None:
        with suppress(ConnectionError, BrokenPipeError):
            super().handle()

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        value_bytes = {name.lower(): value for name, value in self.headers.items()}
        fault = self.proxy.fault_for(f"{self.command} {self.path}", value_bytes)
        if self.command in self.proxy.denied:
            return self._fail("not allowed")
        after = fault.endswith(" after")
        if fault and not after and fault != "wrong checksum":
            return self._fail(fault)
        if fault == "wrong checksum" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        try:
            status, headers, answer = self._forward(body)
        except (OSError, http.client.HTTPException):
            return self._reset()  # the server itself is down
        if fault == "wrong checksum" and answer and self.command == "GET":
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        if after:
            return self._fail(fault)
        if status == 412 and self.proxy.lies:
            return self._answer(200, [("ETag", '"0"'), ("Content-Length", "0")], b"")
        if status == 404 and self.proxy.hides_absent:
            return self._fail("not allowed")
        return self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port, timeout=60)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP:
                server.putheader(name, value)
        server.endheaders(body or None)
        response = server.getresponse()
        response_body = response.read()
        server.close()
        return response.status, response.getheaders(), response_body

    def _fail(self, fault: str) -> None:
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            text = f"<Error><Code>{code}</Code><Message>on purpose</Message></Error>".encode()
            self._answer(status, [("Content-Length", str(len(text)))], text)
        elif fault.startswith("time-out"):
            self.proxy.release.wait(30)
            self._reset()
        else:
            if fault.startswith("do"):
                self.proxy.act()
            self._reset()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        with suppress(OSError):
            hard = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, hard)
        self.close_connection = True
        with suppress(OSError):
            self.connection.close()
