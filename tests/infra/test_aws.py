"""The launcher file matches Ray's schema, and the IAM policy the calls of the store."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "infra/aws/cluster.yaml"
POLICY = ROOT / "infra/aws/iam-policy.json"

READ, WRITE, LIST = "s3:GetObject", "s3:PutObject", "s3:ListBucket"
RIGHTS = {
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "complete_multipart_upload": {WRITE},
    "copy": {READ, WRITE},
    "copy_object": {READ, WRITE},
    "create_multipart_upload": {WRITE},
    "delete_object": {"s3:DeleteObject"},
    "get_object": {READ},
    "head_object": {READ},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "list_objects_v2": {LIST},
    "list_parts": {"s3:ListMultipartUploadParts"},
    "put_object": {WRITE},
    "upload_part": {WRITE},
}
"""Rights that each S3 call requires, by the list of actions of AWS."""


def load_launcher() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    return document


def load_schema() -> dict[str, Any]:
    path = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_the_launcher_file_matches_rays_schema():
    jsonschema.validate(load_launcher(), load_schema())


def test_an_unknown_key_is_rejected():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**load_launcher(), "max_worker": 3}, load_schema())


def test_workers_are_spot_and_the_head_is_not():
    document = load_launcher()
    kinds = document["available_node_types"]
    head = kinds.pop(document["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    for kind in kinds.values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_every_ray_starts_with_its_token():
    document = load_launcher()
    assert any(path.endswith("/.ray/auth_token") for path in document["file_mounts"])
    for commands in (document["head_start_ray_commands"], document["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start


def load_statements() -> list[dict[str, Any]]:
    document: list[dict[str, Any]] = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
    return document


def list_calls(path: Path) -> Iterator[str]:
    """Yield the methods and paginators of boto3 clients that a file calls."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if not _is_client(node.func.value):
            continue
        if node.func.attr == "get_paginator":
            (page,) = node.args
            assert isinstance(page, ast.Constant)
            yield str(page.value)
        else:
            yield node.func.attr


def _is_client(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in ("client", "_client")


def list_called() -> set[str]:
    return {call for path in (ROOT / "jobs").rglob("*.py") for call in list_calls(path)}


def test_every_call_of_the_store_has_known_rights():
    assert list_called() == set(RIGHTS)


def test_the_policy_allows_what_the_store_calls_and_nothing_else():
    needed = set().union(*(RIGHTS[call] for call in list_called()))
    allowed = [action for statement in load_statements() for action in statement["Action"]]
    assert sorted(allowed) == sorted(needed)


def test_rights_are_limited_to_the_prefix():
    objects, names = load_statements()
    assert objects["Resource"].endswith("/PREFIX/*")
    assert names["Resource"].endswith(":BUCKET")
    # IfExists, because HeadObject has no prefix. Without this right, S3 responds with 403 to a
    # missing object, where the store requires 404.
    assert names["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["PREFIX/*"]}}
    assert all(
        statement["Effect"] == "Allow" and "*" not in statement["Action"]
        for statement in (objects, names)
    )
