"""The keys of a service: the private one that signs, and the public ones that readers demand."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import Fault, InputError
from jobs.store.trust.statements import OPERATOR_PROJECT, find_project
from jobs.store.trust.trust_policy import (
    TRUST_VARIABLE,
    TrustPolicy,
    format_trust_policy,
    make_trust_policy,
    read_trust_policy,
)
from orchestrator.control.config import ServiceConfig

if TYPE_CHECKING:
    from jobs.store.trust.signatures import Signer


@dataclass(frozen=True)
class ServiceTrust:
    """The policy and the signer of a service; None where nothing is configured."""

    policy: TrustPolicy | None = None
    signer: Signer | None = None


def load_service_trust(config: ServiceConfig) -> ServiceTrust:
    """Load the keys of a configuration. Raise InputError with what is wrong with them.

    Without `trust`, the policy is that of SLORA_TRUST.
    """
    policy = make_trust_policy(config.trust, setting="trust") if config.trust else None
    policy = policy or read_trust_policy()
    if config.signing_key is None:
        return ServiceTrust(policy)
    # Imported here because cryptography is slow to import and few services sign.
    from jobs.store.trust.signatures import load_signer

    path = Path(os.path.expanduser(config.signing_key))
    signer = load_signer(path, setting="signing_key", private=True)
    faults = [
        Fault(
            "stores",
            f"{store} ends like the store of a project, so its signatures would name that project",
            "Use a store whose last two folders are not projects/NAME.",
        )
        for store in config.stores
        if find_project(store) != OPERATOR_PROJECT
    ]
    if policy is not None and signer.public_key not in policy.keys:
        problem = "the public key of signing_key is none of the trusted keys"
        remedy = "Add it, or the service refuses what it has signed."
        faults.append(Fault("trust", problem, remedy))
    if faults:
        raise InputError(faults)
    return ServiceTrust(policy, signer)


def apply_policy(trust: ServiceTrust, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make the service's policy that of its process, which every reader of the store demands."""
    if trust.policy is not None:
        environment[TRUST_VARIABLE] = format_trust_policy(trust.policy)
