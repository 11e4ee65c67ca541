"""How a stage of a federation begins: its masks, what clients get once, and its first weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from jobs.checkpoint import State
from jobs.errors import TrainingFailed
from jobs.federate.bill import Bill
from jobs.federate.draw import drawn
from jobs.federate.layout import to_vector
from jobs.federate.messages import Kit, Left, Opened, Scored
from jobs.federate.partition import Partition
from jobs.federate.scores import averaged, unusable
from jobs.federate.sites import Sites
from jobs.handoff import handed_over
from jobs.masking import load_masks, make_masks, mask_request, pack_masks, unpack_masks
from jobs.record import Record
from jobs.request import Request
from jobs.starts import load_starts, pack_starts, save_starts
from jobs.store.runs import RunStore
from jobs.team import CALIBRATION, INSTALL, Team
from slora.adapt import TRAINED
from slora.mask import Mask
from slora.masks.choose import choose_masks, needed
from slora.start import Start


@dataclass(frozen=True)
class Begun:
    """A stage before its first round, or before the one that it goes on with."""

    kit: Kit
    """What a client gets with its first task of the stage."""
    opened: Opened
    weights_n: Tensor
    """float32."""
    kept: float | None
    """Share of the update's energy that a hand-off kept; None where there was none now."""


class Opening:
    """Begins the stages of one run, one after the other; remembers its masks."""

    def __init__(
        self,
        request: Request,
        runs: RunStore,
        sites: Sites,
        split: Partition,
        team: Team,
        record: Record,
        bill: Bill,
    ) -> None:
        assert request.federation is not None
        self._spec, self._section, self._plan = request.spec, request.federation, request.plan
        self._runs, self._sites, self._split = runs, sites, split
        self._team, self._record, self._bill = team, record, bill
        self._masks: dict[str, Mask] | None = None

    def begin(self, index: int, weights: Mapping[str, Tensor], resumed: State | None) -> Begun:
        """Stage `index`, from what the one before has trained, or from a checkpoint inside it.

        Raises TrainingFailed where sites have other masks than the server, or give no scores.
        """
        starts, kept = self._starts(index, weights, resumed)
        kit = self._kit(index, starts)
        opened = self._opened(index, kit, starts)
        return Begun(kit, opened, self._first(opened, weights, starts, resumed), kept)

    def _starts(
        self, index: int, weights: Mapping[str, Tensor], resumed: State | None
    ) -> tuple[dict[str, Start] | None, float | None]:
        """Where a low-rank stage starts after a sparse one."""
        if not index or self._plan.stages[index].name != "low-rank":
            return None, None
        if resumed:
            return load_starts(self._runs), None
        assert self._masks is not None
        made, kept = handed_over(weights, self._masks, self._spec, self._team, self._record)
        save_starts(self._runs, made)
        return made, kept

    def _kit(self, index: int, starts: Mapping[str, Start] | None) -> Kit:
        method, masks = self._spec.method, b""
        leaves = method.handoff.residual != "drop"
        # Masks are needed after the sparse stage only where a residual lies on them.
        on_masks = method.kind in ("slora", "sparse") and (index == 0 or leaves)
        if on_masks and self._scored_by_rows():
            self._masks = self._chosen_masks()
            masks = pack_masks(self._masks)
        return Kit(masks, _packed(starts) if leaves or self._section.freeze_a else b"")

    def _opened(self, index: int, kit: Kit, starts: Mapping[str, Start] | None) -> Opened:
        """The stage at one site, which tells the others' layout, and its masks where it made them.

        Factors under masks of their own start where only their layers know.
        """
        if starts is not None and self._spec.method.factor_density < 1:
            kit = Kit(kit.masks, _packed(starts))
        opened = self._sites.open(index, kit)
        self._bill.kit(kit)
        self._team.wire.count(INSTALL, len(opened.first) + len(opened.masks))
        if self._plan.stages[index].name != "sparse":
            return opened
        if opened.masks:
            self._masks = unpack_masks(opened.masks, self._sites.shapes())
        elif self._masks is None:
            request = mask_request(self._spec.method, seed=self._spec.train.seed)
            self._masks = choose_masks(self._sites.shapes(), request)
        self._same_masks(opened, self._masks)
        return opened

    @staticmethod
    def _same_masks(opened: Opened, masks: Mapping[str, Mask]) -> None:
        """The hand-off is made under the server's masks: they must be those of its sites."""
        mine = opened.layout.digest("".join(mask.digest() for mask in masks.values()))
        if opened.agreed != mine:
            what = f"their masks have the digest {opened.agreed[:12]}, the server's {mine[:12]}"
            raise TrainingFailed("the federation's sites", what, "Do all run the same versions?")

    @staticmethod
    def _first(
        opened: Opened,
        weights: Mapping[str, Tensor],
        starts: Mapping[str, Start] | None,
        resumed: State | None,
    ) -> Tensor:
        """The stage's first weights: its own start, beside what goes on from an earlier stage."""
        layout = opened.layout
        found = layout.named(to_vector(opened.first, layout))
        for name, start in (starts or {}).items():
            found |= {f"{name}.a_RI": start.a_RI, f"{name}.b_OR": start.b_OR}
        source = resumed.weights if resumed else weights
        for name in layout.names:
            # A head is trained in both stages; values and factors are of one.
            if name in source and (resumed or not name.endswith(TRAINED)):
                found[name] = source[name]
        return layout.flat(found)

    def _scored_by_rows(self) -> bool:
        """Whether masks need scores of the clients' rows: those of the base any site makes."""
        scorer = needed(mask_request(self._spec.method, seed=self._spec.train.seed))
        return scorer is not None and scorer.unit is not None

    def _chosen_masks(self) -> dict[str, Mask]:
        """By the mean of the first round's clients' scores; read back where they were chosen."""
        shapes = self._sites.shapes()
        if (kept := load_masks(self._runs, shapes)) is not None:
            return kept
        began = time.monotonic()
        request = mask_request(self._spec.method, seed=self._spec.train.seed)
        told = {"strategy": request.mask, "score": request.chosen_by}
        self._record.event("scoring", **told)
        scores = averaged(self._scores(shapes, request.mask), shapes, request.mask)
        masks = make_masks(shapes, request, scores, self._runs, writes=True)
        self._record.event("masked", **told, seconds=time.monotonic() - began)
        return masks

    def _scores(self, shapes: Mapping[str, tuple[int, int]], mask: str) -> list[Scored]:
        """Those of the first round's clients that can be used."""
        seed, wanted = self._spec.train.seed, self._section.clients_per_round
        clients = drawn(seed, 0, clients=self._split.count, wanted=wanted)
        found = list[Scored]()
        for one in self._sites.score(clients):
            why = one.why if isinstance(one, Left) else None
            if isinstance(one, Scored):
                self._team.wire.count(CALIBRATION, len(one.scores))
                why = unusable(one, len(self._split.rows[one.client]), shapes, mask)
                if why is None:
                    found.append(one)
                    continue
            self._record.event("left out", round=0, client=one.client,
                               name=self._split.names[one.client], why=why)  # fmt: skip
        if not found:
            raise TrainingFailed("the calibration", "no client gave a score", "Look at their rows.")
        return found


def _packed(starts: Mapping[str, Start] | None) -> bytes:
    return pack_starts(starts) if starts is not None else b""
