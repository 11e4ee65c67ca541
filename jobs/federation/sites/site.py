"""A site: one worker that holds the base and trains clients in turn. Knows no Ray.

It sends what was trained and never a row: updates, sums over held-out rows, scores.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from jobs.errors import InputError
from jobs.federation.averaging.flat_layout import VectorLayout, to_bytes
from jobs.federation.averaging.payload import PayloadFormat, decode, encode
from jobs.federation.averaging.scores import reduce_score
from jobs.federation.partition_file import read_partition
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientSketches,
    ClientTask,
    ClientUpdate,
    CommitRecord,
    EvaluationSums,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.site_feeds import ClientFeeds
from jobs.federation.sites.site_stage import SiteStage
from jobs.store.adapters.manifest import Manifest
from jobs.store.base import ObjectStore
from jobs.store.runs.run_store import RunStore
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.calibration import make_calibration_pass, make_sketch_pass
from jobs.train.data.global_batches import Step
from jobs.train.data.worker_feeds import make_eval_feed
from jobs.train.engine.engine import CompactEngine
from jobs.train.engine.factory import make_engine_options
from jobs.train.engine.step import has_diverged, take_step
from jobs.train.evaluation_sums import compute_sums
from jobs.train.method.handoff_sketches import SketchPass, sketch_installed
from jobs.train.method.masks import make_mask_request
from jobs.train.method.publish import publish
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.model.load_base import load_base
from jobs.train.monitor.usage import gather_memory_peaks
from jobs.train.request import FederationRequest
from slora.masks.scoring import score_layers
from slora.masks.selection import find_scorer

MarkTrainable = Callable[[nn.Module], None]
"""Marks the trained parameters of a full model, for kinds of training that only tests have."""


class Site:
    """The base, the stage that is installed in it, and the rows of its clients."""

    def __init__(
        self,
        request: FederationRequest,
        store: ObjectStore,
        device: torch.device,
        *,
        mark_trainable: MarkTrainable | None = None,
    ) -> None:
        self._request, self._spec, self._section = request, request.spec, request.federation
        self._runs, self._context = RunStore(store, request.run_id), WorkerContext(0, 1, device)
        base = load_base(request, store, self._context)
        self._request = request = request.with_packing(base.packing)
        self._model, self._tokenizer, self._targets = base.model, base.tokenizer, base.targets
        self._loss = base.loss
        if mark_trainable is not None:
            mark_trainable(self._model)
        partition = read_partition(self._runs, request.partition)
        self._feeds = ClientFeeds(request, self._tokenizer, partition)
        self._stage = SiteStage(request, self._runs, self._model, self._targets)
        self._residuals: dict[int, Tensor] = {}
        self._eval_steps: dict[tuple[int, int], list[tuple[int, Step]]] = {}

    def open_stage(self, stage: int, payload: StagePayload) -> StageInfo:
        """Install a stage and return what must be the same on all sides."""
        self._ensure_stage(stage, payload)
        return self._stage.describe(payload)

    def get_shapes(self) -> dict[str, tuple[int, int]]:
        """Return the targets' rows and columns, in the model's order."""
        return dict(self._stage.shapes)

    def score_client(self, client: int) -> ClientScores | ClientFailure:
        """Compute a client's scores for masks from its own rows, before the first stage."""
        self._stage.remove()
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        scorer = find_scorer(request)
        assert scorer is not None
        calibrate = make_calibration_pass(
            self._model,
            self._feeds.make_calibration_feed(client),
            batches=self._spec.method.calibration_batches,
            device=self._context.device,
            choice=self._loss,
        )
        try:
            scores = score_layers(
                self._targets, scorer, calibrate, sum_over_ranks=lambda total: total
            )
            encoded = b"".join(to_bytes(reduce_score(score, request.mask)) for _, score in scores)
        except InputError as error:
            return ClientFailure(client, 0, str(error))
        return ClientScores(client, encoded, self._feeds.count_rows(client))

    def sketch_client(
        self, client: int, stage: int, weights: bytes
    ) -> ClientSketches | ClientFailure:
        """Compute a client's sketches for the hand-off from its own rows, with these weights."""
        tensors, masks = self._load_weights(stage, weights), self._stage.method.masks
        assert masks is not None

        def make_pass(gradients: bool, passes: int) -> SketchPass:
            return make_sketch_pass(
                self._model,
                self._feeds.make_calibration_feed(client),
                batches=self._spec.method.calibration_batches,
                device=self._context.device,
                gradients=gradients,
                choice=self._loss,
            )

        try:
            updates = SparseUpdates(tensors, masks, self._spec.method, self._spec.train.seed)
            sketches = sketch_installed(self._model, updates, make_pass, lambda total: total)
        except InputError as error:
            return ClientFailure(client, 0, str(error))
        packed = torch.cat([sketch.pack().cpu() for sketch in sketches.values()])
        return ClientSketches(client, to_bytes(packed))

    def run_task(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train one client for one round."""
        start_time = time.monotonic()
        self._ensure_stage(task.stage, task.payload)
        uncompressed = PayloadFormat(self._layout)
        if task.residual:
            # Stored first: a client that is dropped from this round must not lose it.
            self._residuals[task.client] = decode(task.residual, uncompressed)
        if task.drops_out:
            reason = "it dropped out, simulated by federation.drop_out"
            return ClientFailure(task.client, task.round, reason)
        before_n = decode(task.weights, uncompressed)
        try:
            after_n, losses, tokens = self._train(task, before_n)
        except InputError as error:
            return ClientFailure(task.client, task.round, str(error))
        if after_n is None:
            remedy = f"lower the learning rate ({task.rates.stage:g}, head {task.rates.head:g})"
            reason = f"its loss became {losses[-1]} at local step {len(losses)}: {remedy}"
            return ClientFailure(task.client, task.round, reason, diverged=True)
        return ClientUpdate(
            client=task.client,
            round=task.round,
            update=self._encode_update(task, after_n - before_n),
            rows=self._feeds.count_rows(task.client),
            tokens=tokens,
            loss=statistics.fmean(losses),
            setup_digest=self._stage.digest,
            seconds=time.monotonic() - start_time,
        )

    def evaluate(
        self, stage: int, weights: bytes, *, part: int, parts: int
    ) -> list[EvaluationSums]:
        """Evaluate every `parts`-th micro-batch of the held-out rows, from number `part` on."""
        self._load_weights(stage, weights)
        sums = []
        with torch.no_grad():
            for index, step in self._read_eval_steps(part, parts):
                for batch in step.micros:
                    values = compute_sums(
                        self._model, batch, self._loss, device=self._context.device
                    ).tolist()
                    sums.append(EvaluationSums(index, tuple(values)))
        return sums

    def get_residuals(self, stage: int) -> dict[int, bytes]:
        """Return what error feedback has kept of each client's updates in this stage.

        A site without a task in the stage so far still has the residuals of the stage before.
        """
        if stage != self._stage.index:
            return {}
        return {client: to_bytes(residual) for client, residual in self._residuals.items()}

    def measure_peak(self) -> dict[str, Any]:
        """Return the peak memory of this worker, and its host."""
        return gather_memory_peaks(self._context)["0"]

    def commit(self, stage: int, weights: bytes, record: CommitRecord) -> Manifest:
        """Commit the adapter to the store. Raise BadAdapter or StoreError."""
        tensors = self._load_weights(stage, weights)
        tensors |= self._stage.get_frozen_factors()
        self._stage.uninstall(tensors)
        return publish(
            self._runs.store,
            self._request,
            self._model,
            self._tokenizer,
            tensors,
            self._stage.method,
            attempt=record.attempt,
            evaluations=record.evaluations,
            ledger=record.ledger,
        )

    @property
    def _layout(self) -> VectorLayout:
        return self._stage.layout

    def _ensure_stage(self, stage: int, payload: StagePayload | None) -> None:
        """Install a stage, unless it is installed already."""
        if stage != self._stage.index:
            self._residuals.clear()
            self._stage.install(stage, payload or StagePayload())

    def _load_weights(self, stage: int, weights: bytes) -> dict[str, Tensor]:
        """Put weights into the stage's layers, and return them by name."""
        self._ensure_stage(stage, None)
        tensors = self._layout.split_by_name(decode(weights, PayloadFormat(self._layout)))
        self._stage.load_weights(tensors)
        return tensors

    def _train(self, task: ClientTask, before_n: Tensor) -> tuple[Tensor | None, list[float], int]:
        """Return the weights after the local steps (None if they diverged), losses and tokens."""
        options = make_engine_options(
            self._spec,
            sharding="replicate",
            micro_batch_size=self._request.plan.micro_batch_size,
            world_size=1,
            head=self._request.plan.head_modules,
        )
        options = replace(options, optimizer=self._section.optimizer)
        engine = CompactEngine(self._model, options, self._context, None)
        losses, tokens = list[float](), 0
        try:
            engine.restore_weights(self._layout.split_by_name(before_n))
            feed = self._feeds.make_round_feed(task.client, task.round)
            for step in feed.iter_steps(steps=self._section.local_steps):
                exchange = take_step(
                    engine,
                    step,
                    rates=task.rates,
                    device=self._context.device,
                    choice=self._loss,
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
        section = self._section
        form = PayloadFormat(self._layout, section.compress, section.topk)
        if section.compress == "topk":
            # Error feedback (Seide et al., 2014; Stich et al., 2018, arXiv 1809.07599): what is
            # not sent now is added to the next update.
            delta_n = delta_n + self._residuals.get(task.client, 0.0)
        key = f"{self._spec.train.seed}\0round {task.round}\0client {task.client}\0int8"
        encoded = encode(delta_n, form, key=key)
        if section.compress == "topk":
            self._residuals[task.client] = delta_n - decode(encoded, form)
        return encoded

    def _read_eval_steps(self, part: int, parts: int) -> list[tuple[int, Step]]:
        """Return this part of the held-out rows, tokenized once for all evaluations."""
        if (part, parts) not in self._eval_steps:
            feed = make_eval_feed(self._request, self._tokenizer, rank=0, world_size=1)
            assert feed is not None
            steps = list(enumerate(feed.iter_epoch()))
            self._eval_steps[part, parts] = steps[part::parts]
        return self._eval_steps[part, parts]
