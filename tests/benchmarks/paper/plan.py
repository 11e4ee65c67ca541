"""What is compared with what: data and clients cut to a size, methods, rates. As plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.errors import InputError
from jobs.spec.load import validate_spec
from jobs.spec.schema import TrainSection
from tests.benchmarks.quality.rate_search import get_start
from tests.benchmarks.quality.variants import Grid, Point

HEAD_RATE = "head_learning_rate"
RANK = 8
DENSITY = 0.01
"""The paper's: about one weight in a hundred."""
SPARSE_SHARE = 0.3
"""Of the rounds, for the first stage of slora."""
HARDEST = "dirichlet-0.1"
"""Where learning rates are chosen, and what the goals are about."""

Rates = tuple[float | None, float] | tuple[float | None, float, float]
"""The sparse stage's learning rate or None, the other stage's, and the head's where it has one."""


@dataclass(frozen=True)
class Part:
    """One data set with its model and its clients, cut to a size."""

    name: str
    model: str
    task: str
    format: str
    data: Mapping[str, str]
    """train, and test, as files; validation is cut from train."""
    partitions: tuple[str, ...]
    train_rows: int | None
    validation_rows: int
    test_rows: int | None
    max_length: int
    clients: int | None
    clients_per_round: int
    rounds: int
    local_steps: int
    batch_size: int
    eval_every: int
    """Rounds between evaluations on the test rows."""
    seeds: tuple[int, ...]
    one_rate: bool = False
    """Whether every method runs at the middle rate of its grid instead of choosing one."""
    dtype: str = "float32"

    @property
    def metric(self) -> str:
        return "accuracy" if self.task == "sequence-classification" else "loss"

    @property
    def tokens(self) -> int:
        """That one training learns from, where every sequence is full."""
        sequences = self.rounds * self.clients_per_round * self.local_steps * self.batch_size
        return sequences * self.max_length


def _parts(newsgroups: Mapping[str, Any], addresses: Mapping[str, Any]) -> dict[str, Part]:
    folder = ".cache/data/"
    return {
        "newsgroups": Part(
            name="newsgroups", model=".cache/models/minilm", task="sequence-classification",
            format="classification", partitions=(HARDEST, "iid", "dirichlet-1.0"),
            data={"train": f"{folder}newsgroups.train.jsonl",
                  "test": f"{folder}newsgroups.test.jsonl"},
            **newsgroups,
        ),
        "addresses": Part(
            name="addresses", model=".cache/models/smollm2-135m-instruct", task="causal-lm",
            format="text", partitions=("president",), clients=None,
            data={"train": f"{folder}addresses.train.jsonl",
                  "test": f"{folder}addresses.test.jsonl"},
            **addresses,
        ),
    }  # fmt: skip


