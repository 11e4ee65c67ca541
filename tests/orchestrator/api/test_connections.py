"""Slow clients end by themselves and keep nobody out: real sockets at a real server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from orchestrator.registry.lifecycle import Reason, Status
from tests.orchestrator.api.builders import ApiHarness, serve_app
from tests.waiting import wait_for

TIMEOUT_S = 15.0
"""Seconds until a socket that the server does not close fails its test."""
SHORT = 0.2
ENDLESS = 100_000
"""Kilobytes that no server should read of one header."""
OpenServer = Callable[..., Any]


class Server:
    """A server with short timeouts, and raw connections to it."""

    def __init__(self, api: ApiHarness, url: str, stack: ExitStack) -> None:
        self.api, self.url, self._stack = api, url, stack
        self.port = httpx.URL(url).port

    def connect(self, data: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)
        self._stack.enter_context(connection)
        connection.sendall(data)
        return connection

    def format_request(self, line: str, **headers: str) -> bytes:
        secret = self.api.secrets["submitter", "default"]
        lines = [f"{line} HTTP/1.1", "Host: x", f"Authorization: Bearer {secret}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode()

    def follow(self, run_id: str) -> socket.socket:
        """Open a stream, and read its header."""
        connection = self.connect(self.format_request(f"GET /v1/runs/{run_id}/events"))
        assert read_head(connection).startswith(b"HTTP/1.1 200")
        return connection


@pytest.fixture
def open_server(open_limited: Callable[..., Any]) -> OpenServer:
    @contextmanager
    def open_one(**http: float) -> Iterator[Server]:
        with open_limited(**http) as api, serve_app(api.app) as url, ExitStack() as stack:
            yield Server(api, url, stack)

    return open_one


def read_head(connection: socket.socket) -> bytes:
    return read_until(connection, b"\r\n\r\n")


def read_response(connection: socket.socket) -> bytes:
    """Read a header, and a body that is a flat JSON object."""
    return read_until(connection, b"}")


def read_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        part = connection.recv(1 << 16)
        assert part, data
        data += part
    return data


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the server closes the connection, which it must."""
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def send_until_closed(connection: socket.socket, part: bytes) -> int:
    """Send until the server closes the connection; return how many parts were sent."""
    for number in range(ENDLESS):
        try:
            connection.sendall(part)
        except OSError:
            return number
    return ENDLESS


def wait_for_count(server: Server, count: int) -> None:
    """Wait until the server has so many connections."""
    table = server.api.app.state.connections
    wait_for(lambda: True if table.count == count else None, timeout_s=TIMEOUT_S, pause_s=0.01)


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nHo"], ids=["nothing", "a part"])
def test_a_connection_without_a_complete_header_is_closed(open_server: OpenServer, start: bytes):
    with open_server(header_timeout_s=SHORT) as server:
        assert read_to_end(server.connect(start)) == b""


def test_the_next_header_of_a_connection_has_the_same_time(open_server: OpenServer):
    with open_server(header_timeout_s=SHORT) as server:
        connection = server.connect(server.format_request("GET /healthz"))
        assert b"200 OK" in read_response(connection)
        connection.sendall(b"GET /healthz HTT")
        assert read_to_end(connection) == b""


def test_a_request_that_takes_longer_than_its_header_may_is_answered(open_server: OpenServer):
    with open_server(header_timeout_s=SHORT) as server:
        run_id = server.api.submit()
        stream = server.follow(run_id)
        assert read_to_end(server.connect(b"GET ")) == b""
        server.api.move(run_id, Status.STOPPED, reason=Reason.USER)
        read_until(stream, b"event: end")


def test_a_body_that_does_not_arrive_is_a_problem(open_server: OpenServer):
    with open_server(body_timeout_s=SHORT) as server:
        headers = {"Content_Type": "application/json", "Content_Length": "100"}
        connection = server.connect(server.format_request("POST /v1/runs", **headers) + b'{"spec"')
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.2 s" in answer


def test_a_body_that_trickles_after_the_answer_ends_the_connection(open_server: OpenServer):
    with open_server(header_timeout_s=SHORT) as server:
        head = b"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
        connection = server.connect(head)
        assert b"401 Unauthorized" in read_response(connection)
        connection.sendall(b"x" * 100)
        assert read_to_end(connection) == b""


def test_a_header_without_end_is_cut(open_server: OpenServer):
    with open_server() as server:
        connection = server.connect(b"GET /healthz HTTP/1.1\r\n")
        sent = send_until_closed(connection, b"X-A: %s\r\n" % (b"y" * 1000))
        assert sent < ENDLESS and read_to_end(connection) == b""


def test_a_large_body_is_read_to_its_end(open_server: OpenServer):
    with open_server(header_timeout_s=5) as server:
        headers = {"Authorization": f"Bearer {server.api.secrets['submitter', 'default']}"}
        for size in (50_000, 66_000, 200_000, 1_000_000):
            answers = [
                httpx.post(f"{server.url}/v1/runs/check", content=b" " * size, headers=chosen)
                for chosen in (headers, {})
            ]
            assert [answer.status_code for answer in answers] == [422, 401], size


def test_a_client_that_does_not_read_is_closed(open_server: OpenServer):
    with open_server(write_timeout_s=SHORT, anonymous_requests_per_s=10_000) as server:
        connection = server.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(server.format_request("GET /openapi.json") * 300)
        wait_for_count(server, 0)


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
def test_a_connection_without_a_request_makes_room_for_another(open_server: OpenServer, limit: str):
    with open_server(**{limit: 3}) as server:
        slow = [server.connect(b"GET /he") for _ in range(3)]
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        assert read_to_end(slow[0]) == b""
        slow[2].sendall(b"althz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in read_response(slow[2])


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_address"])
def test_a_connection_above_the_limit_is_refused_if_all_have_requests(
    open_server: OpenServer, limit: str
):
    with open_server(**{limit: 2}) as server:
        run_id = server.api.submit()
        streams = [server.follow(run_id) for _ in range(2)]
        refused = read_to_end(server.connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"))
        assert refused.startswith(b"HTTP/1.1 503") and b"Retry-After: 2" in refused
        streams[0].close()
        wait_for_count(server, 1)
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_a_client_that_was_served_stays_before_one_that_never_sent_a_request(
    open_server: OpenServer,
):
    with open_server(max_connections=2) as server, httpx.Client() as client:
        assert client.get(f"{server.url}/healthz").status_code == 200
        silent = server.connect()
        newest = server.connect(server.format_request("GET /healthz"))
        assert read_to_end(silent) == b"" and b"200 OK" in read_response(newest)


def test_hundreds_of_slow_sockets_do_not_lock_others_out(open_server: OpenServer):
    with open_server(max_connections_per_address=100) as server:
        for _ in range(300):
            server.connect(b"GET /healthz HTTP/1.1\r\nHost: ")
        codes = [httpx.get(f"{server.url}/healthz").status_code for _ in range(20)]
        assert codes == [200] * 20 and server.api.app.state.connections.count <= 100
