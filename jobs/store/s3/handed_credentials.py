"""The credentials that the service handed to the job of a project: these and no others.

boto3 would go on to look for those of the node: a profile, a role of the machine. A job that was
handed keys uses them. Else it asks the service for a session, with the protocol of AWS containers,
and boto3 renews it in time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from botocore.credentials import ContainerProvider, CredentialResolver, EnvProvider
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import ContainerMetadataFetcher

from jobs.store.s3.environment import HANDED

CONNECT_TIMEOUT_S = 10
CA_FILE = "SLORA_CA_FILE"
"""Certificates of the service, if it has a private authority."""


def use_handed_credentials(session: Session, environment: Mapping[str, str] = os.environ) -> None:
    """Let a session of boto3 find the credentials of these variables only, and no profile."""
    session.session_var_map["profile"] = (None, None, None, None)
    providers = [EnvProvider(environment)]
    if environment.get(HANDED[0]):
        handed = {name: environment[name] for name in HANDED if environment.get(name)}
        providers.append(ContainerProvider(handed, _make_fetcher(environment)))
    session.register_component("credential_provider", CredentialResolver(providers))


def _make_fetcher(environment: Mapping[str, str]) -> ContainerMetadataFetcher:
    return ContainerMetadataFetcher(
        URLLib3Session(verify=environment.get(CA_FILE) or True, timeout=CONNECT_TIMEOUT_S)
    )
