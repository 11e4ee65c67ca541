"""Sign a pointer, and check one: its signature, and that its move is not older than one seen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from jobs.errors import Untrusted
from jobs.spec.strict_model import StrictModel
from jobs.store.trust.seen_moves import SeenMove, recall_move, remember_move
from jobs.store.trust.statements import describe_pointer, encode_statement, find_project
from jobs.store.trust.trust_policy import TrustPolicy

if TYPE_CHECKING:
    from jobs.store.trust.signatures import Signer

MAX_CLAIMED_MOVE = 2**40
"""A pointer that replaces one without a trusted signature continues its count up to here."""


class PointerSignature(StrictModel):
    """The signature of a pointer, inside it: both are replaced by one write."""

    public_key: Annotated[str, Field(max_length=1024)]
    signature: Annotated[str, Field(max_length=1024)]


@dataclass(frozen=True)
class PointerFacts:
    """What a pointer says, without its signature."""

    name: str
    version: int
    move: int
    content: Any
    """The complete pointer as plain values."""


class PointerTrust:
    """What this process demands of the pointer of a name in a store, and how it signs one."""

    def __init__(
        self,
        store_url: str,
        name: str,
        *,
        policy: TrustPolicy | None,
        signer: Signer | None = None,
        min_move: int = 0,
    ) -> None:
        self._url, self._name, self._policy, self._signer = store_url, name, policy, signer
        self._project = find_project(store_url)
        # Without a policy nothing is remembered: anybody could have written a high number.
        seen = recall_move(store_url, name) if policy is not None else SeenMove()
        self._seen = seen if policy is None or seen.move >= min_move else SeenMove(min_move)

    @property
    def highest_move(self) -> int:
        """Return the highest move that was seen, here or by the caller; 0 without a policy."""
        return self._seen.move

    @property
    def can_repair(self) -> bool:
        """Return whether a promotion may replace a pointer that is not trusted."""
        return self._policy is not None and self._signer is not None

    def check(self, facts: PointerFacts | None, signature: PointerSignature | None) -> None:
        """Raise Untrusted if a policy refuses the pointer, or its absence; else remember it."""
        if self._policy is None:
            return
        if facts is None:
            self._check_absence()
            return
        self._check_signature(facts, signature, self._policy)
        self._check_move(facts)
        remember_move(self._url, self._name, SeenMove(facts.move, facts.version))

    def sign(self, facts: PointerFacts) -> PointerSignature | None:
        """Return the signature; None without a key. Raise Untrusted if a policy demands one."""
        if self._signer is None:
            if self._policy is None:
                return None
            problem = "a trust policy demands signed moves, and there is no key to sign this one"
            remedy = "Set SLORA_SIGNING_KEY to a private key, or promote through the service."
            raise Untrusted(self._key, problem, remedy)
        from jobs.store.trust.signatures import format_public_key

        if self._policy is not None and self._signer.public_key not in self._policy.keys:
            problem = "the key that would sign this move is none of the trusted keys"
            raise Untrusted(self._key, problem, "Add its public key to the policy.")
        signature = self._signer.sign(self._encode(facts))
        return PointerSignature(
            public_key=format_public_key(self._signer.public_key), signature=signature
        )

    @property
    def _key(self) -> str:
        return f"adapters/{self._name}/current"

    def _check_absence(self) -> None:
        if self._seen.move:
            problem = f"the pointer was deleted: there is none, but move {self._seen.move} was seen"
            raise Untrusted(self._key, problem, self._remedy)

    def _check_signature(
        self, facts: PointerFacts, signature: PointerSignature | None, policy: TrustPolicy
    ) -> None:
        if signature is None:
            raise Untrusted(self._key, "the pointer is not signed", self._remedy)
        # Imported here because cryptography is slow to import and few installations have a policy.
        from jobs.store.trust.signatures import find_signer_key

        if find_signer_key(policy.keys, self._encode(facts), signature.signature) is None:
            problem = (
                f"no trusted key signed this pointer of {self._name} in project {self._project}; "
                f"its signature names the key {signature.public_key[:60]!a}"
            )
            raise Untrusted(self._key, problem, self._remedy)

    def _check_move(self, facts: PointerFacts) -> None:
        seen = self._seen
        if facts.move < seen.move:
            problem = (
                f"the pointer is at move {facts.move} (v{facts.version}), but move {seen.move} was "
                "seen: somebody restored an old pointer"
            )
            raise Untrusted(self._key, problem, self._remedy)
        if facts.move == seen.move and seen.version not in (0, facts.version):
            problem = f"move {facts.move} names v{facts.version}, but it named v{seen.version}"
            raise Untrusted(self._key, problem, self._remedy)

    def _encode(self, facts: PointerFacts) -> bytes:
        content = json.dumps(facts.content, sort_keys=True, separators=(",", ":")).encode()
        return encode_statement(
            describe_pointer(
                project=self._project,
                name=self._name,
                version=facts.version,
                move=facts.move,
                content=content,
            )
        )

    @property
    def _remedy(self) -> str:
        return (
            f"Name a version, as in {self._name}@v2; to fix the pointer, promote a version with "
            f"the key: `slora adapters promote {self._name}@v2`."
        )
