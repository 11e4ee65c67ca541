"""The service on a scripted cluster, in its own process: `... fake_service CONFIG --port N`.

A job of lab's adapter commits a small one when it starts; any other job commits nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jobs.store.adapters.operations import commit
from jobs.store.open import open_store
from orchestrator.api.server import ListenOptions, serve
from orchestrator.cluster.base import Cluster, Job
from orchestrator.control.config import ServiceConfig, load_config
from tests.benchmarks.tenants.tenant_world import LAB_ADAPTER, PARKED
from tests.jobs.store.builders import make_adapter_folder, make_draft
from tests.orchestrator.cluster.fake import FakeCluster


def main(config: str, _: str, port: str) -> int:
    """Serve until a signal; return the exit code of `slora serve`."""
    options = ListenOptions(port=int(port))
    return serve(load_config(Path(config)), options, _connect, on_ready=lambda *ready: None)


def _connect(config: ServiceConfig) -> dict[str, Cluster]:
    clusters = {name: FakeCluster(name) for name in config.clusters}
    for cluster in clusters.values():
        cluster.on_start = _commit_adapter
        cluster.unreachable = cluster.name == PARKED
    return dict(clusters)


def _commit_adapter(job: Job) -> None:
    options = dict(zip(job.arguments[::2], job.arguments[1::2], strict=False))
    run, name = options["--run"], options["--run"].rsplit("-", 3)[0]
    if not name.startswith(LAB_ADAPTER):
        return
    store = open_store(options["--spec"].split("/runs/")[0])
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_adapter_folder(Path(scratch) / "adapter", run)
        commit(store, folder, make_draft(name=name, run=run, attempt=int(options["--attempt"])))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
