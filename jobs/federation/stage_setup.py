"""How a stage of a federation begins: its masks, what clients get once, and its first weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from jobs.errors import TrainingFailed
from jobs.federation.averaging.flat_layout import to_vector
from jobs.federation.averaging.scores import average_scores, explain_unusable
from jobs.federation.partition import Partition
from jobs.federation.sampling import sample_clients
from jobs.federation.sites.local_sites import Sites
from jobs.federation.sites.messages import ClientFailure, ClientScores, StageInfo, StagePayload
from jobs.federation.traffic_log import TrafficLog
from jobs.store.runs.run_store import RunStore
from jobs.train.checkpoint import TrainingState
from jobs.train.comm.collectives import CALIBRATION, INSTALL, WorkerContext
from jobs.train.method.handoff import run_handoff
from jobs.train.method.low_rank_start import load_inits, pack_inits, save_inits
from jobs.train.method.masks import (
    load_masks,
    make_mask_request,
    make_masks,
    pack_masks,
    unpack_masks,
)
from jobs.train.monitor.recorder import RunRecorder
from jobs.train.request import Request
from slora.handoff.low_rank_init import LowRankInit
from slora.layers.install import TRAINABLE_SUFFIXES
from slora.masks.mask import Mask
from slora.masks.selection import choose_masks, find_scorer


@dataclass(frozen=True)
class StageState:
    """A stage before its first round, or before the one that it goes on with."""

    payload: StagePayload
    """What a client gets with its first task of the stage."""
    info: StageInfo
    weights_n: Tensor
    """float32."""
    energy_share: float | None
    """Share of the update's energy that a hand-off kept; None where there was none now."""


