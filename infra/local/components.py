"""The components: how each is started, and when it is ready."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.paths import (
    BUCKET,
    RAY,
    ROOT,
    SERVICE,
    SERVING,
    STORAGE,
    STORE,
    StackPaths,
    build_s3_environment,
    clean_environment,
)
from infra.local.project_identities import list_projects
from slora.serving.launch import ServerOptions, build_command, build_environment, link_package

REQUEST_TIMEOUT_S = 5.0
OBJECT_STORE_BYTES = 200_000_000
"""Shared memory for Ray's objects, of which a run needs almost none."""


@dataclass(frozen=True)
class Component:
    """A program of the stack."""

    name: str
    label: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    is_ready: Callable[[], bool]
    start_timeout_s: float
    """Long enough for a machine under load."""


def make_storage(paths: StackPaths, ports: Mapping[str, int]) -> Component:
    """Return SeaweedFS as an S3 server."""
    command = (
        find_program("weed"), "mini", f"-dir={paths.objects}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={ports['master']}", f"-volume.port={ports['volume']}",
        f"-filer.port={ports['filer']}", f"-s3.port={ports['s3']}",
        f"-s3.config={paths.identities}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false",
        "-admin.ui=false", "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
    )  # fmt: skip
    return Component(
        STORAGE,
        "SeaweedFS",
        command,
        clean_environment(os.environ),
        lambda: _is_bucket_writable(paths, _make_url(ports["s3"])),
        start_timeout_s=120,
    )


def make_ray(paths: StackPaths, ports: Mapping[str, int], scratch: Path, cpus: int) -> Component:
    """Return a Ray head, whose workers inherit the variables of the store and of the token."""
    # Ray would replace 127.0.0.1 by the address of the host, where two stacks would collide.
    number = int(sha256(str(paths.folder).encode()).hexdigest(), 16) % (254 * 254)
    command = (
        find_program("ray"), "start", "--head", "--block", "--disable-usage-stats",
        f"--num-cpus={cpus}", f"--temp-dir={scratch / 'r'}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--node-ip-address=127.78.{1 + number // 254}.{1 + number % 254}", "--port=0",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={ports['dashboard']}",
        "--dashboard-agent-listen-port=0",
    )  # fmt: skip
    environment = {
        **_with_packages(clean_environment(os.environ)),
        **build_s3_environment(paths, _make_url(ports["s3"])),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(paths.ray_token),
        # Temporary files of killed processes are removed with those of Ray.
        "TMPDIR": str(scratch / "tmp"),
    }
    jobs_url = f"{_make_url(ports['dashboard'])}/api/jobs/"
    return Component(
        RAY,
        "Ray",
        command,
        environment,
        lambda: _is_ok(jobs_url, token=paths.ray_token.read_text().strip()),
        start_timeout_s=120,
    )


def make_service(paths: StackPaths, ports: Mapping[str, int]) -> Component:
    """Return the service, which runs the code of this checkout and shares its files with Ray."""
    port = ports["service"]
    command = (
        find_program("slora"), "serve", "--config", str(paths.config),
        "--host", "127.0.0.1", "--port", str(port),
    )  # fmt: skip
    environment = {
        **_with_packages(clean_environment(os.environ)),
        **build_s3_environment(paths, _make_url(ports["s3"])),
    }
    return Component(
        SERVICE,
        "service",
        command,
        environment,
        lambda: _is_ok(f"{_make_url(port)}/readyz") and _is_ray_visible(paths, _make_url(port)),
        start_timeout_s=60,
    )


def make_serving(
    paths: StackPaths, ports: Mapping[str, int], python: Path, model: Path
) -> Component:
    """Return a vLLM server with the plug-in; `python` has vLLM. It shares the CPUs with Ray."""
    options = ServerOptions(str(model), ports["serving"], dtype="float32", eager=True)
    environment = {
        **build_environment(clean_environment(os.environ)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(link_package(paths.folder / "code")),
        "VLLM_API_KEY": paths.serving_key.read_text().strip(),
        # It would bind its threads to cores of its own.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    return Component(
        SERVING,
        "vLLM",
        build_command(str(python), options),
        environment,
        lambda: _is_ok(f"{_make_url(ports['serving'])}/health"),
        start_timeout_s=300,
    )


def format_config(paths: StackPaths, ports: Mapping[str, int]) -> str:
    """Return the configuration of the service, as YAML."""
    cluster = {
        "address": _make_url(ports["dashboard"]),
        "token_file": str(paths.ray_token),
        "code": "image",
        "python": sys.executable,
        "shared_filesystem": True,
    }
    config: dict[str, Any] = {
        "name": "local",
        "database": f"sqlite:///{paths.database}",
        "stores": [STORE, f"file://{ROOT / '.cache/store'}"],
        "clusters": {"default": cluster},
        "poll_interval_s": 1.0,
    }
    if files := list_projects(paths):
        config["projects"] = {name: {"credentials_file": str(file)} for name, file in files.items()}
        config["jobs"] = {"url": _make_url(ports["service"]), "key_file": str(paths.job_key)}
    if "serving" in ports:
        endpoint = {
            "url": _make_url(ports["serving"]),
            "api_key_file": str(paths.serving_key),
            "folder": str(paths.folder / "adapters"),
            "projects": ["default", *files],
        }
        config["serving"] = {"local": endpoint}
    return yaml.safe_dump(config, sort_keys=False)


def find_program(name: str) -> str:
    """Return the path of a program that is installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def _make_url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _with_packages(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the packages of this checkout first, and without the hub."""
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def _is_ok(url: str, token: str | None = None) -> bool:
    return _fetch(url, token)[0] == 200


def _is_ray_visible(paths: StackPaths, url: str) -> bool:
    """Return whether the service reaches Ray; True if its first token no longer exists."""
    if not paths.service_token.exists():
        return True
    status, body = _fetch(f"{url}/v1/clusters", paths.service_token.read_text().strip())
    if status == 200:
        return all(cluster["up"] for cluster in json.loads(body)["items"])
    return status in (401, 403)


def _fetch(url: str, token: str | None) -> tuple[int, bytes]:
    """Return the status and the body; the status is 0 without a response."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    # The service is local, so no proxy is used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(url, headers=headers), timeout=REQUEST_TIMEOUT_S
        ) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except OSError:
        return 0, b""


def _is_bucket_writable(paths: StackPaths, url: str) -> bool:
    """Return whether the bucket exists or can be created, and an object can be written to it."""
    lines = paths.credentials.read_text().split()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=lines[3],
        aws_secret_access_key=lines[-1],
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=REQUEST_TIMEOUT_S,
            read_timeout=REQUEST_TIMEOUT_S,
            proxies={},
        ),
    )
    try:
        if BUCKET not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="up", Body=b"")
    except (BotoCoreError, ClientError):
        return False
    return True
