"""Where the service is and who asks: what comes first, what is refused, and what is never told."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.client.settings import DEFAULT_SERVICE, settings

FAR = "https://far.example.org"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a token, and a folder where a service was started."""
    for place, words in (
        (".config/slora/token", "slora_home"),
        (".cache/service-token", "slora_local"),
    ):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text(f"{words}\n")
    return tmp_path


def test_without_anything_it_is_this_machines_service_and_nobody_asks(tmp_path: Path):
    found = settings(None, {"HOME": str(tmp_path)}, tmp_path)
    assert (found.service, found.token, found.source) == (DEFAULT_SERVICE, None, None)


def test_the_option_is_stronger_than_the_environment():
    environment = {"SLORA_SERVICE": FAR, "SLORA_TOKEN": "slora_x"}
    assert settings("http://near:1/", environment).service == "http://near:1"
    assert settings(None, environment).service == FAR


def test_a_token_is_looked_for_in_one_order(home: Path, tmp_path: Path):
    file = tmp_path / "named"
    file.write_text("slora_named\n")
    environment = {"SLORA_TOKEN_FILE": str(file), "SLORA_TOKEN": "slora_word", "HOME": str(home)}
    assert settings(None, environment, home).token == "slora_named"
    del environment["SLORA_TOKEN_FILE"]
    assert settings(None, environment, home).token == "slora_word"
    del environment["SLORA_TOKEN"]
    assert settings(None, environment, home).token == "slora_home"
    (home / ".config/slora/token").unlink()
    assert settings(None, environment, home).token == "slora_local"


def test_the_token_of_this_machines_service_is_told_to_no_other(home: Path):
    (home / ".config/slora/token").unlink()
    assert settings(FAR, {"HOME": str(home)}, home).token is None
    assert settings("http://localhost:8321", {"HOME": str(home)}, home).token == "slora_local"


def test_a_token_is_in_no_text_that_is_made_of_the_settings():
    found = settings(None, {"SLORA_TOKEN": "slora_secret"})
    assert found.token == "slora_secret" and "secret" not in repr(found) + str(found)


@pytest.mark.parametrize(
    "words", ["two words", "slora_a\r\nX-Evil: 1", "slora_é"], ids=["two words", "a header", "é"]
)
def test_what_can_be_no_token_is_refused_and_not_shown(words: str):
    with pytest.raises(InputError) as refused:
        settings(None, {"SLORA_TOKEN": words})
    assert "SLORA_TOKEN: holds no token" in str(refused.value)
    assert words not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"SLORA_TOKEN_FILE: .*absent can't be read"):
        settings(None, {"SLORA_TOKEN_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "host:8321", "http://", "http://user:pw@host", "http://h?q=1", "http://[::1"],
)
def test_what_is_no_address_is_refused_without_a_password(url: str):
    with pytest.raises(InputError, match="is no address of a service") as refused:
        settings(url, {})
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "clear"),
    [(DEFAULT_SERVICE, False), ("http://[::1]:1", False), ("http://far:1", True), (FAR, False)],
)
def test_a_token_in_the_clear_is_noticed_where_there_is_a_network(url: str, clear: bool):
    assert settings(url, {"SLORA_TOKEN": "slora_x"}).in_clear is clear
    assert settings(url, {"HOME": "/nowhere"}, Path("/nowhere")).in_clear is False
