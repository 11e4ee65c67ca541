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

from jobs.errors import InputError
from jobs.federation.averaging.flat_layout import VectorLayout, make_layout, to_bytes
from jobs.federation.averaging.payload import decode, encode
from jobs.federation.averaging.scores import reduce_score
from jobs.federation.sites.client_rows import make_request_partition
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientTask,
    ClientUpdate,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site_feeds import ClientFeeds
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.calibration import make_calibration_pass
from jobs.train.data.global_batches import Step
from jobs.train.data.worker_feeds import make_eval_feed
from jobs.train.engine.engine import CompactEngine
from jobs.train.engine.factory import make_engine_options
from jobs.train.engine.loss import compute_logits, count_correct, sum_loss
from jobs.train.engine.step import has_diverged, take_step
from jobs.train.method import stages
from jobs.train.method.low_rank_start import make_lora_inits, unpack_inits
from jobs.train.method.masks import make_mask_request, pack_masks, unpack_masks
from jobs.train.method.publish import publish
from jobs.train.method.runner import MethodRunner
from jobs.train.model.load_base import load_base
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.monitor.usage import gather_memory_peaks
from jobs.train.request import Request
from slora.layers.install import iter_adapter_layers, remove_layers
from slora.masks.mask import Mask
from slora.masks.scoring import score_layers
from slora.masks.selection import choose_masks, find_scorer

MarkTrainable = Callable[[nn.Module], None]
"""Marks what of a whole model is trained, for a kind that the product does not have."""


