"""The job of the campaign: it commits a small adapter, or, for mallory, attacks from the inside.

It is what runs in place of a fine-tune on the cluster, with the environment that the service gave
it. A run whose name begins with `attack` tries to reach lab with all that it has, and writes what
it saw to a file of this machine's disk and to its log.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import JobsError
from jobs.spec.run_arguments import LEAVE_POINTER, SUBMITTED
from jobs.store.adapters.operations import commit
from jobs.store.base import ObjectStore
from jobs.store.open import open_store
from jobs.store.runs.run_store import EVENTS, SPEC, RunStore
from tests.jobs.store.builders import make_adapter_folder, make_draft

RESULTS = "SLORA_TENANTS_RESULTS"
TARGETS_FILE = "targets.json"
"""What mallory knows of lab: names and keys, no secret."""
CANARY_NODE = "CANARYnode5d1f0c77ab93e2"
"""The node's own S3 secret, which no job of a project may have."""
LONGEST_S, HOLD_S = 1.0, 1800.0


def main() -> int:
    """Return the exit code of a real job: 3 if the store does not answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--spec", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument(LEAVE_POINTER, action="store_true")
    parser.add_argument(SUBMITTED, type=float)
    options = parser.parse_args()
    results = Path(os.environ[RESULTS])
    store = open_store(options.spec.split("/runs/")[0])
    try:
        name = yaml.safe_load(RunStore(store, options.run).read_text(SPEC))["name"]
        if name.startswith("attack"):
            _attack(store, options.run, results)
        if name.startswith("hold"):
            _hold(results / f"{options.run}.release")
        _commit(store, name, options.run, options.attempt)
    except JobsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _commit(store: ObjectStore, name: str, run: str, attempt: int) -> None:
    time.sleep(random.Random(run).uniform(0, LONGEST_S))
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_adapter_folder(Path(scratch) / "adapter", run)
        commit(store, folder, make_draft(name=name, run=run, attempt=attempt))


def _hold(gate: Path) -> None:
    """Print a line, and wait until the campaign opens the gate."""
    print("first", flush=True)
    until = time.monotonic() + HOLD_S
    while not gate.exists() and time.monotonic() < until:
        time.sleep(0.2)


def _attack(store: ObjectStore, run: str, results: Path) -> None:
    targets = json.loads((results / TARGETS_FILE).read_text())
    for key, value in sorted(os.environ.items()):
        print(f"{key}={value}")
    environment = dict(os.environ)
    answers = {**attack_store(make_s3(), targets), **_ask_for_credentials(targets)}
    _forge_outcome(store, run, targets)
    report = {"environment": environment, "answers": answers}
    partial = results / f"{run}.partial"
    partial.write_text(json.dumps(report))
    partial.rename(results / f"{run}.json")


def make_s3(**keys: str) -> Any:
    """Return a plain client with these keys, or with those that the environment names."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        if os.environ.get(name) == "":
            # The service empties what the node may have set; plain boto3 takes it for a name.
            del os.environ[name]
    return boto3.session.Session(**keys).client(  # type: ignore[call-overload]
        "s3",
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def attack_store(s3: Any, targets: dict[str, Any]) -> dict[str, str]:
    """Try every request of S3 that could read, write, list or delete something of lab's.

    Return what each answered; `done` means that the server obeyed.
    """
    bucket, lab, own = targets["bucket"], targets["prefix"], targets["own"]
    secret, adapter = targets["object"], f"{lab}adapters/{targets['adapter']}/"
    source = {"Bucket": bucket, "Key": secret}
    put = {"Bucket": bucket, "Body": b"mallory"}
    acts: dict[str, Callable[[], Any]] = {
        "read an object": lambda: s3.get_object(**source)["Body"].read(),
        "read its head": lambda: s3.head_object(**source),
        "copy it to its own prefix": lambda: s3.copy_object(
            Bucket=bucket, Key=f"{own}stolen", CopySource=source
        ),
        "copy a part of it": lambda: _copy_part(s3, bucket, f"{own}part", source),
        "list its prefix": lambda: _list(s3, bucket, lab),
        "list all projects": lambda: _list(s3, bucket, lab.partition("lab/")[0]),
        "list the bucket": lambda: _list(s3, bucket, ""),
        "list uploads": lambda: s3.list_multipart_uploads(Bucket=bucket, Prefix=lab),
        "read the root": lambda: s3.get_object(Bucket=bucket, Key=targets["root"])["Body"].read(),
        "write beside": lambda: s3.put_object(Key=f"{lab}mallory", **put),
        "replace an object": lambda: s3.put_object(Key=secret, **put),
        "delete an object": lambda: s3.delete_object(**source),
        "delete many": lambda: _delete_many(s3, bucket, secret),
        "upload in parts": lambda: s3.create_multipart_upload(Bucket=bucket, Key=secret),
        "move the pointer": lambda: s3.put_object(Key=f"{adapter}current", **put),
        "claim a version": lambda: s3.put_object(Key=f"{adapter}v2/.claim", **put),
        "claim v999999999": lambda: s3.put_object(Key=f"{adapter}v999999999/manifest.json", **put),
        "write a run's request": lambda: s3.put_object(Key=f"{lab}runs/x/request.json", **put),
        "write beside the projects": lambda: s3.put_object(
            Key=f"{lab.partition('projects/')[0]}adapters/x/current", **put
        ),
        "dots in a key": lambda: s3.put_object(Key=f"{own}../lab/mallory", **put),
        "an encoded slash": lambda: s3.get_object(Bucket=bucket, Key=f"{own}..%2Flab%2Fsecret"),
        "change the bucket": lambda: s3.put_bucket_policy(Bucket=bucket, Policy="{}"),
        "make a bucket": lambda: s3.create_bucket(Bucket="mallory"),
        "delete the bucket": lambda: s3.delete_bucket(Bucket=bucket),
    }
    return {name: _describe(act) for name, act in acts.items()}


def _copy_part(s3: Any, bucket: str, key: str, source: dict[str, str]) -> Any:
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    try:
        return s3.upload_part_copy(
            Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, CopySource=source
        )
    finally:
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


def _list(s3: Any, bucket: str, prefix: str) -> list[str]:
    answer = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for item in answer.get("Contents", [])]


