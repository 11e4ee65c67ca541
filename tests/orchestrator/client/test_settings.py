"""Settings of the client: precedence of the sources, validation, and secrecy of the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.client.client_settings import DEFAULT_SERVICE, load_settings

FAR = "https://far.example.org"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Create a home folder with a token that is also the folder of a local service."""
    for path, secret in (
        (".config/slora/token", "slora_home"),
        (".cache/service-token", "slora_local"),
    ):
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(f"{secret}\n")
    return tmp_path


def test_the_default_is_the_local_service_without_a_token(tmp_path: Path):
    loaded = load_settings(None, {"HOME": str(tmp_path)}, tmp_path)
    assert (loaded.url, loaded.token, loaded.token_source) == (DEFAULT_SERVICE, None, None)


def test_the_option_overrides_the_environment():
    environment = {"SLORA_SERVICE": FAR, "SLORA_TOKEN": "slora_x"}
    assert load_settings("http://near:1/", environment).url == "http://near:1"
    assert load_settings(None, environment).url == FAR


def test_token_sources_have_a_fixed_order(home: Path, tmp_path: Path):
    file = tmp_path / "named"
    file.write_text("slora_named\n")
    environment = {"SLORA_TOKEN_FILE": str(file), "SLORA_TOKEN": "slora_word", "HOME": str(home)}
    assert load_settings(None, environment, home).token == "slora_named"
    del environment["SLORA_TOKEN_FILE"]
    assert load_settings(None, environment, home).token == "slora_word"
    del environment["SLORA_TOKEN"]
    assert load_settings(None, environment, home).token == "slora_home"
    (home / ".config/slora/token").unlink()
    assert load_settings(None, environment, home).token == "slora_local"


def test_the_local_token_is_sent_to_no_other_service(home: Path):
    (home / ".config/slora/token").unlink()
    assert load_settings(FAR, {"HOME": str(home)}, home).token is None
    assert load_settings("http://localhost:8321", {"HOME": str(home)}, home).token == "slora_local"


def test_the_token_is_not_in_the_repr_of_the_settings():
    loaded = load_settings(None, {"SLORA_TOKEN": "slora_secret"})
    assert loaded.token == "slora_secret" and "secret" not in repr(loaded) + str(loaded)


@pytest.mark.parametrize(
    "secret", ["two words", "slora_a\r\nX-Evil: 1", "slora_é"], ids=["two words", "a header", "é"]
)
def test_a_malformed_token_is_rejected_without_printing_it(secret: str):
    with pytest.raises(InputError) as refused:
        load_settings(None, {"SLORA_TOKEN": secret})
    assert "SLORA_TOKEN: not a token" in str(refused.value)
    assert secret not in str(refused.value)


def test_a_missing_token_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"SLORA_TOKEN_FILE: .*absent can't be read"):
        load_settings(None, {"SLORA_TOKEN_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(
    "url",
    ["ftp://host", "host:8321", "http://", "http://user:pw@host", "http://h?q=1", "http://[::1"],
)
def test_an_invalid_url_is_rejected_without_its_password(url: str):
    with pytest.raises(InputError, match="is not the URL of a service") as refused:
        load_settings(url, {})
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "exposed"),
    [(DEFAULT_SERVICE, False), ("http://[::1]:1", False), ("http://far:1", True), (FAR, False)],
)
def test_an_unencrypted_token_is_noticed_on_a_network(url: str, exposed: bool):
    assert load_settings(url, {"SLORA_TOKEN": "slora_x"}).is_token_exposed is exposed
    assert load_settings(url, {"HOME": "/nowhere"}, Path("/nowhere")).is_token_exposed is False
