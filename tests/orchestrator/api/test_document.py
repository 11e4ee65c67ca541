"""docs/service.md: its examples do what they say."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.orchestrator.api.made import Door

PAGE = Path(__file__).parents[3] / "docs" / "service.md"
NAMED = {"chat-20260101-030000-1f2e": "run", "0123456789abcdef": "token"}
NO_ADAPTER = "/v1/adapters/chat"


def examples() -> list[list[str]]:
    """The words of every curl on the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.S)
    commands = re.findall(
        r"^(curl .*?)(?=^curl |^[A-Z]+=|\Z)", "\n".join(blocks) + "\n", re.S | re.M
    )
    return [shlex.split(command.replace("\\\n", " ")) for command in commands]


def test_every_curl_on_the_page_is_answered(light: Door):
    things = {"run": light.submitted(), "token": ""}
    made = light.ask("POST", "/v1/tokens", json={"label": "x", "scope": "viewer"}).json()
    things["token"] = made["id"]
    seen = 0
    for words in examples():
        address = next(word for word in words if word.startswith("$URL")).removeprefix("$URL")
        for name, thing in NAMED.items():
            address = address.replace(name, things[thing])
        body = words[words.index("-d") + 1] if "-d" in words else None
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if body else "GET"
        headers = dict(
            words[at + 1].split(": ", 1)
            for at, word in enumerate(words)
            if word == "-H" and words[at + 1] != "$AUTH"
        )
        seen += 1
        if "-sN" in words:
            continue  # a stream of a run that does not end here
        answer = light.ask(method, address, content=body, headers=headers)
        # There is no adapter here, which is what it says.
        expected = (404,) if address.startswith(NO_ADAPTER) else (200, 201, 202, 204)
        assert answer.status_code in expected, (words, answer.text)
    assert seen > 20


@pytest.mark.parametrize("line", re.findall(r"^\{.*?\}\n", PAGE.read_text(), re.S | re.M))
def test_its_json_is_json(line: str):
    assert json.loads(line)["status"] == 422
