"""What an attack reached: judged by lab's objects and rows, and by every answer to mallory."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from jobs.errors import NotInStore
from jobs.store.base import ObjectStore
from jobs.store.keys import HIDDEN_PREFIX
from jobs.store.local_leftovers import LOCK_NAME
from tests.benchmarks.tenants.tenant_world import LAB, TenantWorld

MAX_WAIT_S = 30.0
MANIFEST = "/manifest.json"
TOO_MANY, SERVER_ERROR = 429, 500
UNFINISHED_OF_LAB = f"projects/{LAB}/{HIDDEN_PREFIX}/"
"""Where a store in a folder keeps a write of lab's until it is complete: lab's schedule writes."""


@dataclass
class Attack:
    """One row of the table."""

    name: str
    tries: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """What else is wrong: an answer of 500, a loop that is late."""

    @property
    def is_good(self) -> bool:
        """Return whether nothing of lab's was reached, and the service is well."""
        return not (self.reads or self.writes or self.stops or self.faults)

    def count(self, outcome: str, tries: int = 1) -> None:
        """Count tries with this outcome."""
        self.tries += tries
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + tries

    def describe_outcomes(self) -> str:
        """Return the outcomes with their numbers, the most frequent first."""
        ordered = sorted(self.outcomes.items(), key=lambda item: -item[1])
        return ", ".join(f"{count} x {outcome}" for outcome, count in ordered) or "nothing"


