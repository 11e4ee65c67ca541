"""Attacks by requests: numbers, bodies, stores, names, places, routes, and forged addresses."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx

from orchestrator.api.rate_limits import BURST_S
from orchestrator.control.config import HttpLimits
from tests.benchmarks.tenants.evidence import Attack, Watch
from tests.benchmarks.tenants.tenant_world import TenantWorld

MARK = '"PILL"'
NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"train": {"steps": "PILL", "batch_size": 10**6}}, str(10**18)),
    "batch": ({"train": {"steps": 10**9, "batch_size": "PILL"}}, str(10**9)),
    "cpus": ({"cluster": {"cpus_per_worker": "PILL"}}, str(10**4299)),
    "workers": ({"cluster": {"workers": "PILL", "cpus_per_worker": 10**5}}, str(10**5)),
    "length": (
        {"train": {"epochs": 3}, "data": {"train": "/d", "max_length": "PILL"}}, str(10**320)
    ),
    "long": ({"train": {"steps": "PILL"}}, "9" * 100_000),
    "infinite": ({"train": {"steps": 1, "learning_rate": "PILL"}}, "1e999"),
    "no number": ({"train": {"steps": 1, "learning_rate": "PILL"}}, "NaN"),
    "seed": ({"train": {"steps": 1, "seed": "PILL"}}, str(-(2**63) - 1)),
    "priority": ({"priority": "PILL"}, str(2**63)),
}  # fmt: skip
BODIES: dict[str, bytes] = {
    "100,000 unknown keys": json.dumps({"spec": {f"k{n}": n for n in range(100_000)}}).encode()[:-2]
    + b"}}",
    "unknown keys in a section": json.dumps(
        {"spec": {"name": "a", "train": {f"k{n}": 1 for n in range(60_000)}}}
    ).encode(),
    "nested lists": b'{"spec":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested objects": b'{"spec":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "open lists": b"[" * 900_000,
    "too large": b'{"spec": {"name": "' + b"x" * (1 << 20) + b'"}}',
    "duplicate keys": b'{"spec": {}, "spec": {}}',
    "surrogates": b'{"spec": {"name": "\\ud800"}}',
    "no UTF-8": b"\xff\xfe\x00",
    "NUL": b'{"spec": {"name": "a\\u0000b"}}',
}
FORGED_ADDRESSES = ("127.0.0.2", "10.0.0.1", "::1", "lab", "127.0.0.1, 10.9.8.7", "x" * 4000)
FLOOD = 600
JSON = {"Content-Type": "application/json"}
PLAIN_ATTACKS = (
    "numbers", "bodies", "stores", "projects", "names", "places", "masks", "routes", "addresses"
)  # fmt: skip
SCHEDULE = {"cron": "* * * * *", "kind": "finetune"}


class RequestAttacks:
    """Mallory's requests."""

    def __init__(self, world: TenantWorld, watch: Watch, client: httpx.Client) -> None:
        self._world, self._watch, self._client = world, watch, client

    def run(self, name: str) -> Attack:
        """Run one of PLAIN_ATTACKS and judge it."""
        attack = Attack(name)
        getattr(self, f"try_{name}")(attack)
        self._watch.judge(attack)
        return attack

    def try_numbers(self, attack: Attack) -> None:
        """Send numbers whose products no database holds, in runs, checks, schedules and changes."""
        schedule = {**SCHEDULE, "name": "pills", "spec": self._spec("pills")}
        self._send(attack, "POST", "/v1/schedules", json=schedule)
        for changes, number in NUMBERS.values():
            top = {"priority": changes["priority"]} if "priority" in changes else {}
            spec = self._spec("pills", **{k: v for k, v in changes.items() if k != "priority"})
            body = {"spec": spec, **top}
            for method, path, fields in (
                ("POST", "/v1/runs", {}),
                ("POST", "/v1/runs/check", {}),
                ("POST", "/v1/schedules", {**SCHEDULE, "name": "pill"}),
                ("PATCH", "/v1/schedules/mallory/pills", {}),
            ):
                content = json.dumps({**body, **fields}).replace(MARK, number)
                self._send(attack, method, path, content=content, headers=JSON)
        self._send(attack, "DELETE", "/v1/schedules/mallory/pills")

    def try_bodies(self, attack: Attack) -> None:
        """Send bodies that are large, deep, or no JSON."""
        for content in BODIES.values():
            for method, path in (
                ("POST", "/v1/runs"),
                ("POST", "/v1/runs/check"),
                ("POST", "/v1/schedules"),
                ("PATCH", "/v1/schedules/mallory/pills"),
            ):
                self._send(attack, method, path, content=content, headers=JSON)

    def try_stores(self, attack: Attack) -> None:
        """Name stores that are not mallory's: parts of the store, other stores, other places."""
        for store in self._list_stores():
            spec = self._spec("stores", store=store)
            for path, fields in (
                ("/v1/runs", {}),
                ("/v1/runs/check", {}),
                ("/v1/schedules", {**SCHEDULE, "name": "stores"}),
            ):
                response = self._send(attack, "POST", path, json={"spec": spec, **fields})
                self._check_store(attack, store, response)
            self._send(attack, "GET", "/v1/adapters", params={"store": store})
            path = f"/v1/adapters/{self._names['adapter of lab']}"
            self._send(attack, "GET", path, params={"store": store})
            body = {"version": 1}
            self._send(attack, "POST", f"{path}/promote", params={"store": store}, json=body)
        self._send(attack, "DELETE", "/v1/schedules/mallory/stores")

    def try_projects(self, attack: Attack) -> None:
        """Submit, schedule and list as lab or as default, and change projects."""
        for project in (
            "lab",
            "default",
            "LAB",
            "lab/",
            "../lab",
            "lab%2f",
            "\N{ZERO WIDTH SPACE}lab",
        ):
            body = {"spec": self._spec("projects"), "project": project}
            self._send(attack, "POST", "/v1/runs", json=body)
            schedule = {**body, **SCHEDULE, "name": "minutely"}
            self._send(attack, "POST", "/v1/schedules", json=schedule)
            for path in ("/v1/runs", "/v1/schedules", "/v1/adapters", "/v1/audit", "/v1/tokens"):
                self._send(attack, "GET", path, params={"project": project})
            self._send(attack, "PATCH", f"/v1/projects/{project}", json={"places": None})
            token = {"label": "x", "scope": "admin", "project": project}
            self._send(attack, "POST", "/v1/tokens", json=token)
            self._send(attack, "POST", "/v1/projects", json={"name": project})

    def try_names(self, attack: Attack) -> None:
        """Use lab's adapter name, names with syntax, and lab's adapter as a parent."""
        adapter = self._names["adapter of lab"]
        store = self._world.lab.store
        parents = (
            adapter,
            f"{adapter}@v1",
            f"{adapter}@v999999999",
            f"{store}/adapters/{adapter}/v1",
        )
        for parent in parents:
            for kind in ("retrain", "finetune"):
                spec = self._spec(adapter, model={"path": parent})
                self._send(attack, "POST", "/v1/runs", json={"spec": spec, "kind": kind})
        self._send(attack, "POST", "/v1/runs", json={"spec": self._spec(adapter)})
        for version in (1, 2, 999_999_999, 10**30, -1):
            path = f"/v1/adapters/{adapter}"
            self._send(attack, "GET", f"{path}/{version}")
            self._send(attack, "POST", f"{path}/promote", json={"version": version})
        self._send(attack, "POST", f"/v1/adapters/{adapter}/rollback")
        for name in (
            "../lab",
            f"projects/lab/adapters/{adapter}",
            "a\nb",
            "$(id)",
            "'; --",
            "x" * 9000,
        ):
            self._send(attack, "POST", "/v1/runs", json={"spec": self._spec(name)})

    def try_places(self, attack: Attack) -> None:
        """Name lab's rows and files of the host by every spelling, for each key of a path."""
        for address in self._list_addresses():
            for key in ("train", "eval"):
                data = {"train": str(self._world.mallory.folder / "rows.jsonl"), key: address}
                body = {"spec": self._spec("places", data={**data, "max_length": 32})}
                for path in ("/v1/runs", "/v1/runs/check"):
                    self._expect_refusal(
                        attack, address, self._send(attack, "POST", path, json=body)
                    )
            body = {"spec": self._spec("places", model={"path": address})}
            self._expect_refusal(attack, address, self._send(attack, "POST", "/v1/runs", json=body))
            schedule = {**body, **SCHEDULE, "name": "places", "only_new_data": True}
            response = self._send(attack, "POST", "/v1/schedules", json=schedule)
            self._expect_refusal(attack, address, response)

    def try_masks(self, attack: Attack) -> None:
        """Name functions of installed modules as a mask."""
        for mask in (
            "os:system",
            "builtins:exec",
            "subprocess:run",
            "slora.masks:x",
            "posix:_exit",
        ):
            spec = self._spec("masks", method={"rank": 2, "mask": mask})
            self._expect_refusal(
                attack, mask, self._send(attack, "POST", "/v1/runs", json={"spec": spec})
            )

    def try_routes(self, attack: Attack) -> None:
        """Call every route of the OpenAPI document with the ids of lab's objects."""
        document = httpx.get(f"{self._world.address}/openapi.json").json()
        for template, operations in document["paths"].items():
            for path in self._fill(template):
                for method in operations:
                    self._call_route(attack, method.upper(), path)

    def try_addresses(self, attack: Attack) -> None:
        """Forge the client's address, which must not change the audit log or who is limited."""
        for address in FORGED_ADDRESSES:
            headers = {
                "X-Forwarded-For": address,
                "X-Real-IP": address,
                "Forwarded": f"for={address}",
            }
            body = {**SCHEDULE, "name": "forged", "spec": self._spec("forged")}
            self._send(attack, "POST", "/v1/schedules", json=body, headers=headers)
            self._send(attack, "DELETE", "/v1/schedules/mallory/forged", headers=headers)
        entries = self._world.call("GET", "/v1/audit?project=mallory&limit=200")["items"]
        written = {entry["address"] for entry in entries if entry["label"] == "mallory-ci"}
        if written - {"127.0.0.1"}:
            attack.writes.append(f"the audit log has the addresses {sorted(map(str, written))}")
        self._flood(attack)

    def _flood(self, attack: Attack) -> None:
        """Send requests without a token, each from another forged address: they count as one."""
        began = time.monotonic()
        with httpx.Client(base_url=self._world.address, timeout=60) as client:
            statuses = [
                client.get(
                    "/v1/runs", headers={"X-Forwarded-For": f"10.0.{number // 250}.{number % 250}"}
                ).status_code
                for number in range(FLOOD)
            ]
        rate = HttpLimits().anonymous_requests_per_s
        allowed = rate * (BURST_S + time.monotonic() - began) + 1
        for status in statuses:
            attack.count(f"{status} without a token")
        if statuses.count(401) > allowed:
            attack.faults.append(f"{statuses.count(401)} of them were served, not {allowed:.0f}")

    def _call_route(self, attack: Attack, method: str, path: str) -> None:
        bodies: list[dict[str, Any]] = [{}]
        if method in ("POST", "PATCH", "PUT"):
            spec = self._spec("routes")
            bodies = [
                {"json": {}},
                {"json": {"spec": spec, "project": "lab"}},
                {"json": {"paused": True}},
                {"json": {"version": 1}},
                {"json": {"max_runs": 1}},
            ]
        for body in bodies:
            response = self._send(attack, method, path, **body)
            is_lab = any(word in path for word in (*self._names.values(), "/lab"))
            if is_lab and response is not None and response.status_code < 300:
                attack.reads.append(f"{response.status_code} for {method} {path}")

    def _fill(self, template: str) -> Iterator[str]:
        """Yield the paths of a route that name lab's objects, and with lab's names as filters."""
        names = self._names
        values = {
            "run": [names["run of lab"], names["held run of lab"]],
            "project": ["lab"],
            "name": [names["adapter of lab"], names["schedule of lab"]],
            "version": ["1"],
            "token": [self._world.lab.token],
            "schedule": [names["schedule of lab"]],
        }
        paths = [template]
        for parameter in re.findall(r"{(\w+)}", template):
            paths = [
                path.replace(f"{{{parameter}}}", value)
                for path in paths
                for value in values.get(parameter, ["lab"])
            ]
        for path in paths:
            yield path
            if "{" not in template:
                yield f"{path}?project=lab"

    def _list_stores(self) -> Iterator[str]:
        for root in self._world.stores:
            yield from (
                root, f"{root}/", f"{root}/projects", f"{root}/projects/lab",
                f"{root}/projects/lab/",
                f"{root}/projects/mallory/../lab", f"{root}/projects/mallory%2f..%2flab",
                f"{root}//projects/lab", f"{root}/projects/default", f"{root}/x", f"{root}-2/x",
                f"{root}/projects/mallory", f"{root}/projects/mallory/projects/lab",
            )  # fmt: skip
        yield from (
            "s3://mallory/x",
            "file:///",
            "file:///etc",
            "/tmp",
            "file://.",
            "s3://",
            "S3://A/b",
        )

    def _list_addresses(self) -> Iterator[str]:
        """Yield addresses outside of mallory's places."""
        lab, own = self._world.lab, self._world.mallory.folder
        rows, service = lab.folder / "rows.jsonl", self._world.folder / "service"
        yield from (
            str(rows), f"{lab.folder}/*.jsonl", f"{own}/../lab/rows.jsonl", f"{own}/./../lab/*",
            f"file://{rows}", f"file://localhost{rows}", f"FILE://{rows}", f"/{rows}",
            f"{own}//../lab",
            str(rows).replace("/lab/", "/%6cab/"), f"{own}/%2e%2e/lab/rows.jsonl",
            f"{own}/..%2flab",
            f"{own}-2", f"{own}*", f"{own.parent}/[l]ab/rows.jsonl",
            f"{own.parent}/{{lab,mallory}}/rows.jsonl", f"{lab.store}/secret", f"{lab.store}/*",
            f"{self._world.mallory.store}/../lab/secret", f"{self._world.stores[0]}/root-note",
            f"{self._world.stores[0]}/projects/l*b/secret", f"{lab.store.upper()}/secret",
            "/etc/passwd", "/proc/self/environ", "/dev/zero", "/dev/stdin", "~/.ssh/id_rsa",
            f"{service}/service-token", f"{service}/registry.db", f"{service}/job-key",
            "hf://lab/rows", "lab/private-model", "meta-llama/Llama-3", "../lab/rows.jsonl",
            "rows.jsonl",
            "https://example.invalid/rows.jsonl", "http://169.254.169.254/latest/meta-data",
        )  # fmt: skip

    def _expect_refusal(self, attack: Attack, address: str, response: Any) -> None:
        if response is not None and response.status_code < 300:
            attack.reads.append(f"{address} was accepted: {response.text[:200]}")

    def _check_store(self, attack: Attack, store: str, response: Any) -> None:
        if response is None or response.status_code >= 300:
            return
        accepted = response.json().get("store")
        own = {f"{root}/projects/mallory" for root in self._world.stores}
        if accepted is not None and accepted not in own:
            attack.writes.append(f"the store {store} became {accepted}")

    @property
    def _names(self) -> dict[str, str]:
        return self._watch.names

    def _spec(self, name: str, **changes: Any) -> dict[str, Any]:
        return self._world.make_spec(self._world.mallory, name, **changes)

    def _send(self, attack: Attack, method: str, path: str, **body: Any) -> Any:
        return self._watch.send(self._client, attack, method, path, **body)
