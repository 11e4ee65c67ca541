"""The configuration is validated before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from orchestrator.control.config import parse_config
from orchestrator.control.connect import connect_clusters

ROOT = Path(__file__).parents[3]
NEAR = {"address": "http://127.0.0.1:1"}


def test_the_url_of_a_store_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config({"clusters": {"near": NEAR}, "stores": ["file://store/"]})
    assert config.stores == (f"file://{tmp_path}/store",)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        pytest.param({"clusters": {}}, "clusters", id="no cluster"),
        pytest.param({"clusters": {"near": {"address": "ftp://near"}}}, "address", id="address"),
        pytest.param({"clusters": {"near": {**NEAR, "python": "p;q"}}}, "python", id="a shell's"),
        pytest.param({"clusters": {"near": {**NEAR, "python": "p\n"}}}, "python", id="a line end"),
        pytest.param({"stores": ["file:///a/../b"]}, "stores", id="another folder"),
        pytest.param({"speed": "high"}, "speed", id="unknown"),
        pytest.param({"audit_days": 29}, "audit_days", id="an audit log that is too short"),
        pytest.param({"trusted_proxies": ["*"]}, "trusted_proxies", id="every proxy"),
        pytest.param({"trusted_proxies": ["10.0.0.1/8"]}, "trusted_proxies", id="no network"),
    ],
)
def test_an_invalid_value_is_refused_by_its_key(values: dict[str, Any], key: str):
    with pytest.raises(InputError) as error:
        parse_config({"clusters": {"near": NEAR}, **values})
    assert any(key in fault.key for fault in error.value.faults)


def test_a_folder_that_a_shell_would_interpret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my service").mkdir()
    monkeypatch.chdir(tmp_path / "my service")
    with pytest.raises(InputError, match=r"stores: .*my service"):
        parse_config({"clusters": {"near": NEAR}})


def test_clusters_are_connected_by_name(tmp_path: Path):
    config = parse_config({"clusters": {"near": NEAR, "far": {**NEAR, "code": str(ROOT)}}})
    clusters = connect_clusters(config)
    assert {name: cluster.name for name, cluster in clusters.items()} == {
        "near": "near",
        "far": "far",
    }
    broken = {"clusters": {"far": {**NEAR, "code": str(tmp_path)}}}
    with pytest.raises(InputError, match="has no slora"):
        connect_clusters(parse_config(broken))
