"""Identities of projects on the local S3 server: each reaches its own part of the store only."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infra.local.paths import STORE, StackPaths, format_profile, write_private

ACTIONS = ("Read", "Write", "List")
KEYS = ("accessKey", "secretKey")


def find_missing_projects(paths: StackPaths, names: Iterable[str]) -> list[str]:
    """Return the projects that lack an identity or the file with its key."""
    known = {identity["name"] for identity in _read_identities(paths)["identities"]}
    return [
        name
        for name in dict.fromkeys(names)
        if make_identity_name(name) not in known or not paths.project_credentials(name).exists()
    ]


def add_projects(paths: StackPaths, names: Iterable[str]) -> None:
    """Give each project a new identity, and write a file with its key.

    The S3 server and the service read them when they start.
    """
    identities = _read_identities(paths)
    for name in names:
        file = paths.project_credentials(name)
        identity = make_identity(name)
        others = [entry for entry in identities["identities"] if entry["name"] != identity["name"]]
        identities["identities"] = [*others, identity]
        file.parent.mkdir(mode=0o700, exist_ok=True)
        write_private(file, format_profile(*(identity["credentials"][0][key] for key in KEYS)))
        # Last: an identity without its file is replaced the next time.
        write_private(paths.identities, json.dumps(identities))


def list_projects(paths: StackPaths) -> dict[str, Path]:
    """Return the file with the key of each project, by name."""
    files = paths.project_credentials("x").parent.glob("*")
    return {file.name: file for file in sorted(files) if not file.name.endswith(".partial")}


def make_identity(project: str, store: str = STORE) -> dict[str, Any]:
    """Make the identity of a project, with a new key, in SeaweedFS's format."""
    prefix = f"{store.removeprefix('s3://').rstrip('/')}/projects/{project}/*"
    pair = dict(zip(KEYS, (secrets.token_hex(10), secrets.token_urlsafe(30)), strict=True))
    actions = [f"{action}:{prefix}" for action in ACTIONS]
    return {"name": make_identity_name(project), "credentials": [pair], "actions": actions}


def make_identity_name(project: str) -> str:
    """Return the name of a project's identity, which is never that of the service."""
    return f"project-{project}"


def _read_identities(paths: StackPaths) -> dict[str, Any]:
    identities: dict[str, Any] = json.loads(paths.identities.read_text(encoding="utf-8"))
    return identities
