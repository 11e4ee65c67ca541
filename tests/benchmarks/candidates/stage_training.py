"""A plain torch loop around the product's layers, with what the product lacks.

The batches, the loss, the masks, the sketches and the evaluation are the product's. A sparse stage
is followed by a hand-off at rank 4 in the outputs' norm and a low-rank stage; or values and factors
are trained together. Stages that arms share are trained once in a process.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.plan.preflight import validate_run
from jobs.spec.load import validate_spec
from jobs.store.open import open_store
from jobs.train.comm.collectives import WorkerContext
from jobs.train.data.calibration import find_counted_tokens, make_sketch_pass
from jobs.train.data.global_batches import Step
from jobs.train.data.worker_feeds import make_eval_feed, make_train_feed
from jobs.train.engine.loss import compute_loss
from jobs.train.evaluation import evaluate
from jobs.train.method.handoff_sketches import sketch_installed
from jobs.train.model.load_base import LoadedBase
from jobs.train.request import TrainingRequest
from slora.handoff.capture import CountedTokens, sketch_layers
from slora.handoff.handoff import compute_on_mask, split_sparse_update
from slora.handoff.linear_update import SparseUpdate
from slora.handoff.low_rank_init import LowRankInit
from slora.handoff.output_norm import split_by_sketch
from slora.handoff.sketch import LayerSketch, start_sketch
from slora.kernels.choice import KernelChoices
from slora.layers.base_layers import get_features
from slora.layers.install import (
    choose_kernels,
    install_low_rank,
    install_sparse,
    remove_layers,
    use_kernels,
)
from slora.layers.sparse import SparseLinear
from slora.masks.mask import Mask, draw_random_mask
from tests.benchmarks.candidates.arms import (
    HEAD_RATE,
    JOINT_RANK,
    SCALE,
    SPARSE_RATE,
    SPARSE_STEPS,
    TWO_STAGES,
    Arm,
    Point,
)
from tests.benchmarks.candidates.joint_layer import JointLinear
from tests.benchmarks.candidates.plain_loop import Group, run_steps
from tests.benchmarks.candidates.rank_budget import allocate_ranks
from tests.benchmarks.quality.corpora import RANK
from tests.benchmarks.quality.setting import Setting
from tests.benchmarks.quality.shared_base import SharedBases
from tests.benchmarks.quality.trainers import evaluate_file
from tests.benchmarks.quality.variants import Variant

CPU = torch.device("cpu")
MAX_RANK = 32
"""Of a layer whose rank is chosen by energy."""
CALIBRATION_BATCHES = 2
PULL_EVERY = 5
"""Steps between two looks at what the rank can hold."""


@dataclass(frozen=True)
class SparseStage:
    """What a sparse stage leaves."""

    masks: Mapping[str, Mask]
    values: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    sketches: Mapping[str, LayerSketch]
    """With gradients, wide enough for MAX_RANK."""
    loss: float
    """On the validation rows."""
    seconds: float
    """Processor time that it took."""


class StageTrainings:
    """The trainings of one process; a seed's base and its sparse stages are kept."""

    def __init__(self, splits: Mapping[str, str]) -> None:
        self._splits, self._bases = splits, SharedBases()
        self._folder = tempfile.TemporaryDirectory(prefix="slora-candidates-")
        self._requests: dict[int, TrainingRequest] = {}
        self._choices: KernelChoices | None = None
        self._stages: dict[tuple[int, float], SparseStage] = {}

    def train(self, arm: Arm, point: Point, seed: int) -> dict[str, Any]:
        """Return the figures of one training. Raise TrainingFailed if a loss is not finite."""
        if "joint" in arm.options:
            request, base = self._load(seed)
            self._train_one_stage(request, base, point, is_joint=arm.options["joint"])
            return self._measure(request, base)
        key = (seed, point.get("pull", 0.0))
        is_known = key in self._stages
        if not is_known:
            self._stages[key] = self._train_sparse(*key)
        stage = self._stages[key]
        request, base = self._load(seed)
        after = self._train_low_rank(request, base, stage, arm, point)
        handoff = {"before": stage.loss, "after": after}
        shared = stage.seconds if is_known else 0.0
        return {**self._measure(request, base), "handoff": handoff, "shared_seconds": shared}

    def _load(self, seed: int) -> tuple[TrainingRequest, LoadedBase]:
        if seed not in self._requests:
            self._requests[seed] = self._make_request(seed)
        request = self._requests[seed]
        context = WorkerContext(0, 1, CPU)
        base = self._bases.load(request, open_store(request.spec.store), context)
        return request.with_packing(base.packing), base

    def _make_request(self, seed: int) -> TrainingRequest:
        method = {
            "kind": "slora", "rank": MAX_RANK, "alpha": SCALE * MAX_RANK,
            "handoff": {"norm": "loss"},
        }  # fmt: skip
        setting = Setting(TWO_STAGES, Variant("candidates", method), {"adapter": SPARSE_RATE}, seed)
        spec = setting.make_spec(self._splits, f"file://{self._folder.name}")
        return validate_run(validate_spec(spec)).make_request("candidates")

    def _train_sparse(self, seed: int, pull: float) -> SparseStage:
        start_time = time.process_time()
        request, base = self._load(seed)
        masks = _draw_masks(base, seed, TWO_STAGES.density)
        layers = install_sparse(base.model, masks)
        self._use_kernels(base.model)
        head = _get_head(request, base)
        groups = [([layer.values for layer in layers.values()], SPARSE_RATE), (head, HEAD_RATE)]
        steps = _read_steps(request, base)[:SPARSE_STEPS]
        puller = RankPuller(base, layers, masks, pull, seed) if pull else None
        run_steps(request, base, groups, steps, puller)
        values = {name: layer.values.detach().clone() for name, layer in layers.items()}
        stage = SparseStage(
            masks=masks, values=values, head=_copy_head(request, base),
            sketches=_sketch(request, base, masks, values, seed), loss=_validate(request, base),
            seconds=time.process_time() - start_time,
        )  # fmt: skip
        remove_layers(base.model)
        return stage

    def _train_low_rank(
        self,
        request: TrainingRequest,
        base: LoadedBase,
        stage: SparseStage,
        arm: Arm,
        point: Point,
    ) -> float:
        """Return the validation loss right after the hand-off."""
        ranks = _choose_ranks(stage, arm.options.get("ranks"))
        inits = {
            name: _split_layer(stage, name, ranks[name], arm.options["residual"])
            for name in stage.masks
        }
        keeps = arm.options["residual"] == "keep"
        layers = install_low_rank(
            base.model, inits, scale=SCALE, masks=stage.masks if keeps else None
        )
        _load_head(request, base, stage.head)
        after = _validate(request, base)
        factors = [factor for layer in layers.values() for factor in (layer.a_RI, layer.b_OR)]
        groups = [(factors, point["adapter"]), (_get_head(request, base), HEAD_RATE)]
        run_steps(request, base, groups, _read_steps(request, base)[SPARSE_STEPS:])
        return after

    def _train_one_stage(
        self, request: TrainingRequest, base: LoadedBase, point: Point, *, is_joint: bool
    ) -> None:
        """Train values alone; if it is joint, half of the numbers are values and half factors."""
        seed, share = request.spec.train.seed, JOINT_RANK / RANK if is_joint else 1.0
        masks = _draw_masks(base, seed, TWO_STAGES.density * share)
        layers = install_sparse(base.model, masks)
        self._use_kernels(base.model)
        groups: list[Group] = [
            ([layer.values for layer in layers.values()], point["sparse"]),
            (_get_head(request, base), HEAD_RATE),
        ]
        if is_joint:
            groups.append((_install_factors(base.model, layers, seed), point["adapter"]))
        run_steps(request, base, groups, _read_steps(request, base))

    def _use_kernels(self, model: nn.Module) -> None:
        """Probe once in a process, so that all its trainings have the same sums."""
        tokens = TWO_STAGES.batch_size * TWO_STAGES.max_length
        self._choices = choose_kernels(model, tokens=tokens, known=self._choices)
        use_kernels(model, self._choices)

    def _measure(self, request: TrainingRequest, base: LoadedBase) -> dict[str, Any]:
        validation = _evaluate(request, base)
        test = evaluate_file(self._splits["test"], request, base, base.model, device=CPU)
        return {
            "validation": validation["accuracy"], "validation_loss": validation["loss"],
            "test": test["accuracy"], "test_loss": test["loss"],
        }  # fmt: skip


