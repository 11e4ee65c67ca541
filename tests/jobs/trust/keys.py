"""Keys for tests of trust: a signer, its PEM files, and the policy that trusts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.store.trust.signatures import Signer, load_signer
from tests.jobs.store.test_signing import key_pair


class Keys:
    """A signer in a folder, and another one that nobody trusts."""

    def __init__(self, folder: Path, environment: pytest.MonkeyPatch) -> None:
        self._environment = environment
        self.private, self.public = key_pair(folder, "ours")
        self.foreign_private, self.foreign_public = key_pair(folder, "theirs")
        self.private.chmod(0o600)
        self.ours: Signer = load_signer(self.private)
        self.theirs: Signer = load_signer(self.foreign_private)
        environment.setenv("XDG_STATE_HOME", str(folder / "state"))
        environment.delenv("SLORA_SIGNING_KEY", raising=False)
        self.distrust()

    def trust(self) -> None:
        """Demand our signature from now on."""
        self._environment.setenv("SLORA_TRUST", str(self.public))

    def distrust(self) -> None:
        """Demand nothing from now on."""
        self._environment.delenv("SLORA_TRUST", raising=False)

    def forget_moves(self, folder: str) -> None:
        """Become another user, who has seen nothing."""
        self._environment.setenv("XDG_STATE_HOME", folder)
