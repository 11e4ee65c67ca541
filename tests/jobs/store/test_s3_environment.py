"""Variables of boto3: each fault has the variable's name, the value unless secret, and a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import InputError, StoreUnreachable
from jobs.store.open import open_store
from jobs.store.s3.boto_client import get_client
from jobs.store.s3.environment import VARIABLES, describe_endpoint
from jobs.store.settings import S3Settings, read_store_settings

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}
HTTP, HTTPS = "http://127.0.0.1:9", "https://127.0.0.1:9"

FAULTS: dict[str, tuple[dict[str, str], str, str]] = {
    "no scheme": ({"AWS_ENDPOINT_URL": "localhost:9"}, "AWS_ENDPOINT_URL", "has no scheme"),
    "for S3": ({"AWS_ENDPOINT_URL_S3": "s3.example.org"}, "AWS_ENDPOINT_URL_S3", "has no scheme"),
    "port": ({"AWS_ENDPOINT_URL": "http://a:90x"}, "AWS_ENDPOINT_URL", "has a port that is not"),
    "large port": ({"AWS_ENDPOINT_URL": "http://a:99999"}, "AWS_ENDPOINT_URL", "has a port that"),
    "space": ({"AWS_ENDPOINT_URL": " http://a:9"}, "AWS_ENDPOINT_URL", "contains a space"),
    "scheme": ({"AWS_ENDPOINT_URL": "ftp://a"}, "AWS_ENDPOINT_URL", "has the scheme ftp"),
    "no host": ({"AWS_ENDPOINT_URL": "http://"}, "AWS_ENDPOINT_URL", "has no valid host"),
    "query": ({"AWS_ENDPOINT_URL": "http://a?x=1"}, "AWS_ENDPOINT_URL", "has a query"),
    "bucket twice": ({"AWS_ENDPOINT_URL": "http://a/bucket/"}, "AWS_ENDPOINT_URL", "ends with the"),
    "user": ({"AWS_ENDPOINT_URL": "http://u:s3cr3t@a"}, "AWS_ENDPOINT_URL", "holds credentials"),
    "profile": ({"AWS_PROFILE": "nosuch"}, "AWS_PROFILE", "nosuch"),
    "region": ({"AWS_DEFAULT_REGION": "us_east/1"}, "AWS_DEFAULT_REGION", "is not a region"),
    "config": ({"AWS_CONFIG_FILE": "{bad}"}, "AWS_CONFIG_FILE", "Unable to parse"),
    "credentials": (
        {"AWS_SHARED_CREDENTIALS_FILE": "{tmp}/none", "AWS_ACCESS_KEY_ID": "",
         "AWS_SECRET_ACCESS_KEY": ""},
        "AWS_SHARED_CREDENTIALS_FILE", "No such file",
    ),
    "no CA": ({"AWS_CA_BUNDLE": "{tmp}/none", "AWS_ENDPOINT_URL": HTTPS}, "AWS_CA_BUNDLE", "No s"),
    "bad CA": ({"AWS_CA_BUNDLE": "{bad}", "AWS_ENDPOINT_URL": HTTPS}, "AWS_CA_BUNDLE", "no cert"),
    "half a pair": ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY", "_KEY_ID is"),
    "other half": ({"AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is"),
    "line end": ({"AWS_SECRET_ACCESS_KEY": "s3cr3t\n"}, "AWS_SECRET_ACCESS_KEY", "a line end"),
    "time-out": ({"SLORA_S3_READ_TIMEOUT": "0"}, "SLORA_S3_READ_TIMEOUT", "from 1 to 3600"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("variables", "name", "problem"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_by_its_variable(
    variables: dict[str, str], name: str, problem: str, tmp_path: Path, monkeypatch
):
    bad = tmp_path / "bad"
    bad.write_text("[default\nx")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(tmp=tmp_path, bad=bad))
    with pytest.raises(InputError) as caught:
        open_store("s3://bucket/x")
    [fault] = caught.value.faults
    assert fault.key == name
    assert problem in fault.problem and fault.remedy
    assert "s3cr3t" not in str(fault) and str(fault).isprintable()


def test_all_faults_come_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us east")
    with pytest.raises(InputError) as caught:
        open_store("s3://bucket/x")
    assert [fault.key for fault in caught.value.faults] == [
        "AWS_ENDPOINT_URL",
        "AWS_DEFAULT_REGION",
    ]


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_ENDPOINT_URL": ""},
        {"AWS_ENDPOINT_URL": "https://example.org/storage/v1/s3"},
        {"AWS_ENDPOINT_URL": "http://[::1]:9000"},
        {"AWS_ENDPOINT_URL_S3": HTTP, "AWS_ENDPOINT_URL": "unused"},
        {"AWS_ENDPOINT_URL": HTTP, "AWS_CA_BUNDLE": "/unused.pem"},
        {"AWS_SHARED_CREDENTIALS_FILE": "/not/needed/beside/keys"},
    ],
)
def test_what_works_is_no_fault(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    open_store("s3://bucket/x")


def test_no_proxy_leads_to_an_endpoint_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:8")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    settings = S3Settings(attempts=1, connect_timeout=1)
    proxies = []
    for url in ("http://127.0.0.1:9", "http://10.0.0.1:9"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        proxies.append(get_client(settings).meta.config.proxies)
    assert proxies == [{}, None]


def test_a_server_that_is_down_is_told_with_the_endpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", HTTP)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StoreUnreachable, match=f"AWS_ENDPOINT_URL is {HTTP}"):
        open_store("s3://bucket/x").head("key")
    assert "s3cr3t" not in describe_endpoint({"AWS_ENDPOINT_URL": "http://u:s3cr3t@a"})


def test_the_folders_of_a_user_without_a_home_are_absolute():
    for environment in ({}, {"HOME": ""}, {"HOME": "x", "XDG_CACHE_HOME": "relative"}):
        settings = read_store_settings(environment)
        assert settings.cache.is_absolute() and settings.outbox.is_absolute()
        assert "relative" not in settings.cache.parts
