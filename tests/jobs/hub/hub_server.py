"""A stand-in for a model hub, held to the API that huggingface_hub 2.4 speaks.

Repositories are made once, large files go to LFS by their SHA-256, a commit is all or nothing and
refuses a large file that has not arrived, and the header of a README.md is validated.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml

TOKEN = "hf_secretsecretsecret"


@dataclass
class Hub:
    """What a hub holds, what it was asked, and where it fails."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fails_at: str = ""
    """A part of the path that is answered with 500, once."""

    def handle(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Return status and JSON of the answer to a request."""
        self.requests.append(f"{method} {path}")
        if self.fails_at and self.fails_at in path:
            self.fails_at = ""
            return 500, {"error": "Internal Error"}
        if path.startswith("/lfs/") and method == "PUT":
            return self.store_blob(path.removeprefix("/lfs/"), body)
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return validate_card(json.loads(body)["content"])
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            return self.plan_upload(json.loads(body))
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(\w+)/main(\?.*)?", path):
            name, act = match[1], match[2]
            if name not in self.repositories:
                return 404, {"error": "Repository not found"}
            return self.act(name, act, body)
        return 404, {"error": f"no such route: {path}"}

    def act(self, name: str, act: str, body: bytes) -> tuple[int, Any]:
        files = self.repositories[name]
        if act == "tree":
            return 200, [
                {"type": "file", "path": path, "size": len(data), "oid": hash_git(data)}
                for path, data in files.items()
            ]
        if act == "revision":
            return 200, {"id": name, "sha": f"{len(self.commits):040x}", "siblings": []}
        if act == "preupload":
            return 200, {
                "files": [self.choose_mode(files, item) for item in json.loads(body)["files"]]
            }
        assert act == "commit"
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def create(self, request: dict[str, Any]) -> tuple[int, Any]:
        name = f"{request['organization']}/{request['name']}"
        url = f"{self.url}/{name}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": url}
        self.repositories[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.private[name] = request.get("visibility") == "private"
        return 200, {"url": url, "id": "0"}

    def choose_mode(self, files: dict[str, bytes], item: dict[str, Any]) -> dict[str, Any]:
        path = item["path"]
        assert base64.b64decode(item["sample"]) or not item["size"]
        is_large = path.endswith(".safetensors")
        data = files.get(path)
        oid = None
        if data is not None:
            oid = hashlib.sha256(data).hexdigest() if is_large else hash_git(data)
        mode = "lfs" if is_large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def plan_upload(self, request: dict[str, Any]) -> tuple[int, Any]:
        assert request["operation"] == "upload" and request["hash_algo"] == "sha256"
        objects = []
        for item in request["objects"]:
            actions = {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}
            objects.append({**item, **({} if item["oid"] in self.blobs else {"actions": actions})})
        return 200, {"transfer": "basic", "objects": objects}

    def store_blob(self, oid: str, data: bytes) -> tuple[int, Any]:
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "the digest differs"}
        self.blobs[oid] = data
        return 200, {}

    def commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header, *operations = lines
        assert header["key"] == "header"
        files = dict(self.repositories[name])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return 400, {"error": f"LFS object {value['oid']} is missing"}
                files[value["path"]] = self.blobs[value["oid"]]
            else:
                assert operation["key"] == "deletedFile"
                del files[value["path"]]
        self.repositories[name] = files
        self.commits.append(header["value"]["summary"])
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}


def hash_git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def validate_card(content: str) -> tuple[int, Any]:
    """Refuse a header that is no YAML mapping, or has values that the hub does not take."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        header = None
    is_valid = (
        isinstance(header, dict)
        and isinstance(header.get("license"), str)
        and all(isinstance(tag, str) for tag in header.get("tags", []))
        and re.fullmatch(r"[\w.-]+/[\w.-]+", header.get("base_model", "a/b")) is not None
    )
    if not is_valid:
        return 400, {"errors": [{"message": "the metadata is not valid"}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Answer on a port of this machine until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization") or ""
            status, value = hub.handle(self.command, self.path, body, token)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        hub.url = f"http://127.0.0.1:{http.server_port}"
        thread = Thread(target=http.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            http.shutdown()
            thread.join()
