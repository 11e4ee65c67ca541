"""The schema of a spec: what a user writes, and what every run is described by. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from jobs.spec.address_types import DataAddress, ModelAddress, StoreAddress
from jobs.spec.limits import (
    BatchSize,
    Count,
    NonNegative,
    OpenShare,
    Positive,
    PositiveShare,
    ProperShare,
    Real,
    Retries,
    Seed,
    SequenceLength,
    Share,
    Steps,
    TimeoutSeconds,
    Tokens,
    Workers,
)
from jobs.spec.metrics import Metric
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.retrain import RetrainSection
from jobs.spec.sections.search import SearchSection
from jobs.spec.strict_model import StrictModel
from jobs.spec.tasks import LabelKind, TargetKind, Task, get_target_kind

NAME_PATTERN = r"^[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*$"
"""Names become folders and URLs: no separators, no `..`, no control characters."""
SCORES = ("random", "magnitude", "gradient", "fisher", "snip")
STRUCTURES = ("rows", "columns", "blocks")


StrategyName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
TokenText = Annotated[str, Field(min_length=1, max_length=200)]


class ModelSection(StrictModel):
    """The frozen base model."""

    path: ModelAddress = Field(min_length=1)
    """A folder with config.json and safetensors, a hub id in the local cache, or an s3:// URL."""
    task: Task = "causal-lm"
    """The task to train for. seq2seq is for encoder-decoders, such as T5 and BART; a classifier
    gets a head, which is trained and saved."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the base's weights. auto: bfloat16 on GPUs that compute in it, and on CPUs where a
    short measurement says that it is at least twice as fast as float32; else float32. The optimizer
    keeps trained parameters in float32 either way."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex"] = "auto"
    """The attention kernel. auto: transformers' choice, or where the model is exact with it, SDPA
    within each row, which holds no mask; flash_attention_2 and flex (flex_attention) need GPUs."""


ColumnField = Literal[
    "messages",
    "role",
    "content",
    "tools",
    "system",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "text",
    "text_pair",
    "label",
]
"""Fields of the formats; role and content are those of a message."""


class DataSection(StrictModel):
    """Rows for training and for evaluation."""

    train: DataAddress = Field(min_length=1)
    """A file, a glob, a folder (of which the files of the split train are used), an s3:// URL, or a
    data set of the hub: hf://org/name?config=NAME&split=NAME. JSON, CSV, Parquet, Arrow or text."""
    eval: DataAddress | None = None
    """Held-out rows, in the same forms as `train`; of a folder, the split validation or test."""
    eval_fraction: OpenShare | None = None
    """Instead of `eval`: the share of the rows of `train` to hold out."""
    format: Literal[
        "auto", "chat", "sharegpt", "prompt-completion", "alpaca", "text", "classification"
    ] = "auto"
    """Fields: messages (chat); conversations (sharegpt); prompt, completion; instruction, output
    (alpaca); text; text, label, and text_pair for pairs of texts (classification)."""
    columns: dict[ColumnField, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    """The column of each field that has another name: {prompt: question, completion: answer}, or
    {messages: dialog, role: speaker, content: text}."""
    labels: LabelKind = "one"
    """Labels of a row for sequence-classification: one class; many: a list of classes, which may be
    empty; number: a number to predict (regression)."""
    max_length: SequenceLength = 1024
    """Tokens per sequence; longer rows are cut at their end and counted, longer texts split. For
    seq2seq the prompt and the completion may have as many each."""
    packing: Literal["auto"] | bool = "auto"
    """Pack several rows into a sequence. auto: where each row of the model has the logits that it
    has alone; true: the same, and an error elsewhere; false: one row a sequence."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """A row that can't be read, rendered or tokenised: end before the first step, or skip it."""
    max_dropped: Share = 0.2
    """Largest share of rows that may be dropped: bad ones, and those without anything to learn."""
    streaming: bool = False
    """Tokenise only the first rows before the run, and the others as they are read, without a table
    on disk: for very large data."""


class HandoffSection(StrictModel):
    """The conversion of the sparse update into a low-rank one."""

    norm: Literal["weights", "outputs", "loss"] = "outputs"
    """What the factors keep best: the update's entries, the layers' outputs on
    `calibration_batches`, or the loss (outputs weighted by their gradients)."""
    split: Literal["balanced", "b"] = "balanced"
    """Destination of the singular values: their square roots to both factors, or all into B."""
    rescale: Literal["none", "norm", "projection"] = "none"
    """Scale the kept part to the norm of the whole update, or to its projection on it."""
    residual: Literal["drop", "fold", "keep"] = "drop"
    """The part outside the rank: dropped as in the paper, folded into the base, or kept."""


class MethodSection(StrictModel):
    """The trainable parameters."""

    kind: Literal["slora", "sparse", "lora", "full"] = "slora"
    """slora: a sparse stage, handed over to a low-rank one; the other three are the baselines."""
    targets: (
        Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    ) = "all-linear"
    """Every linear layer but the output head, or a list of name patterns."""
    train_tokens: Annotated[tuple[TokenText, ...], Field(max_length=1024, strict=False)] = ()
    """Tokens whose rows of the embedding are trained whole; unknown ones become new tokens."""
    density: PositiveShare = 0.01
    """Share of the targets' weights that the sparse stage may change."""
    mask: StrategyName = "random"
    """random | magnitude | gradient | fisher | snip | rows | columns | blocks, or the name of an
    installed entry point of the group slora.masks."""
    score: StrategyName = "gradient"
    """Score that selects rows, columns and blocks: random | magnitude | gradient | fisher | snip,
    or the name of an entry point."""
    sizing: Literal["rank", "density"] = "rank"
    """rank: at most `rank` rows, columns or a block's shorter side, so that the hand-off is exact;
    density: as many as the density gives, as always in kind sparse, which has no hand-off."""
    calibration_batches: Count = 4
    """Batches of training data for gradient, fisher and snip masks, and the hand-off's norm."""
    allocation: Literal["uniform", "global"] = "uniform"
    """Give every layer the same density, or let layers compete for it by score."""
    sparse_share: Share = 0.3
    """Share of the steps spent in the sparse stage."""
    rank: Count = 8
    """Rank of the low-rank stage."""
    alpha: Positive = 16
    """The low-rank update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    init: Literal["zero", "pissa", "lora-ga"] = "zero"
    """Initial factors of a low-rank stage without a hand-off: B = 0, the weight's singular
    vectors, or those of its first gradient."""
    handoff: HandoffSection = HandoffSection()
    factor_density: PositiveShare = 1.0
    """Below 1, A and B are sparse: each is trained under its own mask."""
    factor_pruning: Literal["fixed", "gates"] = "fixed"
    """fixed: the entries of A and B are selected once, by score; gates: ranks are pruned gradually
    by proximal L1 gates (SoRA) until this share of them remains."""

    @property
    def scale(self) -> float:
        """Return the factor of the low-rank update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class StopSection(StrictModel):
    """Criteria for ending before the last step."""

    tokens: Tokens | None = None
    """Token budget of both stages together; the step that reaches it is the last."""
    metric: Metric = "eval_loss"
    target: Real | None = None
    """End a stage at the evaluation (`eval_every`) where the metric is this good or better."""
    patience: Count | None = None
    """End a stage after this many evaluations in a row without an improvement."""


class TrainSection(StrictModel):
    """Length and speed of the training."""

    steps: Steps | None = None
    """Optimizer steps over both stages."""
    epochs: Count | None = None
    """Instead of `steps`: the number of passes over all rows."""
    batch_size: BatchSize = 8
    """Sequences per optimizer step, over all workers."""
    micro_batch_size: BatchSize = 2
    """Sequences that a worker holds at once; it changes memory, never the meaning of the result."""
    learning_rate: Positive = 3.0e-4
    sparse_learning_rate: Positive | None = None
    """Overrides `learning_rate` in the sparse stage."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay of the learning rate after the warm-up; restarted in each stage."""
    warmup: ProperShare = 0.03
    """Share of a stage's steps in which the rate rises from 0."""
    weight_decay: NonNegative = 0.0
    """Decoupled decay. On a delta it pulls towards the pretrained weight, not towards zero."""
    max_grad_norm: Positive = 1.0
    seed: Seed = 0
    eval_every: Steps | None = None
    """Steps between evaluations; the start, the hand-off and the end are always evaluated."""
    checkpoint_every: Steps | None = 20
    """Steps between checkpoints, from which a run resumes when a worker dies."""
    stop: StopSection = StopSection()


class WorkerRange(StrictModel):
    """Minimum and maximum number of workers of an elastic run."""

    min: Workers
    max: Workers


class MachineSection(StrictModel):
    """The machines that the run is meant for, which the plan cannot inspect."""

    kind: str | None = Field(default=None, pattern=NAME_PATTERN, max_length=63)
    """A name for these machines: the plan uses the speed of past runs with the same name."""
    workers_per_node: Workers | None = None
    """Workers on one machine; by default all of them."""
    memory_gb: Positive | None = None
    """Memory of one worker in GB (10^9 bytes): its GPU's, or its share of the machine's."""
    tokens_per_second: Positive | None = None
    """Speed of all workers together; by default that of comparable past runs."""
    price_per_hour: Positive | None = None
    """Price of one machine, in any currency."""


class ClusterSection(StrictModel):
    """Resources of the run on Ray, and the sharding of the base."""

    workers: Workers | WorkerRange = 1
    cpus_per_worker: Workers = 1
    gpus_per_worker: Literal[0, 1] = 0
    sharding: Literal["replicate", "node", "cluster", "auto"] = "auto"
    """replicate: ZeRO-1 over the adapter; node: base sharded inside a machine; cluster: ZeRO-3."""
    sync_every: Steps = 1
    """Optimizer steps between exchanges; above 1, workers train alone in between."""
    outer: Literal["average", "nesterov"] = "average"
    """Combination of local steps: their mean, or DiLoCo's Nesterov step along it."""
    average: Literal["factors", "product"] = "factors"
    """Averaging of LoRA after local steps: A and B apart, or B A, factorised again."""
    exchange_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the gradients that workers exchange."""
    max_failures: Retries = 3
    """Restarts from a checkpoint after a worker or a machine was lost."""
    max_crashes: Retries = 0
    """Restarts after an error in the code, which usually occurs again."""
    timeout: TimeoutSeconds = 600
    """Seconds that workers wait for one another before the run ends and names the late ones."""
    machine: MachineSection = MachineSection()


class RunSpec(StrictModel):
    """A run: a fine-tune, or with an optional section a search, a retraining or a federation."""

    name: str = Field(pattern=NAME_PATTERN, max_length=63)
    """The adapter's name in the store."""
    model: ModelSection
    data: DataSection
    method: MethodSection = MethodSection()
    train: TrainSection
    cluster: ClusterSection = ClusterSection()
    store: StoreAddress = Field(default="file://.cache/store", min_length=1)
    """file:// and a folder, or s3://bucket/prefix; credentials come from the environment only."""
    search: SearchSection | None = None
    """Search over keys of this spec; with `federation`, every trial is a federation."""
    retrain: RetrainSection | None = None
    """Train on new rows only when there are any, and promote the adapter if it passes a gate."""
    federation: FederationSection | None = None
    """Train on clients, each on its own rows, and average their updates."""

    @property
    def target_kind(self) -> TargetKind:
        """Return what the model learns of a row."""
        return get_target_kind(self.model.task, self.data.labels)

    @property
    def workers(self) -> int:
        """Return the number of workers; an elastic run starts with its least."""
        workers = self.cluster.workers
        return workers if isinstance(workers, int) else workers.min

    @property
    def training(self) -> RunSpec:
        """Return the fine-tune alone, without the sections that make it another kind of run."""
        if not any((self.search, self.retrain, self.federation)):
            return self
        values = {
            name: getattr(self, name) for name in RunSpec.model_fields if name not in SECTIONS
        }
        return RunSpec.model_construct(self.model_fields_set - SECTIONS.keys(), **values)

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out absent sections, and the steps of a federation, which its rounds give."""
        values: dict[str, Any] = serialize(self)
        for name in SECTIONS:
            if values.get(name, ...) is None:
                del values[name]
        for name in values.keys() & {"search", "federation"}:
            values[name] = _drop_none(values[name])
        if self.federation is not None and isinstance(values.get("train"), dict):
            values["train"].pop("steps", None)
        return values


class SearchSpec(RunSpec):
    """The spec of a search."""

    search: SearchSection

    @property
    def section(self) -> SearchSection:
        """Return the section that makes this spec a search."""
        return self.search


class RetrainSpec(RunSpec):
    """The spec of a retraining."""

    retrain: RetrainSection

    @property
    def section(self) -> RetrainSection:
        """Return the section that makes this spec a retraining."""
        return self.retrain


class FederatedSpec(RunSpec):
    """The spec of a federation.

    `train.steps` are those of a client that is sampled in every round, and `method.sparse_share` is
    rounded to whole rounds: a stage never ends inside a round.
    """

    federation: FederationSection

    @property
    def section(self) -> FederationSection:
        """Return the section that makes this spec a federation."""
        return self.federation

    @property
    def sparse_rounds(self) -> int:
        """Return the rounds of the sparse stage."""
        return count_sparse_rounds(self.method, self.federation)

    @property
    def stage_rounds(self) -> tuple[int, ...]:
        """Return the rounds of each stage of the plan: two for slora, one for the other kinds."""
        if self.method.kind != "slora":
            return (self.federation.rounds,)
        return self.sparse_rounds, self.federation.rounds - self.sparse_rounds


SECTIONS: Mapping[str, type[StrictModel]] = {
    "search": SearchSection,
    "retrain": RetrainSection,
    "federation": FederationSection,
}
"""The optional sections, each of which makes a spec another kind of run."""


def count_sparse_rounds(method: MethodSection, federation: FederationSection) -> int:
    """Count the rounds of the sparse stage of a federation."""
    if method.kind == "slora":
        rounds = federation.sparse_rounds
        return round(federation.rounds * method.sparse_share) if rounds is None else rounds
    return federation.rounds if method.kind == "sparse" else 0


def _drop_none(values: Any) -> Any:
    """Leave out keys without a value, which are most of those of a search's domains."""
    if not isinstance(values, dict):
        return values
    return {key: _drop_none(value) for key, value in values.items() if value is not None}


def make_site_spec(spec: RunSpec) -> RunSpec:
    """Return the fine-tune of one site: one worker that holds the whole base."""
    cluster = spec.cluster.model_copy(update={"workers": 1, "sharding": "replicate"})
    return spec.training.model_copy(update={"cluster": cluster})
