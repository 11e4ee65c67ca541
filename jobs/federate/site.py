"""A site: one worker that holds the base once and plays clients, one after the other. Knows no Ray.

What it sends is what was trained and never a row: updates, sums over held-out rows, scores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from jobs import stages
from jobs.adaptation import Adaptation
from jobs.base import load_base
from jobs.calibration import calibration_run
from jobs.data.feed import Step
from jobs.engine import CompactEngine
from jobs.engines import step_options
from jobs.errors import InputError
from jobs.federate.feeds import ClientFeeds
from jobs.federate.layout import Layout, layout_of, to_bytes
from jobs.federate.messages import Answer, Kit, Left, Opened, Scored, Sums, Task
from jobs.federate.payload import decode, encode
from jobs.federate.rows import partition_of
from jobs.federate.scores import reduced
from jobs.feeds import eval_feed
from jobs.masking import mask_request, pack_masks, unpack_masks
from jobs.objective import ask, correct, loss_sum
from jobs.peak import peaks
from jobs.publish import publish
from jobs.record import Record
from jobs.request import Request
from jobs.starts import own_starts, unpack_starts
from jobs.step import diverged, take_step
from jobs.store.manifest import Manifest
from jobs.store.objects import ObjectStore
from jobs.store.runs import RunStore
from jobs.team import Team
from slora.adapt import adapted, remove
from slora.calibrate import layer_scores
from slora.mask import Mask
from slora.masks.choose import choose_masks, needed

Trained = Callable[[nn.Module], None]
"""Marks what of a whole model is trained, for a kind that the product does not have."""


class Site:
    """The base, the stage that is installed in it, and the rows of its clients."""

    def __init__(
        self,
        request: Request,
        store: ObjectStore,
        device: torch.device,
        *,
        trained: Trained | None = None,
    ) -> None:
        assert request.federation is not None
        self._request, self._spec, self._section = request, request.spec, request.federation
        self._runs, self._team = RunStore(store, request.run_id), Team(0, 1, device)
        base = load_base(request, store, self._team)
        self._model, self._tokenizer, self._targets = base.model, base.tokenizer, base.targets
        if trained is not None:
            trained(self._model)
        self._feeds = ClientFeeds(request, self._tokenizer, partition_of(request))
        self._method = self._fresh_method()
        self._stage, self._layout, self._agreed = -1, Layout((), ()), ""
        self._residuals: dict[int, Tensor] = {}
        self._held_out: dict[tuple[int, int], list[tuple[int, Step]]] = {}

    def open(self, stage: int, kit: Kit) -> Opened:
        """Installs a stage, and tells what all others must have too."""
        self._open(stage, kit)
        first = to_bytes(self._layout.flat(self._trained()))
        return Opened(self._layout, first, self._made_here(stage, kit), self._agreed)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The targets' rows and columns, in the model's order."""
        return dict(self._method.shapes)

    def score(self, client: int) -> Scored | Left:
        """A client's scores for masks, from its own rows, before the first stage."""
        self._plain()
        request = mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = needed(request)
        assert scorer is not None
        run = calibration_run(
            self._model,
            self._feeds.calibration(client),
            batches=self._spec.method.calibration_batches,
            device=self._team.device,
        )
        try:
            found = layer_scores(self._targets, scorer, run, over_ranks=lambda total: total)
            packed = b"".join(to_bytes(reduced(score, request.mask)) for _, score in found)
        except InputError as unusable:
            return Left(client, 0, str(unusable))
        return Scored(client, packed, self._feeds.rows(client))

    def play(self, task: Task) -> Answer | Left:
        """One client's part of a round."""
        began = time.monotonic()
        self._open(task.stage, task.kit)
        if task.residual:
            # Kept before anything else: a client that is left out of this round holds it on.
            left_n = decode(task.residual, "none", self._layout.sizes, 1.0)
            self._residuals[task.client] = left_n
        if task.lost:
            return Left(task.client, task.round, "dropped out, as federation.drop_out rehearses")
        sizes = self._layout.sizes
        before_n = decode(task.weights, "none", sizes, 1.0)
        try:
            after_n, losses, tokens = self._train(task, before_n)
        except InputError as unusable:
            return Left(task.client, task.round, str(unusable))
        if after_n is None:
            rate = f"lower the learning rate ({task.rate:g})"
            why = f"its loss became {losses[-1]} at local step {len(losses)}: {rate}"
            return Left(task.client, task.round, why, diverged=True)
        return Answer(
            client=task.client,
            round=task.round,
            update=self._update(task, after_n - before_n),
            rows=self._feeds.rows(task.client),
            tokens=tokens,
            loss=statistics.fmean(losses),
            agreed=self._agreed,
            seconds=time.monotonic() - began,
        )

    def evaluate(self, stage: int, weights: bytes, part: int, parts: int) -> list[Sums]:
        """Every `parts`-th micro-batch of the held-out rows, from `part` on."""
        self._open(stage, None)
        named = self._layout.named(decode(weights, "none", self._layout.sizes, 1.0))
        stages.load_weights(self._model, named)
        task, found = self._spec.model.task, []
        with torch.no_grad():
            for index, step in self._rows_of(part, parts):
                for batch in step.micros:
                    logits, labels = ask(self._model, batch, device=self._team.device)
                    right = correct(logits, labels) if task == "sequence-classification" else 0
                    loss = float(loss_sum(logits, labels))
                    found.append(Sums(index, loss, float(batch.targets), float(right)))
        return found

    def residuals(self, stage: int) -> dict[int, bytes]:
        """What waits with clients until it is large enough to be sent: error feedback's.

        A site that had no task in the stage so far still has that of the stage before.
        """
        if stage != self._stage:
            return {}
        return {client: to_bytes(left) for client, left in self._residuals.items()}

    def peak(self) -> dict[str, Any]:
        """The most memory that this worker has held, and its host."""
        return peaks(self._team)["0"]

    def commit(
        self,
        stage: int,
        weights: bytes,
        *,
        attempt: int,
        evaluations: Mapping[str, Mapping[str, float]],
        ledger: Mapping[str, Any],
    ) -> Manifest:
        """The adapter into the store. Raises BadAdapter, StoreError."""
        self._open(stage, None)
        named = self._layout.named(decode(weights, "none", self._layout.sizes, 1.0))
        stages.load_weights(self._model, named)
        if self._section.freeze_a:
            named |= {
                f"{name}.{part}": getattr(layer, part).detach().float().cpu()
                for name, layer in adapted(self._model)
                for part in ("a_RI", "a_values")
                if hasattr(layer, part)
            }
        if self._spec.method.kind != "full":
            self._method.uninstall(named)
        self._stage = -1
        store = self._runs.store
        return publish(
            store, self._request, self._model, self._tokenizer, named, self._method,
            attempt=attempt, evaluations=evaluations, ledger=ledger,
        )  # fmt: skip

    def _fresh_method(self) -> Adaptation:
        return Adaptation(
            self._spec,
            self._model,
            self._targets,
            self._runs,
            self._team,
            record=Record(self._runs, writes=False),
            calibrate=lambda passes: lambda: 0,
            scored=lambda scorer, compute: compute(),
            resumed=False,
        )

    def _name(self, stage: int) -> str:
        return self._request.plan.stages[stage].name

    def _plain(self) -> None:
        """The base as it was loaded."""
        remove(self._model)
        self._stage = -1

    def _open(self, stage: int, kit: Kit | None) -> None:
        if stage == self._stage:
            return
        kit = kit or Kit()
        self._plain()
        self._residuals.clear()
        masks = (self._method.masks or self._masks(kit)) if self._on_masks(stage) else None
        self._method = self._fresh_method()
        self._method.masks = masks
        if self._name(stage) == "sparse":
            self._method.install_sparse()
        elif self._name(stage) == "low-rank":
            self._install_low_rank(kit)
        self._layout = layout_of(self._trained())
        said = "".join(mask.digest() for mask in masks.values()) if masks else ""
        self._agreed = self._layout.digest(said)
        self._stage = stage

    def _install_low_rank(self, kit: Kit) -> None:
        method = self._method
        # Without a kit the factors are whatever comes as weights, and these but stand for them.
        method.starts = (
            unpack_starts(kit.starts)
            if kit.starts
            else own_starts(method.shapes, self._spec.method, seed=self._spec.train.seed)
        )
        method.install_low_rank({}, first=True, done=False)
        if self._section.freeze_a:
            for _, layer in adapted(self._model):
                for part in ("a_RI", "a_values"):
                    if hasattr(layer, part):
                        getattr(layer, part).requires_grad_(False)

    def _on_masks(self, stage: int) -> bool:
        """Whether the stage has masks: to train on, or under what a hand-off left beside it."""
        if self._name(stage) == "sparse":
            return True
        method = self._spec.method
        return method.kind == "slora" and method.handoff.residual != "drop"

    def _masks(self, kit: Kit) -> dict[str, Mask]:
        """From the kit, or made here, as every site makes them: of the seed, or of the base."""
        shapes = self._method.shapes
        if kit.masks:
            return unpack_masks(kit.masks, shapes)
        request = mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = needed(request)
        scores = None if scorer is None else layer_scores(self._targets, scorer, lambda: 0)
        return choose_masks(shapes, request, scores)

    def _made_here(self, stage: int, kit: Kit) -> bytes:
        """Masks that were scored on the base, for a server that has none; packed."""
        masks = self._method.masks
        if kit.masks or not masks or self._name(stage) != "sparse":
            return b""
        request = mask_request(self._spec.method, seed=self._spec.train.seed)
        return pack_masks(masks) if needed(request) is not None else b""

    def _trained(self) -> dict[str, Tensor]:
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def _train(self, task: Task, before_n: Tensor) -> tuple[Tensor | None, list[float], int]:
        """The weights after the local steps, or None where their numbers ended; losses, tokens."""
        options = step_options(
            self._spec,
            sharding="replicate",
            micro_batch_size=self._request.plan.micro_batch_size,
            world_size=1,
        )
        options = replace(options, optimizer=self._section.optimizer)
        engine = CompactEngine(self._model, options, self._team, None)
        losses, tokens = list[float](), 0
        try:
            engine.restore_weights(self._layout.named(before_n))
            feed = self._feeds.of(task.client, task.round)
            for step in feed.steps(steps=self._section.local_steps):
                told = take_step(engine, step, rate=task.rate, device=self._team.device)
                assert told is not None
                losses.append(told.losses[0])
                tokens += step.tokens
                if diverged(told.losses[0], engine.grad_norm()):
                    return None, losses, tokens
            return self._layout.flat(engine.weights()), losses, tokens
        finally:
            engine.close()

    def _update(self, task: Task, delta_n: Tensor) -> bytes:
        section, sizes = self._section, self._layout.sizes
        if section.compress == "topk":
            # Error feedback (Seide et al., 2014; Stich et al., 2018, arXiv 1809.07599): what is
            # not sent now is added to what is to be sent next.
            delta_n = delta_n + self._residuals.get(task.client, 0.0)
        key = f"{self._spec.train.seed}\0round {task.round}\0client {task.client}\0int8"
        sent = encode(delta_n, section.compress, sizes, section.topk, key=key)
        if section.compress == "topk":
            left_n = delta_n - decode(sent, "topk", sizes, section.topk)
            self._residuals[task.client] = left_n
        return sent

    def _rows_of(self, part: int, parts: int) -> list[tuple[int, Step]]:
        """Tokenised once: the same rows are asked about after every few rounds."""
        if (part, parts) not in self._held_out:
            feed = eval_feed(self._request, self._tokenizer, rank=0, world_size=1)
            assert feed is not None
            steps = enumerate(feed.epoch())
            self._held_out[part, parts] = [one for one in steps if one[0] % parts == part]
        return self._held_out[part, parts]