class RankPuller:
    """Pulls the values towards the part of the update that rank RANK holds, in the outputs' norm.

    The decoupled form of a penalty on the rest, `||D - P||^2`: each step takes away a share of
    `D - P` on the mask. P is found again every few steps, from the inputs of the running batch.
    """

    def __init__(
        self,
        base: LoadedBase,
        layers: Mapping[str, SparseLinear],
        masks: Mapping[str, Mask],
        pull: float,
        seed: int,
    ) -> None:
        self._base, self._layers, self._masks = base, layers, masks
        self._pull, self._seed = pull, seed
        self._held: dict[str, Tensor] = {}

    def __call__(self, number: int, share: float, step: Step) -> None:
        if number % PULL_EVERY == 0:
            self._held = self._find_held(step)
        with torch.no_grad():
            for name, layer in self._layers.items():
                layer.values.lerp_(self._held[name], self._pull * share)

    def _find_held(self, step: Step) -> dict[str, Tensor]:
        updates = {n: SparseUpdate(self._layers[n].values, m) for n, m in self._masks.items()}
        sketches = {
            name: start_sketch(update, rank=RANK, seed=self._seed, name=name)
            for name, update in updates.items()
        }
        tokens = CountedTokens()
        with sketch_layers(self._layers, sketches, tokens):
            for micro in step.micros:
                tokens.set_masks(find_counted_tokens(micro))
                compute_loss(self._base.model, micro, self._base.loss, device=CPU)
        held = {}
        for name, mask in self._masks.items():
            values = self._layers[name].values
            result = split_sparse_update(
                values, mask, rank=RANK, scale=1.0, sketch=sketches[name]
            )  # fmt: skip
            held[name] = compute_on_mask(result.a_RI, result.b_OR, mask)
        return held


