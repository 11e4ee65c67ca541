"""Write and read the partition in a run's folder: it is made once, by the first who needs it.

The file also has the digest of what the partition was made from, so that a run whose data has
changed makes a new one. The server and the sites get the partition's own digest and check it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib

import numpy as np

from jobs.errors import DigestMismatch, NotInStore
from jobs.federation.partition import Partition
from jobs.inspect.datasets.scan import DatasetScan
from jobs.spec.schema import FederatedSpec
from jobs.store.runs.run_store import RunStore

PARTITION_FILE = "partition.npz"


def digest_inputs(spec: FederatedSpec, scan: DatasetScan, learnt: str | None = None) -> str:
    """Return the SHA-256 of everything that a partition is made from. `learnt` is the digest of the
    rows that clients may have, None if they may have all.
    """
    section = spec.federation
    values = {
        "rows": scan.sha256,
        "rows_by_file": scan.rows_by_file,
        "partition": [section.partition, section.clients, section.dirichlet_alpha, section.column],
        "format": [scan.format, spec.model.task],
        "columns": scan.columns,
        "held_out": spec.data.eval_fraction,
        "seed": spec.train.seed,
        **({"learnt": learnt} if learnt else {}),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def find_partition(runs: RunStore, inputs: str) -> Partition | None:
    """Return the run's partition if there is one that was made from these inputs."""
    try:
        stored_inputs, partition = _unpack(runs.store.get(runs.key(PARTITION_FILE)))
    except (NotInStore, ValueError):
        return None
    return partition if stored_inputs == inputs else None


def write_partition(runs: RunStore, inputs: str, partition: Partition) -> None:
    """Write the partition into the run's folder."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        header=np.frombuffer(json.dumps([inputs, partition.names]).encode(), np.uint8),
        sizes=np.array(partition.sizes, np.int64),
        rows=np.concatenate(partition.rows),
    )
    runs.store.put(runs.key(PARTITION_FILE), buffer.getvalue())


def read_partition(runs: RunStore, digest: str) -> Partition:
    """Return the run's partition. Raise NotInStore, or DigestMismatch if it is another one."""
    key = runs.key(PARTITION_FILE)
    try:
        _, partition = _unpack(runs.store.get(key))
    except ValueError:
        raise DigestMismatch(key, digest, "unreadable") from None
    if partition.digest != digest:
        raise DigestMismatch(key, digest, partition.digest)
    return partition


def _unpack(data: bytes) -> tuple[str, Partition]:
    """Return the digest of the inputs and the partition. Raise ValueError for other bytes."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            inputs, names = json.loads(arrays["header"].tobytes())
            ends = np.cumsum(arrays["sizes"])
            rows = np.split(arrays["rows"].astype(np.int64), ends[:-1])
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
    return str(inputs), Partition(tuple(names), tuple(rows))
