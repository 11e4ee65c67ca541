"""The spec: what a user writes, strict at the door and frozen inside. Knows no file, no engine."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.spec.metrics import Metric

NAME_PATTERN = r"^[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*$"
"""Names become folders and URLs: no separators, no `..`, no control characters."""
SCORES = ("random", "magnitude", "gradient", "fisher", "snip")
STRUCTURES = ("rows", "columns", "blocks")
_CUSTOM = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
SCORE_PATTERN = rf"^(?:{'|'.join(SCORES)}|{_CUSTOM})$"
MASK_PATTERN = rf"^(?:{'|'.join(SCORES + STRUCTURES)}|{_CUSTOM})$"


class StrictModel(BaseModel):
    """A section of the spec: unknown keys are errors, values keep their types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ModelSection(StrictModel):
    """The frozen base."""

    path: str = Field(min_length=1)
    """A folder with config.json and safetensors, a hub id that is in the local cache, or s3://."""
    task: Literal["causal-lm", "sequence-classification"] = "causal-lm"
    """What the model is trained to do; a classifier gets a head, which is trained and saved."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the base is held in. What is trained is kept in float32 in the optimiser either way."""


class DataSection(StrictModel):
    """Rows to learn from and rows to be judged by."""

    train: str = Field(min_length=1)
    """A file, a glob, a folder, s3:// or a hub id; json(l), csv, parquet or text, gzip too."""
    eval: str | None = None
    """Held-out rows, named as `train` is."""
    eval_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Instead of `eval`: the share of the rows of `train` that is held out."""
    format: Literal["auto", "chat", "prompt-completion", "text", "classification"] = "auto"
    """Fields: messages (chat); prompt, completion; text; text, label (classification)."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens in a sequence; longer rows are cut at their end, and counted."""
    packing: bool = True
    """Several rows share a sequence, without seeing each other. Causal language models only."""


class HandoffSection(StrictModel):
    """How the sparse update becomes the low-rank one."""

    split: Literal["balanced", "b"] = "balanced"
    """Where the singular values go: their roots to both factors, or all into B."""
    rescale: Literal["none", "norm", "projection"] = "none"
    """Whether the kept part is stretched to the whole update's norm, or its projection on it."""
    residual: Literal["drop", "fold", "keep"] = "drop"
    """What becomes of the part outside the rank: dropped as in the paper, folded in, or kept."""


class MethodSection(StrictModel):
    """What is trained."""

    kind: Literal["slora", "sparse", "lora", "full"] = "slora"
    """slora: a sparse stage, handed over to a low-rank one; the other three are the baselines."""
    targets: (
        Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    ) = "all-linear"
    """Every linear layer but the output head, or a list of name patterns."""
    density: float = Field(default=0.01, gt=0, le=1)
    """Share of the targets' weights that may move in the sparse stage."""
    mask: Annotated[str, Field(pattern=MASK_PATTERN)] = "random"
    """random | magnitude | gradient | fisher | snip | rows | columns | blocks, or a strategy of
    your own as package.module:NAME."""
    score: Annotated[str, Field(pattern=SCORE_PATTERN)] = "gradient"
    """By what rows, columns and blocks are chosen: random | magnitude | gradient | fisher | snip,
    or package.module:NAME."""
    sizing: Literal["rank", "density"] = "rank"
    """rank: at most `rank` rows, columns or a block's shorter side, so that the hand-off is exact;
    density: as many as the density asks, as always in kind sparse, which hands nothing over."""
    calibration_batches: int = Field(default=4, ge=1)
    """Batches of training data from which gradient, fisher and snip take their scores."""
    allocation: Literal["uniform", "global"] = "uniform"
    """Every layer gets the same density, or layers compete for it by score."""
    sparse_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps spent in the sparse stage."""
    rank: int = Field(default=8, ge=1)
    """Rank of the low-rank stage."""
    alpha: float = Field(default=16, gt=0)
    """The low-rank update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    init: Literal["zero", "pissa", "lora-ga"] = "zero"
    """Where a low-rank stage without a hand-off starts: B = 0, the weight's singular vectors, or
    its first gradient's."""
    handoff: HandoffSection = HandoffSection()
    factor_density: float = Field(default=1.0, gt=0, le=1)
    """Below 1, A and B are trained under masks of their own."""
    factor_pruning: Literal["fixed", "gates"] = "fixed"
    """fixed: the entries of A and B are chosen once, by score; gates: ranks are pruned gradually by
    proximal L1 gates (SoRA) until this share of them is left."""

    @property
    def scale(self) -> float:
        """What the low-rank update is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class StopSection(StrictModel):
    """Reasons to end before the last step."""

    tokens: int | None = Field(default=None, ge=1)
    """Trained in both stages together; the step that reaches them is the last."""
    metric: Metric = "eval_loss"
    target: float | None = None
    """A stage ends at the evaluation (`eval_every`) where the metric is there, or better."""
    patience: int | None = Field(default=None, ge=1)
    """A stage ends after so many evaluations in a row without a better one."""


class TrainSection(StrictModel):
    """How long, how fast."""

    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps over both stages."""
    epochs: int | None = Field(default=None, ge=1)
    """Instead of `steps`: how often every row is seen."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=2, ge=1)
    """Sequences that a worker holds at once; it changes memory, never the result's meaning."""
    learning_rate: float = Field(default=3.0e-4, gt=0)
    sparse_learning_rate: float | None = Field(default=None, gt=0)
    """Overrides `learning_rate` in the sparse stage."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up, in each stage anew."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of a stage's steps in which the rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay. On a delta it pulls towards the pretrained weight, not towards zero."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; always before, at the hand-off and at the end."""
    checkpoint_every: int | None = Field(default=20, ge=1)
    """Steps between checkpoints, from which a run whose worker died goes on."""
    stop: StopSection = StopSection()


