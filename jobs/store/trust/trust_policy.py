"""The trust policy of this process: the public keys whose signatures readers demand.

`SLORA_TRUST` names PEM files or keys, separated by commas. `slora serve` sets it from `trust:` of
its configuration, and hands it to its jobs as a list of keys. Without it nothing is demanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.inspect.file_stamps import FileStamp, stamp_files
from jobs.store.settings import read_store_settings

if TYPE_CHECKING:
    from jobs.store.adapters.manifest import Manifest
    from jobs.store.base import ObjectStore
    from jobs.store.trust.signatures import Signer

TRUST_VARIABLE, SIGNING_VARIABLE = "SLORA_TRUST", "SLORA_SIGNING_KEY"


@dataclass(frozen=True)
class TrustPolicy:
    """The trusted keys, raw."""

    keys: tuple[bytes, ...]


def read_trust_policy(environment: Mapping[str, str] | None = None) -> TrustPolicy | None:
    """Return the policy of the environment, or None without one. Raise InputError."""
    text = read_store_settings(environment).trust
    if not text:
        return None
    return _parse_policy(text, _stamp_key_files(text))


def make_trust_policy(items: Iterable[str], *, setting: str) -> TrustPolicy:
    """Return the policy of PEM files and keys. Raise InputError."""
    # Imported here because cryptography is slow to import and few installations have a policy.
    from jobs.store.trust.signatures import parse_public_keys

    return TrustPolicy(parse_public_keys(items, setting=setting))


def format_trust_policy(policy: TrustPolicy) -> str:
    """Return a policy as a value of SLORA_TRUST that needs no file."""
    from jobs.store.trust.signatures import format_public_key

    return ",".join(map(format_public_key, policy.keys))


def make_trust_environment() -> dict[str, str]:
    """Return the variables by which a job demands what this process does. They hold no secret."""
    policy = read_trust_policy()
    return {} if policy is None else {TRUST_VARIABLE: format_trust_policy(policy)}


def load_configured_signer() -> Signer | None:
    """Return the signer of SLORA_SIGNING_KEY, or None without a key. Raise InputError."""
    key = read_store_settings().signing_key
    if key is None:
        return None
    from jobs.store.trust.signatures import load_signer

    return load_signer(key)


def demand_signature(store: ObjectStore, manifest: Manifest, data: bytes) -> None:
    """Raise Untrusted if there is a policy and it refuses the version with these bytes."""
    policy = read_trust_policy()
    if policy is not None:
        from jobs.store.trust.version_trust import check_version

        check_version(store, manifest, data, policy)


@lru_cache(maxsize=8)
def _parse_policy(text: str, stamps: tuple[FileStamp, ...]) -> TrustPolicy:
    """Parse a policy once for each state of its files: a listing asks for it at each manifest."""
    return make_trust_policy(text.split(","), setting=TRUST_VARIABLE)


def _stamp_key_files(text: str) -> tuple[FileStamp, ...]:
    files = (Path(item.strip()).expanduser() for item in text.split(",") if ":" not in item)
    try:
        return stamp_files(files)
    except (OSError, RuntimeError):
        return ()  # the parser reports a file that cannot be read
