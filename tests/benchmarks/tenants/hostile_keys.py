"""Attacks from below the service: mallory's S3 keys, its jobs on Ray, and forged jobs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from jobs.store.open import open_store
from tests.benchmarks.tenants.evidence import Attack, Watch
from tests.benchmarks.tenants.hostile_files import FINAL, httpx_text
from tests.benchmarks.tenants.hostile_job import CANARY_NODE, TARGETS_FILE, attack_store, make_s3
from tests.benchmarks.tenants.tenant_world import LAB_ADAPTER, PARKED, TenantWorld
from tests.storage.weed import BUCKET

RUN_S = 300.0
REVOKED_WITHIN_S = 1.0
STREAM_TRIES = 5
NOT_FOR_JOBS = ("S3 secret of the service", "service token", "job key")
READS = ("read", "copy", "list", "keys", "encoded")


class KeyAttacks:
    """What mallory does with its keys and its jobs."""

    def __init__(self, world: TenantWorld, watch: Watch, client: httpx.Client) -> None:
        self._world, self._watch, self._client = world, watch, client

    def write_targets(self) -> dict[str, Any]:
        """Tell mallory's jobs the names and keys of lab's objects."""
        names = self._watch.names
        targets = {
            "bucket": BUCKET,
            "prefix": "store/projects/lab/",
            "own": "store/projects/mallory/",
            "object": "store/projects/lab/secret",
            "root": "store/root-note",
            "adapter": names["adapter of lab"],
            "run": names["run of lab"],
        }
        (self._world.results / TARGETS_FILE).write_text(json.dumps(targets))
        return targets

    def try_keys(self) -> Attack:
        """Use mallory's own S3 keys on everything that is not its own."""
        attack = Attack("its S3 keys on lab's prefix")
        self._count(attack, attack_store(make_s3(**self._world.mallory.keys), self.write_targets()))
        self._watch.judge(attack)
        return attack

    def try_jobs(self) -> Attack:
        """Run a job that prints its environment, uses what it finds, and forges its outcome."""
        attack = Attack("a job of its own: environment, keys, forged outcome")
        self.write_targets()
        names = (
            "attack",
            self._watch.names["adapter of lab"].replace(LAB_ADAPTER, f"attack-{LAB_ADAPTER}"),
        )
        for name in names:
            run = self.submit(attack, name)
            row = self.wait(run, *FINAL)
            attack.count(f"run {row['status']}")
            file = self._world.results / f"{run}.json"
            if not file.exists():
                log = httpx_text(self._client, run)[-500:]
                attack.faults.append(f"the attack of {run} did not finish: {log}")
                continue
            report = json.loads(file.read_text())
            self._count(attack, report["answers"])
            seen = json.dumps(report) + httpx_text(self._client, run)
            attack.reads += [f"{leak} in the job" for leak in self._watch.find_leaks(
                seen, json.dumps(self._watch.names))]  # fmt: skip
            if CANARY_NODE in seen:
                attack.reads.append("the node's S3 secret in the job")
        self._watch.judge(attack)
        return attack

    def try_forged_jobs(self) -> Attack:
        """Submit jobs to Ray that claim to be this service's, with lab's run in their metadata."""
        attack = Attack("forged jobs on the cluster")
        assert self._world.head is not None
        token = (self._world.folder / "ray" / "token").read_text().strip()
        ray = httpx.Client(base_url=self._world.head.url, timeout=60,
                           headers={"Authorization": f"Bearer {token}"})  # fmt: skip
        jobs = [job for job in ray.get("/api/jobs/").json() if job.get("metadata")]
        held = self._watch.names["held run of lab"]
        real = next(job["metadata"] for job in jobs if job["metadata"].get("run") == held)
        copies = [
            ("same", f"{held}-a1", real),
            ("next attempt", f"{held}-a2", {**real, "attempt": "2"}),
            ("far attempt", f"{held}-a99", {**real, "attempt": "9" * 30}),
            ("project", "forged-1", {**real, "project": "mallory"}),
            ("instance", "forged-2", {**real, "slora_instance": "0" * 32}),
            ("no run", "forged-3", {**real, "run": "no-such-run"}),
        ]
        for name, submission, metadata in copies:
            body = {"entrypoint": "sleep 20", "submission_id": submission, "metadata": metadata}
            response = ray.post("/api/jobs/", json=body)
            attack.count(f"{name}: {response.status_code}")
        # Some passes of the reconciler, and of its watch for orphans.
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            row = self._world.call("GET", f"/v1/runs/{held}")
            if row["status"] != "running" or row["attempt"] != 1:
                break
            time.sleep(0.5)
        job = ray.get(f"/api/jobs/{held}-a1").json()
        if job["status"] != "RUNNING":
            attack.stops.append(f"the job of {held} is {job['status']}")
        self._watch.judge(attack)
        ray.close()
        return attack

    def try_revoked_stream(self) -> Attack:
        """Keep reading a log with a token that was revoked."""
        attack = Attack("a revoked token's stream")
        run = self.submit(attack, "hold-mallory")
        self.wait(run, "running")
        longest = max(self._measure_stream(attack, run) for _ in range(STREAM_TRIES))
        attack.outcomes[f"the slowest within {longest:.2f} s"] = 1
        if longest > REVOKED_WITHIN_S:
            attack.faults.append(f"a stream went on for {longest:.2f} s")
        self._client.post(f"/v1/runs/{run}/stop")
        self._watch.judge(attack)
        return attack

    def submit(self, attack: Attack, name: str, **changes: Any) -> str:
        """Submit a run of mallory's and return its id."""
        spec = self._world.make_spec(self._world.mallory, name, **changes)
        response = self._watch.send(self._client, attack, "POST", "/v1/runs", json={"spec": spec})
        return str(response.json()["id"])

    def wait(self, run: str, *statuses: str) -> dict[str, Any]:
        """Wait until a run has one of these statuses. Raise TimeoutError."""
        return wait_for_run(self._client, run, *statuses)

    def _measure_stream(self, attack: Attack, run: str) -> float:
        body = {"label": "stream", "scope": "viewer", "project": "mallory"}
        token = self._world.call("POST", "/v1/tokens", json=body)
        has_started, ended_at, texts = threading.Event(), list[float](), list[str]()

        def read() -> None:
            headers = {"Authorization": f"Bearer {token['secret']}"}
            url = f"{self._world.address}/v1/runs/{run}/log"
            with httpx.stream("GET", url, headers=headers, timeout=60) as response:
                for part in response.iter_text():
                    texts.append(part)
                    if "first" in part:
                        has_started.set()
            ended_at.append(time.monotonic())

        thread = threading.Thread(target=read)
        thread.start()
        if not has_started.wait(60):
            attack.faults.append("the stream did not begin")
        self._world.call("DELETE", f"/v1/tokens/{token['id']}")
        revoked_at = time.monotonic()
        thread.join(60)
        attack.count("ended with 401" if '"status": 401' in _join(texts) else "ended")
        attack.reads += self._watch.find_leaks("".join(texts))
        return ended_at[0] - revoked_at

    def _count(self, attack: Attack, answers: dict[str, str]) -> None:
        for name, answer in answers.items():
            attack.count(answer.partition(":")[0])
            if answer.startswith("done"):
                reached = attack.reads if name.startswith(READS) else attack.writes
                reached.append(f"{name}: {answer[:200]}")