class Watch:
    """Watches lab and the service while mallory attacks."""

    def __init__(self, world: TenantWorld) -> None:
        self.world, self.secrets = world, world.list_secrets()
        self.names = dict[str, str]()
        """Names of lab's objects, which an answer may only have if the request had them."""
        self._objects = dict[str, str]()
        self._rows = dict[str, Any]()
        self._taken_names = set[str]()
        """Names of lab that something of mallory's has, too: they are no sign of lab any more."""

    def remember(self, names: Mapping[str, str]) -> None:
        """Remember what lab has now, which no attack may change."""
        self.names = dict(names)
        self._objects = self._hash_objects()
        self._rows = self._read_rows()

    def find_leaks(self, text: str, request: str = "") -> list[str]:
        """Return the secrets and names of lab and the service in a text."""
        leaks = [name for name, secret in self.secrets.items() if secret in text]
        return leaks + [
            name
            for name, word in self.names.items()
            if word in text and word not in request and name not in self._taken_names
        ]

    def send(
        self, client: httpx.Client, attack: Attack, method: str, path: str, **body: Any
    ) -> Any:
        """Send a request of mallory's, count its answer, and look for leaks in it."""
        request = f"{method} {path} {describe_body(body)}"
        try:
            response = send_patiently(client, method, path, **body)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            attack.count(type(error).__name__)
            return None
        attack.count(str(response.status_code))
        if method == "POST" and response.status_code in (httpx.codes.CREATED, httpx.codes.OK):
            # A run of mallory's own may have the name of lab's adapter: it lies in another part.
            self._taken_names |= {name for name, word in self.names.items() if word in request}
        answer = f"{response.headers} {response.text}"
        attack.reads += [f"{leak} in {request[:200]}" for leak in self.find_leaks(answer, request)]
        if response.status_code >= SERVER_ERROR:
            attack.faults.append(f"{response.status_code} for {request[:200]}: {answer[-300:]}")
        return response

    def judge(self, attack: Attack) -> None:
        """Compare lab's objects and rows with what was remembered, and look at the service."""
        objects, rows = self._hash_objects(), self._read_rows()
        attack.writes += [
            f"{key} of the store"
            for key, digest in self._objects.items()
            if digest != objects.get(key)
        ]
        attack.writes += [f"{key} is new" for key in self._list_unexplained(objects)]
        attack.writes += [
            f"{name}: {self._rows[name]} -> {rows.get(name)}"
            for name in self._rows
            if self._rows[name] != rows.get(name) and name != "held run"
        ]
        if self._rows.get("held run") != rows.get("held run"):
            attack.stops.append(f"{self._rows.get('held run')} -> {rows.get('held run')}")
        attack.faults += self.find_illness()
        # Reported once: the next attack is compared with what is there now.
        self._objects = {key: objects.get(key, "gone") for key in {**self._objects, **objects}}
        self._rows = rows

    def find_illness(self) -> list[str]:
        """Return what is wrong with the service."""
        world, faults = self.world, list[str]()
        if world.process.poll() is not None:
            return [f"the service ended with {world.process.returncode}"]
        for path in ("/healthz", "/readyz"):
            response = httpx.get(f"{world.address}{path}", timeout=60)
            if response.status_code != 200:
                faults.append(f"{path}: {response.text[:300]}")
        return faults

    def find_stolen(self) -> list[str]:
        """Return the secrets of lab in what mallory can read: its part of each store."""
        leaks = list[str]()
        for root in self.world.stores:
            store = self.world.open_root(root)
            for key in list(store.list("projects/mallory/")):
                text = _read(store, key)
                leaks += [f"{name} in {key}" for name, secret in self.secrets.items()
                          if secret.encode() in text]  # fmt: skip
        return leaks

    def _list_unexplained(self, objects: Mapping[str, str]) -> list[str]:
        """Return the new keys that lab's own runs do not explain; wait for a commit to end."""
        store = self.world.open_root()
        unfinished = {*store.list(UNFINISHED_OF_LAB)} - {UNFINISHED_OF_LAB + LOCK_NAME}
        new = sorted(set(objects) - set(self._objects) | unfinished)
        until = time.monotonic() + MAX_WAIT_S
        while new:
            blobs = self._list_blobs()
            new = [
                key
                for key in new
                if key not in blobs and (key not in unfinished or store.head(key) is not None)
            ]
            if not new or time.monotonic() > until:
                break
            time.sleep(0.5)
        return new

    def _list_blobs(self) -> set[str]:
        """Return the keys of the blobs that the manifests of lab's adapters name."""
        store, start = self.world.open_root(), f"projects/{LAB}/"
        manifests = [key for key in store.list(f"{start}adapters/") if key.endswith(MANIFEST)]
        digests = re.findall(
            r"\b[0-9a-f]{64}\b", "".join(str(_read(store, key)) for key in manifests)
        )
        return {f"{start}blobs/sha256/{digest[:2]}/{digest[2:]}" for digest in digests}

    def _is_expected(self, key: str) -> bool:
        """Return whether lab's own runs, or mallory in its own prefix, may have made a key."""
        if key.startswith("projects/mallory/"):
            return True
        parts = key.split("/")
        is_lab = key.startswith((f"projects/{LAB}/runs/", f"projects/{LAB}/adapters/"))
        return is_lab and parts[3].startswith(("minutely", "probe"))

    def _hash_objects(self) -> dict[str, str]:
        """Hash what lies in the first store outside of mallory's prefix."""
        store = self.world.open_root()
        return {
            key: hashlib.sha256(_read(store, key)).hexdigest()
            for key in list(store.list(""))
            if not key.startswith(("projects/mallory/", UNFINISHED_OF_LAB))
            and not self._is_expected(key)
        }

    def _read_rows(self) -> dict[str, Any]:
        """Read what the registry says of lab, but for what its own schedule changes."""
        call = self.world.call
        schedules = call("GET", "/v1/schedules?project=lab")["items"]
        rows: dict[str, Any] = {
            "project": {**call("GET", "/v1/projects/lab"), "usage": None},
            "projects": [item["name"] for item in call("GET", "/v1/projects")["items"]],
            "schedules": [
                {key: row[key] for key in ("name", "cron", "spec", "paused")} for row in schedules
            ],
            "tokens": [row for row in call("GET", "/v1/tokens")["items"] if row["project"] == LAB],
        }
        if (adapter := self.names.get("adapter of lab")) is not None:
            rows["adapter"] = call("GET", f"/v1/adapters/{adapter}?store={self.world.lab.store}")
        for name in ("run of lab", "held run of lab"):
            if (run := self.names.get(name)) is not None:
                row = call("GET", f"/v1/runs/{run}")
                rows[name.removesuffix(" of lab")] = {
                    key: row[key] for key in ("status", "stop", "attempt", "project")
                }
        return rows


def send_patiently(client: httpx.Client, method: str, path: str, **body: Any) -> httpx.Response:
    """Send a request, and again when the service asks to wait."""
    while True:
        response = client.request(method, path, **body)
        if response.status_code != TOO_MANY:
            return response
        time.sleep(min(MAX_WAIT_S, float(response.headers.get("Retry-After", 1))))


def describe_body(body: Mapping[str, Any]) -> str:
    """Return what a request says beside its path, as text."""
    return json.dumps(body, default=str)


def _read(store: ObjectStore, key: str) -> bytes:
    try:
        return store.get(key)
    except NotInStore:
        return b""
