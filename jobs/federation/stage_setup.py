"""Open a stage of a federation: choose its masks, build its payload, set its first weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from jobs.errors import TrainingFailed
from jobs.federation.averaging.flat_layout import VectorLayout, to_bytes, to_vector
from jobs.federation.averaging.scores import average_scores, explain_unusable
from jobs.federation.averaging.sketches import explain_unusable_sketches, fill_sketches
from jobs.federation.partition import Partition
from jobs.federation.sampling import sample_clients
from jobs.federation.sites.messages import (
    ClientFailure,
    ClientScores,
    ClientSketches,
    StageInfo,
    StagePayload,
)
from jobs.federation.sites.sites_interface import Sites
from jobs.federation.traffic_log import TrafficLog
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import TrainingState
from jobs.train.comm.collectives import CALIBRATION, HANDOFF, INSTALL, WorkerContext
from jobs.train.method.handoff import HandoffShares, run_handoff
from jobs.train.method.handoff_sketches import needs_sketches, start_sketches
from jobs.train.method.low_rank_start import load_inits, pack_inits, save_inits
from jobs.train.method.masks import (
    load_masks,
    make_mask_request,
    make_masks,
    pack_masks,
    unpack_masks,
)
from jobs.train.method.sparse_updates import SparseUpdates
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import FederationRequest
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.sketch import LayerSketch
from slora.layers.install import TRAINABLE_SUFFIXES
from slora.masks.mask import Mask
from slora.masks.selection import choose_masks, find_scorer


@dataclass(frozen=True)
class StageState:
    """A stage that is open at the sites, before its first or next round."""

    payload: StagePayload
    """Sent to each client with its first task of the stage."""
    info: StageInfo
    weights_n: Tensor
    """float32."""
    shares: HandoffShares | None
    """What the hand-off retained of the update; None if there was none now."""


class StageSetup:
    """Opens the stages of one run in turn, and remembers the run's masks."""

    def __init__(
        self,
        request: FederationRequest,
        runs: RunStore,
        sites: Sites,
        partition: Partition,
        context: WorkerContext,
        recorder: RunRecorder,
        traffic: TrafficLog,
    ) -> None:
        self._spec, self._section, self._plan = request.spec, request.federation, request.plan
        self._runs, self._sites, self._partition = runs, sites, partition
        self._context, self._recorder, self._traffic = context, recorder, traffic
        self._masks: dict[str, Mask] | None = None
        self._layout: VectorLayout | None = None
        """Of the stage that is open."""

    def open_stage(
        self, index: int, weights: Mapping[str, Tensor], resume_state: TrainingState | None
    ) -> StageState:
        """Open a stage with the weights of the stage before, or from a checkpoint inside it.

        Raise TrainingFailed if the sites' masks differ from the server's, or without any scores.
        """
        inits, shares = self._prepare_low_rank_inits(index, weights, resume_state)
        payload = self._build_payload(index, inits)
        info = self._install_at_site(index, payload)
        weights_n = self._build_initial_weights(info, weights, inits, resume_state)
        self._layout = info.layout
        return StageState(payload, info, weights_n, shares)

    def _prepare_low_rank_inits(
        self, index: int, weights: Mapping[str, Tensor], resume_state: TrainingState | None
    ) -> tuple[dict[str, LowRankInit] | None, HandoffShares | None]:
        """Return the hand-off's initial factors for a low-rank stage, and what they retain."""
        if not index or self._plan.stages[index].name != "low-rank":
            return None, None
        if resume_state:
            return load_inits(self._runs), None
        assert self._masks is not None
        updates = SparseUpdates(weights, self._masks, self._spec.method, self._spec.train.seed)
        inits, shares = run_handoff(
            updates,
            self._context,
            self._recorder,
            make_sketches=lambda: self._collect_sketches(index, updates),
        )
        save_inits(self._runs, inits)
        return inits, shares

    def _collect_sketches(self, index: int, updates: SparseUpdates) -> dict[str, LayerSketch]:
        """Return the sum of the sketches of the next round's clients, who get the sparse stage's
        weights for it. Raise TrainingFailed if no client has valid ones.
        """
        assert self._layout is not None
        if not needs_sketches(updates):
            return {}
        sketches = start_sketches(updates)
        encoded = to_bytes(self._layout.flatten(updates.weights))
        usable = list[ClientSketches]()
        clients = self._sample_clients(self._count_rounds_before(index))
        for reply in self._sites.sketch_clients(clients, encoded) if sketches else ():
            self._context.collectives.count_traffic(HANDOFF, len(encoded))
            if isinstance(reply, ClientFailure):
                self._drop_client(reply.client, reply.reason)
                continue
            self._context.collectives.count_traffic(HANDOFF, len(reply.sketches))
            reason = explain_unusable_sketches(reply, sketches)
            if reason is None:
                usable.append(reply)
            else:
                self._drop_client(reply.client, reason)
        if sketches and not usable:
            remedy = "Check the rows of the clients, or use method.handoff.norm: weights."
            raise TrainingFailed("the hand-off", "no client has valid sketches", remedy)
        if usable:
            fill_sketches(usable, sketches)
        return sketches

    def _count_rounds_before(self, index: int) -> int:
        """Count the rounds of the stages before this one."""
        steps = sum(stage.steps or 0 for stage in self._plan.stages[:index])
        return steps // self._section.local_steps

    def _sample_clients(self, round_index: int) -> tuple[int, ...]:
        return sample_clients(
            self._spec.train.seed,
            round_index,
            clients=self._partition.count,
            count=self._section.clients_per_round,
        )

    def _build_payload(self, index: int, inits: Mapping[str, LowRankInit] | None) -> StagePayload:
        method, masks = self._spec.method, b""
        keeps_residual = method.handoff.residual != "drop"
        # After the sparse stage, masks are needed only for a residual on them.
        needs_masks = method.kind in ("slora", "sparse") and (index == 0 or keeps_residual)
        if needs_masks and self._needs_row_scores():
            self._masks = self._choose_masks()
            masks = pack_masks(self._masks)
        # Under masks of A and B, their other entries are not among the weights of a round.
        sends_inits = keeps_residual or self._section.freeze_a or method.has_factor_masks
        return StagePayload(masks, _pack_or_empty(inits) if sends_inits else b"")

    def _install_at_site(self, index: int, payload: StagePayload) -> StageInfo:
        """Install the stage at one site, which returns the layout and the masks if it made them."""
        info = self._sites.open_stage(index, payload)
        self._traffic.record_payload(payload)
        self._context.collectives.count_traffic(
            INSTALL, len(info.initial_weights) + len(info.masks)
        )
        if self._plan.stages[index].name != "sparse":
            return info
        if info.masks:
            self._masks = unpack_masks(info.masks, self._sites.get_shapes())
        elif self._masks is None:
            request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
            self._masks = choose_masks(self._sites.get_shapes(), request)
        self._check_masks(info, self._masks)
        return info

    @staticmethod
    def _check_masks(info: StageInfo, masks: Mapping[str, Mask]) -> None:
        """Raise TrainingFailed if the sites have other masks than the server's hand-off."""
        server_digest = info.layout.digest("".join(mask.digest() for mask in masks.values()))
        if info.setup_digest != server_digest:
            digests = f"{info.setup_digest[:12]}, but the server's have {server_digest[:12]}"
            problem = f"their masks have the digest {digests}"
            remedy = "Check that all sites run the same version of slora."
            raise TrainingFailed("the federation's sites", problem, remedy)

    @staticmethod
    def _build_initial_weights(
        info: StageInfo,
        weights: Mapping[str, Tensor],
        inits: Mapping[str, LowRankInit] | None,
        resume_state: TrainingState | None,
    ) -> Tensor:
        """Return the stage's own first weights, and those that an earlier stage has trained."""
        layout = info.layout
        tensors = layout.split_by_name(to_vector(info.initial_weights, layout))
        for name, init in (inits or {}).items():
            tensors |= {f"{name}.a_RI": init.a_RI, f"{name}.b_OR": init.b_OR}
        source = resume_state.weights if resume_state else weights
        for name in layout.names:
            # A head is trained in both stages, values and factors in one only.
            if name in source and (resume_state or not name.endswith(TRAINABLE_SUFFIXES)):
                tensors[name] = source[name]
        return layout.flatten(tensors)

    def _needs_row_scores(self) -> bool:
        """Return whether masks are scored on the clients' rows, and not on the base alone."""
        scorer = find_scorer(make_mask_request(self._spec.method, seed=self._spec.train.seed))
        return scorer is not None and scorer.unit is not None

    def _choose_masks(self) -> dict[str, Mask]:
        """Read the masks, or choose them by the mean score of the first round's clients."""
        shapes = self._sites.get_shapes()
        if (saved_masks := load_masks(self._runs, shapes)) is not None:
            return saved_masks
        start_time = time.monotonic()
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        event_fields = {"strategy": request.mask, "score": request.score_name}
        self._recorder.emit_event("scoring", **event_fields)
        scores = average_scores(self._collect_scores(shapes, request.mask), shapes, request.mask)
        masks = make_masks(shapes, request, scores, self._runs, writes=True)
        self._recorder.emit_event(
            "masks_selected", **event_fields, seconds=time.monotonic() - start_time
        )
        return masks

    def _collect_scores(
        self, shapes: Mapping[str, tuple[int, int]], mask: str
    ) -> list[ClientScores]:
        """Return the valid scores of the first round's clients. Raise TrainingFailed if none is."""
        usable = list[ClientScores]()
        for reply in self._sites.score_clients(self._sample_clients(0)):
            if isinstance(reply, ClientFailure):
                self._drop_client(reply.client, reply.reason)
                continue
            self._context.collectives.count_traffic(CALIBRATION, len(reply.scores))
            rows = len(self._partition.rows[reply.client])
            reason = explain_unusable(reply, rows, shapes, mask)
            if reason is None:
                usable.append(reply)
            else:
                self._drop_client(reply.client, reason)
        if not usable:
            remedy = "Check the rows of the clients."
            raise TrainingFailed("the calibration", "no client has valid scores", remedy)
        return usable

    def _drop_client(self, client: int, reason: str) -> None:
        name = self._partition.names[client]
        self._recorder.emit_event("client_dropped", round=0, client=client, name=name, why=reason)


def _pack_or_empty(inits: Mapping[str, LowRankInit] | None) -> bytes:
    return pack_inits(inits) if inits is not None else b""
