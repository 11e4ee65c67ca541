"""The schema of a spec: what a user writes, and what every run is described by. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from jobs.spec.address_types import DataAddress, ModelAddress, StoreAddress
from jobs.spec.limits import (
    NAME_PATTERN,
    Count,
    OpenShare,
    Positive,
    PositiveShare,
    SequenceLength,
    Share,
)
from jobs.spec.sections.cluster import ClusterSection
from jobs.spec.sections.federation import FederationSection
from jobs.spec.sections.retrain import RetrainSection
from jobs.spec.sections.search import SearchSection
from jobs.spec.sections.training import TrainSection
from jobs.spec.strict_model import StrictModel
from jobs.spec.tasks import LabelKind, TargetKind, Task, get_target_kind
from slora.masks.sizes import FactorMaskKind

SCORES = ("random", "magnitude", "gradient", "fisher", "snip")
STRUCTURES = ("rows", "columns", "blocks")
SLORA_FACTORS: Mapping[str, Any] = {"rank": 32, "alpha": 64, "factor_density": 0.25}
"""Of kind slora where a spec names none of them. A hand-off to a high rank loses little, and with a
mask of the factors' entries as many numbers train and travel as at rank 8."""

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
    """Rank of the low-rank stage. Kind slora without rank, alpha and factor_density has rank 32,
    alpha 64 and factor_density 0.25, unless its mask is sized by the rank, products are averaged,
    or a search chooses among ranks, kinds or masks."""
    alpha: Positive = 16
    """The low-rank update is scaled by alpha / rank."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA)."""
    init: Literal["zero", "pissa", "lora-ga"] = "zero"
    """Initial factors of a low-rank stage without a hand-off: B = 0, the weight's singular
    vectors, or those of its first gradient."""
    handoff: HandoffSection = HandoffSection()
    factor_density: PositiveShare = 1.0
    """Below 1, only this share of the entries of A and of B is trained and exchanged."""
    factor_pruning: Literal["fixed", "gates"] = "fixed"
    """fixed: masks of A and B from the seed; gates: ranks are pruned gradually by proximal L1 gates
    (SoRA) until this share of them remains."""
    factor_mask: FactorMaskKind = "balanced"
    """balanced: as many trained entries in every rank, and in every column of A and row of B;
    random: anywhere; lines: whole columns of A and rows of B."""
    factor_storage: Literal["peft", "compact"] = "peft"
    """peft: a LoRA that stock PEFT and vLLM load; compact: values and a seed, which kind lora may
    have with init: zero, since there the other entries of A and B are zero."""

    @model_validator(mode="before")
    @classmethod
    def _choose_factors(cls, values: Any) -> Any:
        """Let kind slora hand over to SLORA_FACTORS, where the spec leaves the choice."""
        if not isinstance(values, Mapping) or values.get("kind", "slora") != "slora":
            return values
        # Rows, columns and blocks sized by the rank are handed over exactly, at any rank.
        is_exact = values.get("mask") in STRUCTURES and values.get("sizing", "rank") == "rank"
        is_named = not SLORA_FACTORS.keys().isdisjoint(values)
        return values if is_exact or is_named else {**values, **SLORA_FACTORS}

    @property
    def scale(self) -> float:
        """Return the factor of the low-rank update."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def has_factor_masks(self) -> bool:
        """Return whether A and B are trained under masks of their own."""
        has_factors = self.kind in ("slora", "lora")
        return has_factors and self.factor_density < 1 and self.factor_pruning == "fixed"


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
