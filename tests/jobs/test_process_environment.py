"""The environment of a process: a home that is a path, and no proxy before this machine."""

from __future__ import annotations

import errno
import os
import urllib.request
from pathlib import Path

import pytest

from jobs.errors import InputError, StoreError
from jobs.file_errors import translate_file_error
from jobs.network import exempt_loopback, is_loopback
from jobs.process_environment import find_home, prepare_environment


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("exempt", [{}, {"no_proxy": "a.org"}, {"NO_PROXY": "a.org, b.org"}])
def test_this_machine_is_exempt_from_proxies_in_both_spellings(proxy: str, exempt: dict[str, str]):
    environment = {proxy: "http://proxy:3128", **exempt}
    exempt_loopback(environment, hosts=("127.77.1.1",))
    for name in ("no_proxy", "NO_PROXY"):
        entries = environment[name].split(",")
        assert {"127.0.0.1", "localhost", "::1", "127.77.1.1"} <= set(entries)
        assert ("a.org" in entries) is bool(exempt)
    before = dict(environment)
    exempt_loopback(environment, hosts=("127.77.1.1",))
    assert environment == before


def test_without_a_proxy_or_with_all_hosts_exempt_nothing_changes():
    for environment in ({}, {"http_proxy": ""}, {"http_proxy": "http://p", "no_proxy": "*"}):
        before = dict(environment)
        exempt_loopback(environment)
        assert environment.get("no_proxy") == before.get("no_proxy")


def test_libraries_bypass_the_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    exempt_loopback()
    assert urllib.request.proxy_bypass("127.0.0.1:8265")
    assert not urllib.request.proxy_bypass("example.org")


def test_loopback_is_known_by_name_and_by_number():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.77.1.2", "::1", "[::1]")))
    assert not any(map(is_loopback, (None, "", "example.org", "10.0.0.1", "127.example.org")))


def test_a_home_is_always_an_absolute_path(tmp_path: Path):
    assert find_home({"HOME": str(tmp_path)}) == tmp_path
    for environment in ({}, {"HOME": ""}, {"HOME": "relative"}):
        prepare_environment(environment)
        assert os.path.isabs(environment["HOME"])


def test_an_error_of_a_file_is_one_message():
    full = translate_file_error(OSError(errno.ENOSPC, "No space left on device", "/disk/x"))
    assert isinstance(full, StoreError) and "/disk/x: No space left" in str(full)
    closed = translate_file_error(PermissionError(errno.EACCES, "Permission denied", "/home/x"))
    assert isinstance(closed, InputError) and "/home/x: Permission denied" in str(closed)
    assert translate_file_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert translate_file_error(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


def test_a_deleted_working_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    error = translate_file_error(FileNotFoundError(errno.ENOENT, "No such file or directory"))
    assert "the working directory was deleted" in str(error)