class Site:
    """The base, the stage that is installed in it, and the rows of its clients."""

    def __init__(
        self,
        request: Request,
        store: ObjectStore,
        device: torch.device,
        *,
        mark_trainable: MarkTrainable | None = None,
    ) -> None:
        assert request.federation is not None
        self._request, self._spec, self._section = request, request.spec, request.federation
        self._runs, self._team = RunStore(store, request.run_id), WorkerContext(0, 1, device)
        base = load_base(request, store, self._team)
        self._model, self._tokenizer, self._targets = base.model, base.tokenizer, base.targets
        if mark_trainable is not None:
            mark_trainable(self._model)
        self._feeds = ClientFeeds(request, self._tokenizer, make_request_partition(request))
        self._method = self._make_method()
        self._stage, self._layout, self._setup_digest = -1, VectorLayout((), ()), ""
        self._residuals: dict[int, Tensor] = {}
        self._held_out: dict[tuple[int, int], list[tuple[int, Step]]] = {}

    def open(self, stage: int, payload: StagePayload) -> StageInfo:
        """Installs a stage, and tells what all others must have too."""
        self._install_stage(stage, payload)
        initial_weights = to_bytes(self._layout.flatten(self._get_trainable()))
        return StageInfo(
            self._layout,
            initial_weights,
            self._pack_scored_masks(stage, payload),
            self._setup_digest,
        )

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The targets' rows and columns, in the model's order."""
        return dict(self._method.shapes)

    def score(self, client: int) -> ClientScores | ClientFailure:
        """A client's scores for masks, from its own rows, before the first stage."""
        self._remove_stage()
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = find_scorer(request)
        assert scorer is not None
        run = make_calibration_pass(
            self._model,
            self._feeds.make_calibration_feed(client),
            batches=self._spec.method.calibration_batches,
            device=self._team.device,
        )
        try:
            scores_by_layer = score_layers(
                self._targets, scorer, run, sum_over_ranks=lambda total: total
            )
            packed = b"".join(
                to_bytes(reduce_score(score, request.mask)) for _, score in scores_by_layer
            )
        except InputError as error:
            return ClientFailure(client, 0, str(error))
        return ClientScores(client, packed, self._feeds.count_rows(client))

    def play(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        """One client's part of a round."""
        start_time = time.monotonic()
        self._install_stage(task.stage, task.payload)
        if task.residual:
            # Kept before anything else: a client that is left out of this round holds it on.
            residual_n = decode(task.residual, "none", self._layout.sizes, 1.0)
            self._residuals[task.client] = residual_n
        if task.drops_out:
            return ClientFailure(
                task.client, task.round, "dropped out, as federation.drop_out rehearses"
            )
        sizes = self._layout.sizes
        before_n = decode(task.weights, "none", sizes, 1.0)
        try:
            after_n, losses, tokens = self._train(task, before_n)
        except InputError as error:
            return ClientFailure(task.client, task.round, str(error))
        if after_n is None:
            advice = f"lower the learning rate ({task.learning_rate:g})"
            reason = f"its loss became {losses[-1]} at local step {len(losses)}: {advice}"
            return ClientFailure(task.client, task.round, reason, diverged=True)
        return ClientUpdate(
            client=task.client,
            round=task.round,
            update=self._encode_update(task, after_n - before_n),
            rows=self._feeds.count_rows(task.client),
            tokens=tokens,
            loss=statistics.fmean(losses),
            setup_digest=self._setup_digest,
            seconds=time.monotonic() - start_time,
        )

    def evaluate(self, stage: int, weights: bytes, part: int, parts: int) -> list[EvaluationSums]:
        """Every `parts`-th micro-batch of the held-out rows, from `part` on."""
        self._install_stage(stage, None)
        tensors = self._layout.split_by_name(decode(weights, "none", self._layout.sizes, 1.0))
        stages.load_weights(self._model, tensors)
        task, sums = self._spec.model.task, []
        with torch.no_grad():
            for index, step in self._read_eval_steps(part, parts):
                for batch in step.micros:
                    logits, labels = compute_logits(self._model, batch, device=self._team.device)
                    correct_count = (
                        count_correct(logits, labels) if task == "sequence-classification" else 0
                    )
                    loss = float(sum_loss(logits, labels))
                    sums.append(
                        EvaluationSums(index, loss, float(batch.targets), float(correct_count))
                    )
        return sums

    def residuals(self, stage: int) -> dict[int, bytes]:
        """What waits with clients until it is large enough to be sent: error feedback's.

        A site that had no task in the stage so far still has that of the stage before.
        """
        if stage != self._stage:
            return {}
        return {client: to_bytes(residual) for client, residual in self._residuals.items()}

    def peak(self) -> dict[str, Any]:
        """The most memory that this worker has held, and its host."""
        return gather_memory_peaks(self._team)["0"]

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
        self._install_stage(stage, None)
        tensors = self._layout.split_by_name(decode(weights, "none", self._layout.sizes, 1.0))
        stages.load_weights(self._model, tensors)
        if self._section.freeze_a:
            tensors |= {
                f"{name}.{part}": getattr(layer, part).detach().float().cpu()
                for name, layer in iter_adapter_layers(self._model)
                for part in ("a_RI", "a_values")
                if hasattr(layer, part)
            }
        if self._spec.method.kind != "full":
            self._method.uninstall(tensors)
        self._stage = -1
        store = self._runs.store
        return publish(
            store, self._request, self._model, self._tokenizer, tensors, self._method,
            attempt=attempt, evaluations=evaluations, ledger=ledger,
        )  # fmt: skip

    def _make_method(self) -> MethodRunner:
        return MethodRunner(
            self._spec,
            self._model,
            self._targets,
            self._runs,
            self._team,
            recorder=RunRecorder(self._runs, writes=False),
            make_calibration=lambda passes: lambda: 0,
            provide_scores=lambda scorer, compute: compute(),
            resumed=False,
        )

    def _get_stage_name(self, stage: int) -> str:
        return self._request.plan.stages[stage].name

    def _remove_stage(self) -> None:
        """The base as it was loaded."""
        remove_layers(self._model)
        self._stage = -1

    def _install_stage(self, stage: int, payload: StagePayload | None) -> None:
        if stage == self._stage:
            return
        payload = payload or StagePayload()
        self._remove_stage()
        self._residuals.clear()
        masks = (
            (self._method.masks or self._get_masks(payload)) if self._needs_masks(stage) else None
        )
        self._method = self._make_method()
        self._method.masks = masks
        if self._get_stage_name(stage) == "sparse":
            self._method.install_sparse()
        elif self._get_stage_name(stage) == "low-rank":
            self._install_low_rank(payload)
        self._layout = make_layout(self._get_trainable())
        mask_digests = "".join(mask.digest() for mask in masks.values()) if masks else ""
        self._setup_digest = self._layout.digest(mask_digests)
        self._stage = stage

    def _install_low_rank(self, payload: StagePayload) -> None:
        method = self._method
        # Without a kit the factors are whatever comes as weights, and these but stand for them.
        method.inits = (
            unpack_inits(payload.inits)
            if payload.inits
            else make_lora_inits(method.shapes, self._spec.method, seed=self._spec.train.seed)
        )
        method.install_low_rank({}, is_first=True, resumed=False)
        if self._section.freeze_a:
            for _, layer in iter_adapter_layers(self._model):
                for part in ("a_RI", "a_values"):
                    if hasattr(layer, part):
                        getattr(layer, part).requires_grad_(False)

    def _needs_masks(self, stage: int) -> bool:
        """Whether the stage has masks: to train on, or under what a hand-off left beside it."""
        if self._get_stage_name(stage) == "sparse":
            return True
        method = self._spec.method
        return method.kind == "slora" and method.handoff.residual != "drop"

    def _get_masks(self, payload: StagePayload) -> dict[str, Mask]:
        """From the kit, or made here, as every site makes them: of the seed, or of the base."""
        shapes = self._method.shapes
        if payload.masks:
            return unpack_masks(payload.masks, shapes)
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = find_scorer(request)
        scores = None if scorer is None else score_layers(self._targets, scorer, lambda: 0)
        return choose_masks(shapes, request, scores)

    def _pack_scored_masks(self, stage: int, payload: StagePayload) -> bytes:
        """Masks that were scored on the base, for a server that has none; packed."""
        masks = self._method.masks
        if payload.masks or not masks or self._get_stage_name(stage) != "sparse":
            return b""
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        return pack_masks(masks) if find_scorer(request) is not None else b""

    def _get_trainable(self) -> dict[str, Tensor]:
        return {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad
        }

    def _train(self, task: ClientTask, before_n: Tensor) -> tuple[Tensor | None, list[float], int]:
        """The weights after the local steps, or None where their numbers ended; losses, tokens."""
        options = make_engine_options(
            self._spec,
            sharding="replicate",
            micro_batch_size=self._request.plan.micro_batch_size,
            world_size=1,
        )
        options = replace(options, optimizer=self._section.optimizer)
        engine = CompactEngine(self._model, options, self._team, None)
        losses, tokens = list[float](), 0
        try:
            engine.restore_weights(self._layout.split_by_name(before_n))
            feed = self._feeds.make_round_feed(task.client, task.round)
            for step in feed.iter_steps(steps=self._section.local_steps):
                exchange = take_step(
                    engine, step, rate=task.learning_rate, device=self._team.device
                )
                assert exchange is not None
                losses.append(exchange.losses[0])
                tokens += step.tokens
                if has_diverged(exchange.losses[0], engine.get_grad_norm()):
                    return None, losses, tokens
            return self._layout.flatten(engine.gather_weights()), losses, tokens
        finally:
            engine.close()

    def _encode_update(self, task: ClientTask, delta_n: Tensor) -> bytes:
        section, sizes = self._section, self._layout.sizes
        if section.compress == "topk":
            # Error feedback (Seide et al., 2014; Stich et al., 2018, arXiv 1809.07599): what is
            # not sent now is added to what is to be sent next.
            delta_n = delta_n + self._residuals.get(task.client, 0.0)
        key = f"{self._spec.train.seed}\0round {task.round}\0client {task.client}\0int8"
        encoded = encode(delta_n, section.compress, sizes, section.topk, key=key)
        if section.compress == "topk":
            residual_n = delta_n - decode(encoded, "topk", sizes, section.topk)
            self._residuals[task.client] = residual_n
        return encoded

    def _read_eval_steps(self, part: int, parts: int) -> list[tuple[int, Step]]:
        """Tokenised once: the same rows are asked about after every few rounds."""
        if (part, parts) not in self._held_out:
            feed = make_eval_feed(self._request, self._tokenizer, rank=0, world_size=1)
            assert feed is not None
            steps = enumerate(feed.iter_epoch())
            self._held_out[part, parts] = [
                indexed_step for indexed_step in steps if indexed_step[0] % parts == part
            ]
        return self._held_out[part, parts]