def _delete_many(s3: Any, bucket: str, key: str) -> Any:
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    if answer.get("Errors"):
        raise ClientError({"Error": answer["Errors"][0]}, "DeleteObjects")
    return answer


def _describe(act: Callable[[], Any]) -> str:
    try:
        return f"done: {act()}"
    except ClientError as error:
        return f"refused: {error.response['Error'].get('Code')}"
    except BotoCoreError as error:
        return f"refused: {type(error).__name__}"


def _ask_for_credentials(targets: dict[str, Any]) -> dict[str, str]:
    """Ask the service for the keys of lab's run, with this job's own token."""
    url = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    token = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    own = url.rpartition("/v1/runs/")[0]
    other = f"{own}/v1/runs/{targets['run']}/credentials"
    request = urllib.request.Request(other, headers={"Authorization": token})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return {"keys of lab's run": f"done: {response.read()!r}"}
    except (urllib.error.URLError, ValueError) as error:
        return {"keys of lab's run": f"refused: {error}"}


def _forge_outcome(store: ObjectStore, run: str, targets: dict[str, Any]) -> None:
    """Write a journal and files to its own prefix that name lab's run, adapter and project."""
    label, victim = f"{targets['adapter']}@v1", targets["run"]
    forged = {"event": "promotion_requested", "adapter": label, "expected_move": None}
    lines = [forged, {"event": "published", "adapter": label, "run": victim, "project": "lab"}]
    lines.append({"event": "failed", "why": f"run {victim} failed\n\x1b[2J"})
    text = "".join(json.dumps({"time": time.time(), **line}) + "\n" for line in lines)
    for owner in (run, victim):
        store.put(f"runs/{owner}/{EVENTS}", text.encode())
        store.put(f"runs/{owner}/heartbeat.json", b'{"attempt": 1, "ended": true, "at": 1e300}')
    manifest = json.dumps({"name": targets["adapter"], "run": victim, "project": "lab"})
    for version in (1, 2, 999_999_999):
        folder = f"adapters/{targets['adapter']}/v{version}"
        store.put(f"{folder}/.claim", json.dumps({"run": victim, "attempt": 99}).encode())
        store.put(f"{folder}/manifest.json", manifest.encode())
    store.put(f"adapters/{targets['adapter']}/current", b'{"moves": [{"number": 1e18}]}')
    store.put(f"projects/lab/runs/{victim}/request.json", b"{}")


if __name__ == "__main__":
    sys.exit(main())
