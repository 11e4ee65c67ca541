"""The service's key and its policy, as its configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError
from orchestrator.control.config import ServiceConfig, parse_config
from orchestrator.control.signing.service_trust import (
    ServiceTrust,
    apply_policy,
    load_service_trust,
)
from tests.jobs.trust.keys import Keys

NEAR = {"near": {"address": "http://127.0.0.1:1"}}


def make_config(**values: Any) -> ServiceConfig:
    return parse_config({"clusters": NEAR, "stores": ["file:///data/store"], **values})


def test_the_configuration_names_key_and_policy(keys: Keys, tmp_path: Path):
    for trust in (str(keys.public), [str(keys.public)]):
        config = make_config(signing_key=str(keys.private), trust=trust)
        loaded = load_service_trust(config)
        assert loaded.signer is not None and loaded.policy is not None
        assert loaded.policy.keys == (keys.ours.public_key,)
        environment: dict[str, str] = {}
        apply_policy(loaded, environment)
        assert environment["SLORA_TRUST"].startswith("ed25519:")
    assert load_service_trust(make_config()) == ServiceTrust()


def test_a_key_that_others_may_read_is_refused(keys: Keys):
    for mode in (0o644, 0o640, 0o602):
        keys.private.chmod(mode)
        with pytest.raises(InputError, match=rf"signing_key: .*mode is {mode:04o}\. Run chmod 600"):
            load_service_trust(make_config(signing_key=str(keys.private)))


def test_a_policy_that_refuses_the_services_own_signature_is_refused(keys: Keys):
    with pytest.raises(InputError, match="trust: the public key of signing_key is none of"):
        load_service_trust(
            make_config(signing_key=str(keys.private), trust=str(keys.foreign_public))
        )


def test_a_store_that_reads_like_a_projects_is_refused_where_there_is_a_key(keys: Keys):
    stores = ["file:///data/projects/lab"]
    with pytest.raises(InputError, match="ends like the store of a project"):
        load_service_trust(make_config(signing_key=str(keys.private), stores=stores))
    assert load_service_trust(make_config(stores=stores)) == ServiceTrust()