def _read_steps(request: TrainingRequest, base: LoadedBase) -> list[Step]:
    feed = make_train_feed(request, base.tokenizer, rank=0, world_size=1)
    return list(feed.iter_steps(start=0, steps=TWO_STAGES.steps, epochs=None))


def _install_factors(
    model: nn.Module, layers: Mapping[str, SparseLinear], seed: int
) -> list[nn.Parameter]:
    """Put factors beside the values of each layer, and return them."""
    factors: list[nn.Parameter] = []
    for name, layer in layers.items():
        joint = JointLinear(layer, rank=JOINT_RANK, scale=SCALE, seed=seed, name=name)
        model.set_submodule(name, joint)
        factors += [joint.a_RI, joint.b_OR]
    return factors


def _draw_masks(base: LoadedBase, seed: int, density: float) -> dict[str, Mask]:
    return {
        name: draw_random_mask(seed=seed, name=name, shape=get_features(layer), density=density)
        for name, layer in base.targets.items()
    }


def _get_head(request: TrainingRequest, base: LoadedBase) -> list[nn.Parameter]:
    modules = map(base.model.get_submodule, request.plan.head_modules)
    return [parameter for module in modules for parameter in module.parameters()]


def _copy_head(request: TrainingRequest, base: LoadedBase) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": parameter.detach().clone()
        for name in request.plan.head_modules
        for key, parameter in base.model.get_submodule(name).named_parameters()
    }


def _load_head(request: TrainingRequest, base: LoadedBase, head: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in head.items():
            base.model.get_parameter(name).copy_(value)


def _sketch(
    request: TrainingRequest,
    base: LoadedBase,
    masks: Mapping[str, Mask],
    values: Mapping[str, Tensor],
    seed: int,
) -> dict[str, LayerSketch]:
    def make_pass(gradients: bool, passes: int) -> Callable[[CountedTokens], int]:
        return make_sketch_pass(
            base.model,
            make_train_feed(request, base.tokenizer, rank=0, world_size=1),
            batches=CALIBRATION_BATCHES,
            device=CPU,
            gradients=gradients,
            choice=base.loss,
        )

    weights = {f"{name}.values": value for name, value in values.items()}
    method = request.spec.method
    return sketch_installed(base.model, weights, masks, method, make_pass, lambda t: t, seed=seed)


def _use_outputs_norm(sketch: LayerSketch) -> LayerSketch:
    return dataclasses.replace(sketch, gradient_probe_OK=None, gradients_OK=None)


def _split_layer(stage: SparseStage, name: str, rank: int, residual: Any) -> LowRankInit:
    result = split_sparse_update(
        stage.values[name], stage.masks[name], rank=rank, scale=SCALE, residual=residual,
        sketch=_use_outputs_norm(stage.sketches[name]),
    )  # fmt: skip
    return LowRankInit(result.a_RI, result.b_OR, residual=result.residual)


def _choose_ranks(stage: SparseStage, rule: str | None) -> dict[str, int]:
    """Return RANK everywhere, or as many numbers spread by the energy of a layer's outputs; with
    `loss`, times that of their gradients.
    """
    if rule is None:
        return dict.fromkeys(stage.masks, RANK)
    energies, costs = {}, {}
    for name, mask in stage.masks.items():
        update, sketch = SparseUpdate(stage.values[name], mask), stage.sketches[name]
        split = split_by_sketch(update, _use_outputs_norm(sketch), MAX_RANK)
        roots = torch.linalg.svdvals(update.multiply(split.input_root_IL))[:MAX_RANK]
        factor = float(sketch.facts[1]) / mask.shape[0] if rule == "loss" else 1.0
        energies[name] = (roots.square() * factor).tolist()
        costs[name] = sum(mask.shape)
    return allocate_ranks(energies, costs, RANK * sum(costs.values()))


def _evaluate(request: TrainingRequest, base: LoadedBase) -> dict[str, float]:
    feed = make_eval_feed(request, base.tokenizer, rank=0, world_size=1)
    assert feed is not None
    return evaluate(base.model, feed, device=CPU, choice=base.loss)


def _validate(request: TrainingRequest, base: LoadedBase) -> float:
    return _evaluate(request, base)["loss"]
