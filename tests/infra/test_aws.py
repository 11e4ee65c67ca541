"""The cluster launcher's file by Ray's own schema; the IAM policy by what the store calls."""

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
    "list_objects": {LIST},
    "list_objects_v2": {LIST},
    "list_parts": {"s3:ListMultipartUploadParts"},
    "put_object": {WRITE},
    "upload_part": {WRITE},
}
"""What each call of S3 needs, by AWS' list of actions."""


def launcher() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
    return found


def schema() -> dict[str, Any]:
    path = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_the_launchers_file_holds_to_rays_own_schema():
    jsonschema.validate(launcher(), schema())


def test_a_key_that_ray_does_not_know_is_refused():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**launcher(), "max_worker": 3}, schema())


def test_workers_are_spot_and_the_head_is_not():
    found = launcher()
    kinds = found["available_node_types"]
    head = kinds.pop(found["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    for kind in kinds.values():
        assert kind["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_every_ray_of_it_starts_with_its_token():
    found = launcher()
    assert any(path.endswith("/.ray/auth_token") for path in found["file_mounts"])
    for commands in (found["head_start_ray_commands"], found["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start


def statements() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(POLICY.read_text(encoding="utf-8"))["Statement"]
    return found


def calls(path: Path) -> Iterator[str]:
    """The methods of a boto3 client that a file calls, and the pages that it asks for."""
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


def called() -> set[str]:
    return {call for path in (ROOT / "jobs").rglob("*.py") for call in calls(path)}


def test_every_call_of_the_store_is_known_with_its_rights():
    assert called() == set(RIGHTS)


def test_the_policy_allows_what_the_store_calls_and_nothing_else():
    needed = set().union(*(RIGHTS[call] for call in called()))
    allowed = [action for statement in statements() for action in statement["Action"]]
    assert sorted(allowed) == sorted(needed)


def test_objects_are_named_below_the_prefix_and_names_are_asked_of_the_bucket():
    objects, names = statements()
    assert objects["Resource"].endswith("/PREFIX/*")
    assert names["Resource"].endswith(":BUCKET")
    # If it exists: a look at an object names no prefix, and without this right S3 answers that it
    # may not be seen, where the store has to hear that it is not there.
    assert names["Condition"] == {"StringLikeIfExists": {"s3:prefix": ["PREFIX/*"]}}
    assert all(one["Effect"] == "Allow" and "*" not in one["Action"] for one in (objects, names))
