"""The world of the campaign: a service as a process, Ray, an S3 server, and two projects.

Without its real parts the service has a scripted cluster and a store in a folder, as for tests.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from infra.local.paths import format_profile, write_private
from infra.local.project_identities import KEYS, make_identity
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from orchestrator.registry.migrate import upgrade
from tests.benchmarks.tenants.hostile_job import CANARY_NODE, RESULTS
from tests.ray_head import Head, free_ports, ray_head
from tests.storage.weed import BUCKET, Weed
from tests.tiny import chat_rows, hollow_model

ROOT = Path(__file__).parents[3]
LAB, MALLORY = "lab", "mallory"
LAB_ADAPTER = "labchat"
START_S = 120.0
PARKED = "parked"
"""A cluster that does not answer: the runs that lab submits during the load stay in its queue."""
FAST_LIMITS = {"token_requests_per_s": 5000, "project_requests_per_s": 5000}
"""A test on a scripted cluster does not wait for the limits of a real service."""
MAX_LAB_RUNS, MAX_MALLORY_RUNS = 4, 2


@dataclass(frozen=True)
class Tenant:
    """A project: its token, its folder on the host, and its part of the store."""

    name: str
    token: str
    secret: str
    folder: Path
    store: str
    keys: dict[str, str]
    """Its keys of the S3 server."""


class TenantWorld:
    """The service and everything below it; its processes end with the stack."""

    def __init__(self, folder: Path, stack: ExitStack, *, is_real: bool) -> None:
        self.folder, self.is_real, self._stack = folder, is_real, stack
        folder.chmod(0o755)
        self.results = folder / "results"
        self.results.mkdir()
        self.identities = {name: make_identity(name, f"s3://{BUCKET}/store") for name in TENANTS}
        self.canaries = {name: f"CANARY{secrets.token_hex(12)}" for name in CANARIES}
        stack.callback(_restore, dict(os.environ))
        self.head: Head | None = None
        self._start_parts()
        self.stores = self._name_stores()
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self.log_file = folder / "service.log"
        self.process = self._start_service(port)
        stack.callback(self._end_service)
        self._wait_until_ready()
        self.admin = self._make_client(self.service_token)
        self.lab, self.mallory = (self._make_tenant(name) for name in TENANTS)

    @property
    def service_token(self) -> str:
        return (self.folder / "service" / "service-token").read_text().strip()

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'service' / 'registry.db'}"

    def open_root(self, store: str | None = None) -> ObjectStore:
        """Open a whole store, the first one by default, as the operator does."""
        return open_store(store or self.stores[0])

    def list_secrets(self) -> dict[str, str]:
        """Return the texts that mallory may never see, by name."""
        keys = {
            f"S3 secret of {name}": str(identity["credentials"][0][KEYS[1]])
            for name, identity in self.identities.items()
            if name != MALLORY
        }
        files = {
            "service token": self.service_token,
            "job key": (self.folder / "service" / "job-key").read_text().strip(),
        }
        if self.is_real:
            files["S3 secret of the service"] = self.weed.secret
            files["Ray token"] = (self.folder / "ray" / "token").read_text().strip()
        return {**self.canaries, **keys, **files, "token of lab": self.lab.secret}

    def call(self, method: str, path: str, **options: Any) -> Any:
        """Send a request as the administrator. Raise HTTPStatusError."""
        response = self.admin.request(method, path, **options)
        response.raise_for_status()
        return response.json() if response.content else None

    def make_client(self, tenant: Tenant) -> httpx.Client:
        """Return a client with a project's token."""
        return self._make_client(tenant.secret)

    def make_spec(self, tenant: Tenant, name: str, **changes: Any) -> dict[str, Any]:
        """Make the spec of a small run of a project."""
        return {
            "name": name,
            "model": {"path": str(tenant.folder / "model")},
            "data": {"train": str(tenant.folder / "rows.jsonl"), "max_length": 32},
            "method": {"rank": 2},
            "train": {"steps": 2, "batch_size": 2},
            **changes,
        }

    def _start_parts(self) -> None:
        environment = {RESULTS: str(self.results), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        if not self.is_real:
            os.environ.update(environment)
            return
        self.weed = Weed(self.folder / "weed", identities=list(self.identities.values()))
        self.weed.start()
        self._stack.callback(self.weed.kill)
        # The node has keys of its own, which no job of a project may see.
        node = {**self.weed.environment, "AWS_SECRET_ACCESS_KEY": CANARY_NODE}
        os.environ.update({**environment, **node, "AWS_ACCESS_KEY_ID": "node"})
        self.head = self._stack.enter_context(ray_head(self.folder / "ray", cpus=8))
        self.head.wait_for_agent()
        os.environ.update(self.weed.environment)

    def _name_stores(self) -> list[str]:
        files = f"file://{self.folder / 'files'}"
        return [f"s3://{BUCKET}/store", files] if self.is_real else [files, f"{files}-2"]

    def _start_service(self, port: int) -> subprocess.Popen[bytes]:
        folder = self.folder / "service"
        folder.mkdir(mode=0o700)
        upgrade(self.database)
        config = folder / "config.json"
        config.write_text(json.dumps(self._make_config(folder)))
        command = [str(Path(sys.executable).with_name("slora")), "serve", "--config", str(config)]
        if not self.is_real:
            command = [sys.executable, "-m", "tests.benchmarks.tenants.fake_service", str(config)]
        with self.log_file.open("ab") as log:
            return subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log)

    def _make_config(self, folder: Path) -> dict[str, Any]:
        write_private(folder / "job-key", secrets.token_hex(32))
        for name, identity in self.identities.items():
            pair = identity["credentials"][0]
            write_private(folder / name, format_profile(*(pair[key] for key in KEYS)))
        write_private(folder / "hub-token", self.canaries["secret of lab"])
        cluster = {"address": "http://127.0.0.1:1", "shared_filesystem": True}
        if self.head is not None:
            token = str(self.folder / "ray" / "token")
            cluster |= {"address": self.head.url, "token_file": token, "python": self._wrap()}
        files = {name: {"credentials_file": str(folder / name)} for name in TENANTS}
        files[LAB]["secrets"] = {"HF_TOKEN": str(folder / "hub-token")}  # type: ignore[assignment]
        return {
            "name": "tenants",
            "database": self.database,
            "stores": self.stores,
            "clusters": {
                "default": {**cluster, "max_runs": MAX_LAB_RUNS + MAX_MALLORY_RUNS},
                PARKED: {"address": "http://127.0.0.1:1"},
            },
            "projects": files,
            "jobs": {"url": self.address, "key_file": str(folder / "job-key")},
            "poll_interval_s": 0.5,
            "lease_s": 10,
            "http": {} if self.is_real else FAST_LIMITS,
        }

    def _wrap(self) -> str:
        """Write the program that the cluster starts as its Python: it runs the small job."""
        wrapper = self.folder / "python"
        wrapper.write_text(
            f"#!/bin/sh\nshift 2\ncase $4 in load-*) exec sleep 900;; esac\n"
            f'exec {sys.executable} -m tests.benchmarks.tenants.hostile_job "$@"\n'
        )
        wrapper.chmod(0o755)
        return str(wrapper)

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                if httpx.get(f"{self.address}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                if self.process.poll() is not None or time.monotonic() > until:
                    text = self.log_file.read_text()[-2000:]
                    raise RuntimeError(f"the service did not start: {text}") from None
            time.sleep(0.1)

    def _make_tenant(self, name: str) -> Tenant:
        folder = self.folder / name
        folder.mkdir()
        hollow_model(folder / "model")
        chat_rows(folder / "rows.jsonl", 8)
        if name == LAB:
            row = {"messages": [{"role": "user", "content": self.canaries["file of lab"]},
                                {"role": "assistant", "content": "no"}]}  # fmt: skip
            with (folder / "rows.jsonl").open("a") as rows:
                rows.write(json.dumps(row) + "\n")
        runs = MAX_LAB_RUNS if name == LAB else MAX_MALLORY_RUNS
        body = {"name": name, "places": [str(folder)], "models": [], "max_runs": runs}
        self.call("POST", "/v1/projects", json=body)
        body = {"label": f"{name}-ci", "scope": "submitter", "project": name}
        token = self.call("POST", "/v1/tokens", json=body)
        pair = self.identities[name]["credentials"][0]
        keys = {
            "aws_access_key_id": pair[KEYS[0]],
            "aws_secret_access_key": pair[KEYS[1]],
        }
        store = f"{self.stores[0]}/projects/{name}"
        return Tenant(name, token["id"], token["secret"], folder, store, keys)

    def _make_client(self, secret: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"}
        client = httpx.Client(base_url=self.address, headers=headers, timeout=60)
        self._stack.callback(client.close)
        return client

    def _end_service(self) -> None:
        self.process.kill()
        self.process.wait()


TENANTS = (LAB, MALLORY)
CANARIES = ("secret of lab", "file of lab", "object of lab")


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