def wait_for_run(client: httpx.Client, run: str, *statuses: str) -> dict[str, Any]:
    """Wait until a run has one of these statuses. Raise TimeoutError."""
    until = time.monotonic() + RUN_S
    while True:
        row: dict[str, Any] = client.get(f"/v1/runs/{run}").json()
        if row["status"] in statuses:
            return row
        if row["status"] in FINAL or time.monotonic() > until:
            raise TimeoutError(f"{run} is {row['status']}: {row['detail']} {row['wait_reason']}")
        time.sleep(0.2)


def fill_lab(world: TenantWorld) -> dict[str, str]:
    """Let lab work: an adapter with a pointer, a run that is held, a schedule, an object.

    Return the names of these.
    """
    client, lab = world.make_client(world.lab), world.lab
    store = open_store(world.stores[0])
    store.put("root-note", b"of the operator")
    store.put("projects/lab/secret", world.canaries["object of lab"].encode())
    adapter = f"{LAB_ADAPTER}-{world.canaries['secret of lab'][-6:]}"
    names = {"adapter of lab": adapter, "schedule of lab": "minutely"}
    body = {"spec": world.make_spec(lab, adapter)}
    first = client.post("/v1/runs", json=body).raise_for_status().json()["id"]
    names["run of lab"] = first
    wait_for_run(client, first, "done")
    promoted = client.post(f"/v1/adapters/{adapter}/promote", json={"version": 1})
    promoted.raise_for_status()
    name = "hold-lab" if world.is_real else "parked-lab"
    cluster = "default" if world.is_real else PARKED
    body = {"spec": world.make_spec(lab, name), "priority": 5, "cluster": cluster}
    held = client.post("/v1/runs", json=body).raise_for_status().json()["id"]
    names["held run of lab"] = held
    if world.is_real:
        wait_for_run(client, held, "running")
    spec = world.make_spec(lab, "minutely")
    schedule = {"name": "minutely", "cron": "* * * * *", "kind": "finetune", "spec": spec}
    client.post(
        "/v1/schedules", json={**schedule, "concurrency": "queue", "priority": 9}
    ).raise_for_status()
    return names


def release(world: TenantWorld, run: str) -> dict[str, Any]:
    """Let lab's held run end, and return its last row."""
    Path(world.results / f"{run}.release").touch()
    return wait_for_run(world.make_client(world.lab), run, "done")


def _join(texts: list[str]) -> str:
    return "".join(texts).replace('"status":401', '"status": 401')