class StageSetup:
    """Begins the stages of one run, one after the other; remembers its masks."""

    def __init__(
        self,
        request: Request,
        runs: RunStore,
        sites: Sites,
        partition: Partition,
        context: WorkerContext,
        recorder: RunRecorder,
        traffic: TrafficLog,
    ) -> None:
        assert request.federation is not None
        self._spec, self._section, self._plan = request.spec, request.federation, request.plan
        self._runs, self._sites, self._partition = runs, sites, partition
        self._context, self._recorder, self._traffic = context, recorder, traffic
        self._masks: dict[str, Mask] | None = None

    def begin(
        self, index: int, weights: Mapping[str, Tensor], resume_state: TrainingState | None
    ) -> StageState:
        """Stage `index`, from what the one before has trained, or from a checkpoint inside it.

        Raises TrainingFailed where sites have other masks than the server, or give no scores.
        """
        inits, energy_share = self._prepare_low_rank_inits(index, weights, resume_state)
        payload = self._build_payload(index, inits)
        info = self._open_stage(index, payload, inits)
        return StageState(
            payload,
            info,
            self._build_initial_weights(info, weights, inits, resume_state),
            energy_share,
        )

    def _prepare_low_rank_inits(
        self, index: int, weights: Mapping[str, Tensor], resume_state: TrainingState | None
    ) -> tuple[dict[str, LowRankInit] | None, float | None]:
        """Where a low-rank stage starts after a sparse one."""
        if not index or self._plan.stages[index].name != "low-rank":
            return None, None
        if resume_state:
            return load_inits(self._runs), None
        assert self._masks is not None
        inits, energy_share = run_handoff(
            weights, self._masks, self._spec, self._context, self._recorder
        )
        save_inits(self._runs, inits)
        return inits, energy_share

    def _build_payload(self, index: int, inits: Mapping[str, LowRankInit] | None) -> StagePayload:
        method, masks = self._spec.method, b""
        keeps_residual = method.handoff.residual != "drop"
        # Masks are needed after the sparse stage only where a residual lies on them.
        needs_masks = method.kind in ("slora", "sparse") and (index == 0 or keeps_residual)
        if needs_masks and self._needs_row_scores():
            self._masks = self._choose_masks()
            masks = pack_masks(self._masks)
        return StagePayload(
            masks, _pack_or_empty(inits) if keeps_residual or self._section.freeze_a else b""
        )

    def _open_stage(
        self, index: int, payload: StagePayload, inits: Mapping[str, LowRankInit] | None
    ) -> StageInfo:
        """The stage at one site, which tells the others' layout, and its masks where it made them.

        Factors under masks of their own start where only their layers know.
        """
        if inits is not None and self._spec.method.factor_density < 1:
            payload = StagePayload(payload.masks, _pack_or_empty(inits))
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
        """The hand-off is made under the server's masks: they must be those of its sites."""
        server_digest = info.layout.digest("".join(mask.digest() for mask in masks.values()))
        if info.setup_digest != server_digest:
            problem = f"their masks have the digest {info.setup_digest[:12]}, the server's {server_digest[:12]}"
            raise TrainingFailed("the federation's sites", problem, "Do all run the same versions?")

    @staticmethod
    def _build_initial_weights(
        info: StageInfo,
        weights: Mapping[str, Tensor],
        inits: Mapping[str, LowRankInit] | None,
        resume_state: TrainingState | None,
    ) -> Tensor:
        """The stage's first weights: its own start, beside what goes on from an earlier stage."""
        layout = info.layout
        tensors = layout.split_by_name(to_vector(info.initial_weights, layout))
        for name, init in (inits or {}).items():
            tensors |= {f"{name}.a_RI": init.a_RI, f"{name}.b_OR": init.b_OR}
        source = resume_state.weights if resume_state else weights
        for name in layout.names:
            # A head is trained in both stages; values and factors are of one.
            if name in source and (resume_state or not name.endswith(TRAINABLE_SUFFIXES)):
                tensors[name] = source[name]
        return layout.flatten(tensors)

    def _needs_row_scores(self) -> bool:
        """Whether masks need scores of the clients' rows: those of the base any site makes."""
        scorer = find_scorer(make_mask_request(self._spec.method, seed=self._spec.train.seed))
        return scorer is not None and scorer.unit is not None

    def _choose_masks(self) -> dict[str, Mask]:
        """By the mean of the first round's clients' scores; read back where they were chosen."""
        shapes = self._sites.get_shapes()
        if (saved_masks := load_masks(self._runs, shapes)) is not None:
            return saved_masks
        start_time = time.monotonic()
        request = make_mask_request(self._spec.method, seed=self._spec.train.seed)
        event_fields = {"strategy": request.mask, "score": request.score_name}
        self._recorder.emit_event("scoring", **event_fields)
        scores = average_scores(self._collect_scores(shapes, request.mask), shapes, request.mask)
        masks = make_masks(shapes, request, scores, self._runs, writes=True)
        self._recorder.emit_event("masked", **event_fields, seconds=time.monotonic() - start_time)
        return masks

    def _collect_scores(
        self, shapes: Mapping[str, tuple[int, int]], mask: str
    ) -> list[ClientScores]:
        """Those of the first round's clients that can be used."""
        seed, count = self._spec.train.seed, self._section.clients_per_round
        clients = sample_clients(seed, 0, clients=self._partition.count, count=count)
        usable = list[ClientScores]()
        for reply in self._sites.score(clients):
            reason = reply.reason if isinstance(reply, ClientFailure) else None
            if isinstance(reply, ClientScores):
                self._context.collectives.count_traffic(CALIBRATION, len(reply.scores))
                reason = explain_unusable(
                    reply, len(self._partition.rows[reply.client]), shapes, mask
                )
                if reason is None:
                    usable.append(reply)
                    continue
            self._recorder.emit_event("left out", round=0, client=reply.client,
                               name=self._partition.names[reply.client], why=reason)  # fmt: skip
        if not usable:
            raise TrainingFailed("the calibration", "no client gave a score", "Look at their rows.")
        return usable


def _pack_or_empty(inits: Mapping[str, LowRankInit] | None) -> bytes:
    return pack_inits(inits) if inits is not None else b""
