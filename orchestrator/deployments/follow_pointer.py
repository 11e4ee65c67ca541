"""What a deployment is to answer with: its pin, the promoted version, or else the newest one."""

from __future__ import annotations

from jobs.errors import StoreError
from jobs.store.adapters.pointer import read_pointer
from jobs.store.adapters.versions import list_versions
from jobs.store.base import ObjectStore
from orchestrator.deployments.deployment_record import DeploymentRecord
from orchestrator.deployments.rollout_decision import Wish


def find_wish(store: ObjectStore, record: DeploymentRecord, *, min_move: int = 0) -> Wish:
    """Return the version and the move that asks for it. Raise StoreError.

    `min_move` is the last move of the pointer that the registry has seen.
    """
    if record.pin is not None:
        return Wish(record.pin)
    pointer = read_pointer(store, record.adapter, min_move=min_move)
    if pointer is not None:
        return Wish(pointer.version, pointer.moves[-1].number)
    versions = list_versions(store, record.adapter)
    if not versions:
        raise StoreError(
            f"The adapter {record.adapter} has no version any more. Remove the deployment."
        )
    return Wish(versions[-1])
