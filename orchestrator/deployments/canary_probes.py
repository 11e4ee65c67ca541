"""The requests that judge a version: sample prompts and held-out rows of the adapter's own run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.errors import InputError, NotInStore, StoreError
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.canary_file import CANARY_FILE, CanaryFile, HeldOutRow, parse_canary
from jobs.store.runs.journal import parse_events
from jobs.store.runs.run_store import EVENTS, RunStore
from orchestrator.deployments.deployment_record import MAX_PROMPT_CHARS
from orchestrator.deployments.serving_target import Prompt

MAX_EVENT_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class CanaryPrompt:
    """A prompt of the canary."""

    prompt: Prompt
    is_chat: bool = False
    needs_answer: bool = True
    """False where the trained model itself had nothing to answer."""


ANY_PROMPT = CanaryPrompt("Hello", needs_answer=False)
"""What a version is asked whose run recorded nothing, such as a search's trial."""


@dataclass(frozen=True)
class CanaryProbes:
    """What a version is asked, and what is known about its answers."""

    prompts: tuple[CanaryPrompt, ...] = ()
    rows: tuple[HeldOutRow, ...] = ()
    loss: float | None = None
    """Mean loss per target of the trained model on these rows."""


def load_probes(
    store: ObjectStore, manifest: Manifest, extra_prompts: Iterable[str]
) -> CanaryProbes:
    """Return the probes of a version, with the deployment's own prompts. Raise StoreError.

    Runs of earlier releases recorded the texts of their sample prompts only.
    """
    recorded = _read_canary_file(store, manifest)
    if recorded is None:
        texts = tuple(_read_sample_prompts(store, manifest))
        own = (*texts, *(CanaryPrompt(text) for text in extra_prompts))
        return CanaryProbes(own or (ANY_PROMPT,))
    own = tuple(
        CanaryPrompt(sample.tokens, needs_answer=sample.has_answer) for sample in recorded.prompts
    )
    extra = (CanaryPrompt(text, is_chat=recorded.is_chat) for text in extra_prompts)
    prompts = (*own, *extra)
    return CanaryProbes(prompts or (ANY_PROMPT,), recorded.rows, recorded.loss)


def _read_canary_file(store: ObjectStore, manifest: Manifest) -> CanaryFile | None:
    try:
        key = RunStore(store, manifest.run).key(CANARY_FILE)
        data = store.read(key, 0, MAX_FILE_BYTES + 1)
    except (NotInStore, InputError):
        return None
    if len(data) > MAX_FILE_BYTES:
        raise StoreError(
            f"{key}: it has more than {MAX_FILE_BYTES} bytes. Train the adapter again."
        )
    return parse_canary(data, key)


def _read_sample_prompts(store: ObjectStore, manifest: Manifest) -> Iterable[CanaryPrompt]:
    """Yield the prompts of the last `samples` event of the run."""
    try:
        data = store.read(RunStore(store, manifest.run).key(EVENTS), 0, MAX_EVENT_BYTES)
    except (NotInStore, InputError):
        return
    events = [event for event in parse_events(data, 0)[0] if event.get("event") == "samples"]
    samples = events[-1].get("samples") if events else None
    for sample in samples if isinstance(samples, list) else ():
        if isinstance(sample, Mapping) and (prompt := _make_prompt(sample)) is not None:
            yield prompt


def _make_prompt(sample: Mapping[str, Any]) -> CanaryPrompt | None:
    text, answer = sample.get("prompt"), sample.get("answer")
    if not isinstance(text, str) or not text.strip():
        return None
    has_answer = isinstance(answer, str) and bool(answer.strip())
    return CanaryPrompt(text[:MAX_PROMPT_CHARS], needs_answer=has_answer)