class WorkerRange(StrictModel):
    """How few and how many workers an elastic run may have."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)


class MachineSection(StrictModel):
    """What the plan can't see from here: the machines that the run is for."""

    kind: str | None = Field(default=None, pattern=NAME_PATTERN, max_length=63)
    """A name for them; past runs on machines of the same name tell the plan their speed."""
    workers_per_node: int | None = Field(default=None, ge=1)
    """Workers that share a machine; all of them where it is not given."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory of one worker in GB of 10^9 bytes: of its GPU, or its part of the machine's."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """Of all workers together, where it is known; else what past runs reached."""
    price_per_hour: float | None = Field(default=None, gt=0)
    """Of one machine, in any currency."""


class ClusterSection(StrictModel):
    """What a run asks of Ray, and how the base is held there."""

    workers: Annotated[int, Field(ge=1)] | WorkerRange = 1
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: Literal[0, 1] = 0
    sharding: Literal["replicate", "node", "cluster", "auto"] = "auto"
    """replicate: ZeRO-1 on what is trained; node: base sharded inside a node; cluster: ZeRO-3."""
    sync_every: int = Field(default=1, ge=1)
    """Optimiser steps between exchanges; above 1, every worker steps alone in between."""
    outer: Literal["average", "nesterov"] = "average"
    """What is done with the workers' local steps: their mean, or DiLoCo's Nesterov step on it."""
    average: Literal["factors", "product"] = "factors"
    """What of LoRA is averaged after local steps: A and B apart, or B A, factorised again."""
    exchange_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients travel in between the workers."""
    max_failures: int = Field(default=3, ge=0)
    """How often a run that lost a worker or a machine is started again from its checkpoint."""
    max_crashes: int = Field(default=0, ge=0)
    """How often it is started again after an error of the code, which most often repeats."""
    timeout: int = Field(default=600, ge=10)
    """Seconds that workers wait for one another before the run ends, the late ones named."""
    machine: MachineSection = MachineSection()


class RunSpec(StrictModel):
    """One fine-tuning run, whole."""

    name: str = Field(pattern=NAME_PATTERN, max_length=63)
    """The adapter's name in the store."""
    model: ModelSection
    data: DataSection
    method: MethodSection = MethodSection()
    train: TrainSection
    cluster: ClusterSection = ClusterSection()
    store: str = Field(default="file://.cache/store", min_length=1)
    """file:// and a folder, or s3://bucket/prefix; credentials come from the environment only."""

    @property
    def workers(self) -> int:
        """The number of workers; an elastic run starts from its least."""
        workers = self.cluster.workers
        return workers if isinstance(workers, int) else workers.min
