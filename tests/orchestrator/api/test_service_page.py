"""docs/guides/service.md: its examples work."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.orchestrator.api.builders import ApiHarness

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "service.md"
PLACEHOLDERS = {"chat-20260101-030000-1f2e": "run", "0123456789abcdef": "token"}
NO_ADAPTER = ("/v1/adapters/chat", "/v1/deployments/")


def parse_examples() -> list[list[str]]:
    """Return the arguments of every curl on the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    commands = re.findall(
        r"^(curl .*?)(?=^curl |^[A-Z]+=|\Z)", "\n".join(blocks) + "\n", re.S | re.M
    )
    return [shlex.split(command.replace("\\\n", " ")) for command in commands]


def test_every_curl_example_succeeds(api: ApiHarness):
    ids = {"run": api.submit(), "token": ""}
    token = api.request("POST", "/v1/tokens", json={"label": "x", "scope": "viewer"}).json()
    ids["token"] = token["id"]
    count = 0
    for arguments in parse_examples():
        address = next(
            argument for argument in arguments if argument.startswith("$URL")
        ).removeprefix("$URL")
        for name, kind in PLACEHOLDERS.items():
            address = address.replace(name, ids[kind])
        body = arguments[arguments.index("-d") + 1] if "-d" in arguments else None
        method = (
            arguments[arguments.index("-X") + 1] if "-X" in arguments else "POST" if body else "GET"
        )
        headers = dict(
            arguments[index + 1].split(": ", 1)
            for index, argument in enumerate(arguments)
            if argument == "-H" and arguments[index + 1] != "$AUTH"
        )
        count += 1
        if "-sN" in arguments:
            continue  # a stream of a run that does not end
        response = api.request(method, address, content=body, headers=headers)
        # There is no adapter in this service, and its run has not ended.
        expected = (404,) if address.startswith(NO_ADAPTER) else (200, 201, 202, 204)
        if (method, address) == ("POST", "/v1/deployments"):
            # It has no inference server either.
            expected = (422,)
        if (method, address) == ("DELETE", f"/v1/runs/{ids['run']}"):
            expected = (409,)
        assert response.status_code in expected, (arguments, response.text)
    assert count > 20


@pytest.mark.parametrize("line", re.findall(r"^\{.*?\}\n", PAGE.read_text(), re.S | re.M))
def test_every_json_example_parses(line: str):
    assert json.loads(line)["status"] == 422