SIZES: dict[str, dict[str, Part]] = {
    "tiny": _parts(
        {"train_rows": 200, "validation_rows": 20, "test_rows": 40, "max_length": 16, "clients": 4,
         "clients_per_round": 2, "rounds": 4, "local_steps": 1, "batch_size": 4, "eval_every": 2,
         "seeds": (0, 1)},
        {"train_rows": 400, "validation_rows": 4, "test_rows": 4, "max_length": 32,
         "clients_per_round": 2, "rounds": 2, "local_steps": 1, "batch_size": 2, "eval_every": 1,
         "seeds": (0,), "one_rate": True},
    ),
    "small": _parts(
        {"train_rows": 3000, "validation_rows": 300, "test_rows": 600, "max_length": 32,
         "clients": 20, "clients_per_round": 5, "rounds": 24, "local_steps": 4, "batch_size": 8,
         "eval_every": 4, "seeds": (0, 1, 2)},
        {"train_rows": 6000, "validation_rows": 43, "test_rows": 86, "max_length": 64,
         "clients_per_round": 4, "rounds": 8, "local_steps": 2, "batch_size": 4, "eval_every": 4,
         "seeds": (0,), "one_rate": True},
    ),
    "full": _parts(
        {"train_rows": None, "validation_rows": 1000, "test_rows": 7528, "max_length": 256,
         "clients": 100, "clients_per_round": 10, "rounds": 100, "local_steps": 10,
         "batch_size": 16, "eval_every": 10, "seeds": (0, 1, 2)},
        {"train_rows": None, "validation_rows": 430, "test_rows": None, "max_length": 128,
         "clients_per_round": 10, "rounds": 60, "local_steps": 8, "batch_size": 8,
         "eval_every": 10, "seeds": (0, 1, 2)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """A method, and the learning rates of its own grid."""

    name: str
    method: Mapping[str, Any]
    rates: tuple[Rates, ...] = ()
    federation: Mapping[str, Any] = field(default_factory=dict)
    like: str | None = None
    """The method whose chosen rates it runs at: a variant without a grid, on HARDEST alone."""
    trained: str | None = None
    """What of kind full is trained, where it is not all: a name in training.TRAINED."""
    parts: tuple[str, ...] = ("newsgroups", "addresses")
    grids: Mapping[str, Grid] = field(default_factory=dict)
    """Instead of `rates`: the first grid of each axis (sparse, adapter, head), which a search by
    coordinates extends, as in the benchmark of quality."""


FULL = ((None, 1e-4), (None, 3e-4), (None, 1e-3))
LOW = ((None, 2e-3), (None, 5e-3), (None, 1e-2))
HALF = (*LOW, (None, 2e-2), (None, 4e-2))
"""Of LoRA whose A is frozen: what trains is half, and takes more."""
SPARSE = ((5e-3, 5e-3), (1e-2, 1e-2), (2e-2, 2e-2), (4e-2, 4e-2), (8e-2, 8e-2))
SLORA = ((5e-3, 2e-3), (1e-2, 5e-3), (2e-2, 5e-3), (4e-2, 5e-3), (8e-2, 5e-3))
"""Grids are three rates, and longer where the best of them lay at an end."""
ROWS = SLORA[:3]
SCORED = ((1e-3, 2e-3), (1e-3, 5e-3), (3e-3, 5e-3), (3e-4, 5e-3))
"""Entries that gradients choose take less than entries drawn at random: they all pull."""
PRIMED = ((1e-4, 2e-3), (3e-4, 5e-3), (1e-3, 5e-3))
BIASES = ((None, 1e-3), (None, 3e-3), (None, 1e-2), (None, 3e-2))
HEAD = ((None, 5e-3), (None, 2e-2), (None, 4e-2))
"""Those of LoRA and of the sparse values: a stage's rate is its head's too."""
RATE_SCALE = {"newsgroups": 1.0, "addresses": 0.4}
"""A language model that is trained for a few steps takes less than an encoder with a new head."""

HEAD_GRID: Grid = (2e-3, 5e-3, 1e-2, 2e-2)
LORA_GRIDS = {"adapter": (1e-3, 2e-3, 5e-3, 1e-2), "head": HEAD_GRID}
WIDER_HEAD_GRID: Grid = (5e-2, 1e-1, 2e-1, 5e-1)
"""Where LoRA's search went from HEAD_GRID: the others' start there."""
LOW_RANK_GRIDS = {"adapter": LORA_GRIDS["adapter"], "head": WIDER_HEAD_GRID}
RANDOM_GRIDS = {"adapter": (1e-2, 2e-2, 5e-2, 1e-1), "head": WIDER_HEAD_GRID}
FULL_GRIDS = {"adapter": (1e-4, 2e-4, 5e-4, 1e-3), "head": WIDER_HEAD_GRID}
SLORA_GRIDS = {
    "sparse": RANDOM_GRIDS["adapter"], "adapter": LORA_GRIDS["adapter"], "head": WIDER_HEAD_GRID,
}  # fmt: skip
WIDE_GRIDS = {"sparse": RANDOM_GRIDS["adapter"], **RANDOM_GRIDS}
"""With a rate of its own for the head. Clients take few steps, so random masks take more."""
OWN_HEAD = "own head rate"


def _with_head(
    name: str, method: Mapping[str, Any], grids: Mapping[str, Grid], **federation: Any
) -> Rival:
    return Rival(f"{name}, {OWN_HEAD}", method, federation=federation, parts=("newsgroups",),
                 grids=grids)  # fmt: skip


def _masked(rank: int, kind: str = "lora", **more: Any) -> dict[str, Any]:
    """As many numbers as factors of rank RANK: a mask of the entries of wider ones."""
    return {"kind": kind, "rank": rank, "alpha": 2 * rank, "factor_density": RANK / rank, **more}


RANDOM = "slora random"
LONGER = 4
RIVALS: tuple[Rival, ...] = (
    Rival("full", {"kind": "full"}, FULL),
    Rival("lora", {"kind": "lora"}, LOW),
    Rival(RANDOM, {"kind": "slora"}, SLORA),
    Rival("sparse", {"kind": "sparse"}, SPARSE),
    Rival("slora rows", {"kind": "slora", "mask": "rows", "score": "gradient"}, ROWS),
    Rival("slora gradient", {"kind": "slora", "mask": "gradient"}, SCORED),
    Rival("ffa-lora", {"kind": "lora"}, HALF, {"freeze_a": True}),
    Rival("primed lora", {"kind": "slora", "density": 1.0}, PRIMED, parts=("newsgroups",)),
    # SmolLM2 is a Llama, which has no biases.
    Rival("bitfit", {"kind": "full"}, BIASES, trained="bitfit", parts=("newsgroups",)),
    # LoRA's best rate on the first seed is close to where it falls apart on another.
    Rival("lora, lower rate", {"kind": "lora"}, LOW[:1], parts=("newsgroups",)),
    Rival("head alone", {"kind": "full"}, HEAD, trained="head", parts=("newsgroups",)),
    Rival("slora random, norm", {"kind": "slora", "handoff": {"rescale": "norm"}}, like=RANDOM),
    Rival("slora random, keep", {"kind": "slora", "handoff": {"residual": "keep"}}, like=RANDOM),
    Rival("slora random, fold", {"kind": "slora", "handoff": {"residual": "fold"}}, like=RANDOM),
    Rival("slora random, product", {"kind": "slora"}, (), {"average": "product"}, like=RANDOM),
    Rival("lora, product", {"kind": "lora"}, (), {"average": "product"}, like="lora"),
    # Rounds are what costs little where little travels: four times as many, at the same rates.
    Rival("slora random, longer", {"kind": "slora"}, (), {"rounds_times": LONGER}, like=RANDOM),
    Rival("lora, longer", {"kind": "lora"}, (), {"rounds_times": LONGER}, like="lora"),
    # What the product does not know yet is left out: see `find_unknown`.
    _with_head("lora", {"kind": "lora"}, LORA_GRIDS),
    # As many bytes as the sparse values.
    _with_head("lora r2", {"kind": "lora", "rank": 2, "alpha": 4}, LOW_RANK_GRIDS),
    _with_head("full", {"kind": "full"}, FULL_GRIDS),
    _with_head("sparse", {"kind": "sparse"}, RANDOM_GRIDS),
    _with_head("factors r64", _masked(64), RANDOM_GRIDS),
    _with_head("slora weights", {"kind": "slora", "handoff": {"norm": "weights"}}, SLORA_GRIDS),
    _with_head("slora outputs", {"kind": "slora", "handoff": {"norm": "outputs"}}, SLORA_GRIDS),
    _with_head(
        "slora r128 outputs", _masked(128, "slora", handoff={"norm": "outputs"}), WIDE_GRIDS
    ),
    _with_head("ffa-lora", {"kind": "lora"}, LORA_GRIDS, freeze_a=True),
    # Sparse values to the last round, then the hand-off.
    *(
        Rival(
            f"slora r{rank} late, {OWN_HEAD}",
            _masked(rank, "slora", handoff={"norm": "outputs"}, sparse_share=1.0),
            like=f"sparse, {OWN_HEAD}",
            parts=("newsgroups",),
        )
        for rank in (32, 128)
    ),
)
"""In the order of what a reader wants to know first."""
CORE = ("full", "lora", RANDOM, "sparse", "slora rows")
"""What the goals are about; the others come after them."""


@dataclass(frozen=True)
class Setting:
    """One training: everything that its result depends on."""

    part: Part
    partition: str
    rival: str
    method: Mapping[str, Any]
    federation: Mapping[str, Any]
    rates: Rates
    seed: int
    trained: str | None = None

    @property
    def key(self) -> str:
        """The same for the same setting, whatever is printed of it."""
        plain = asdict(self)
        for how_many in ("partitions", "seeds", "one_rate"):
            del plain["part"][how_many]
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def told(self) -> str:
        """For people."""
        rates = "/".join(f"{rate:g}" for rate in self.rates if rate is not None)
        return f"{self.part.name} {self.partition}, {self.rival}, {rates}, seed {self.seed}"

    def spec(self, data: Mapping[str, str], store: str, evaluated: str) -> dict[str, Any]:
        """The federated spec as plain values; `evaluated` is the file that rounds are judged by."""
        part, (sparse_rate, rate, *head) = self.part, self.rates
        staged, rounds = self.method["kind"] == "slora", part.rounds
        federation = dict(self.federation)
        rounds *= federation.pop("rounds_times", 1)
        share = self.method.get("sparse_share", SPARSE_SHARE)
        return {
            "name": "paper",
            "model": {"path": part.model, "task": part.task, "dtype": part.dtype},
            "data": {"train": data["train"], "eval": evaluated, "format": part.format,
                     "max_length": part.max_length, "packing": False},
            "method": {"rank": RANK, "alpha": 2 * RANK, "density": DENSITY, **self.method},
            "train": {"batch_size": part.batch_size, "micro_batch_size": part.batch_size,
                      "learning_rate": rate, "sparse_learning_rate": sparse_rate,
                      "schedule": "cosine", "warmup": 0.05, "eval_every": part.eval_every,
                      "checkpoint_every": None, "seed": self.seed, **_set_head_rate(head)},
            "cluster": {"workers": 1, "sharding": "replicate"},
            "federation": {
                "clients_per_round": part.clients_per_round, "rounds": rounds,
                "local_steps": part.local_steps, **_divided(part, self.partition),
                **({"sparse_rounds": round(share * rounds)} if staged else {}),
                **federation,
            },
            "store": store,
        }  # fmt: skip


def _set_head_rate(head: Sequence[float]) -> dict[str, float | None]:
    """The head's rate; without one the stage's, which is null where the product knows both."""
    if head:
        return {HEAD_RATE: head[0]}
    return {HEAD_RATE: None} if HEAD_RATE in TrainSection.model_fields else {}


def find_unknown(part: Part, rival: Rival) -> str | None:
    """Why the product refuses a method's spec, if it has keys that are not known yet."""
    rates = as_rates(get_start(rival.grids)) if rival.grids else (None, 1e-3)
    one = setting(part, part.partitions[0], rival, rates, part.seeds[0])
    try:
        validate_spec(one.spec({"train": "train.jsonl"}, "file:///store", "held.jsonl"))
    except InputError as refused:
        unknown = [str(fault) for fault in refused.faults if "unknown key" in str(fault)]
        return "; ".join(unknown) or None
    return None


def as_rates(point: Point) -> Rates:
    """A point of a search as rates: sparse or None, adapter, head."""
    return (point.get("sparse"), point["adapter"], point["head"])


def _divided(part: Part, partition: str) -> dict[str, Any]:
    """The section's keys that say how rows become clients'."""
    if partition == "president":
        return {"partition": "by", "column": "president"}
    kind, _, alpha = partition.partition("-")
    shape = {"dirichlet_alpha": float(alpha)} if alpha else {}
    return {"partition": kind, "clients": part.clients, **shape}


def setting(part: Part, partition: str, rival: Rival, rates: Rates, seed: int) -> Setting:
    """The training of a method on a partition."""
    return Setting(
        part, partition, rival.name, rival.method, rival.federation, rates, seed, rival.trained
    )


def rates_of(part: Part, rival: Rival) -> tuple[Rates, ...]:
    """The grid on this part."""
    scale = RATE_SCALE[part.name]
    tried = rival.rates[1:2] or rival.rates if part.one_rate else rival.rates
    return tuple((None if s is None else s * scale, rate * scale) for s, rate in tried)
