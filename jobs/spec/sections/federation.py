"""The `federation` section: the clients, their rows, the rounds, and what travels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec.limits import Count, Positive, PositiveShare, ProperShare, Rounds, Steps
from jobs.spec.strict_model import StrictModel


class FederationSection(StrictModel):
    """Federated training: clients train alone for some steps, and a server averages their updates.

    In such a spec `train` describes a client: `batch_size` sequences per local step, and a learning
    rate that `schedule` and `warmup` change from round to round. `train.eval_every` and
    `train.checkpoint_every` count rounds. `train.steps` is left out: it follows from the rounds.
    """

    clients: Count | None = None
    """Number of clients for `iid` and `dirichlet`; with `by` and `files` the data define it."""
    clients_per_round: Count = 10
    """Clients sampled for each round, without replacement."""
    rounds: Steps = 30
    """Rounds over both stages."""
    local_steps: Steps = 4
    """Optimizer steps of a client in a round."""
    partition: Literal["iid", "dirichlet", "by", "files"] = "iid"
    """Assignment of rows to clients: at random; by label with Dirichlet-distributed shares; by
    the value of a column; or one client per file."""
    dirichlet_alpha: Positive = 1.0
    """Concentration of `dirichlet`: the lower, the more the clients differ."""
    column: str | None = Field(default=None, min_length=1)
    """Field of a row that `by` groups rows by, such as its author."""
    sparse_rounds: Rounds | None = None
    """Rounds of the sparse stage of kind slora; by default method.sparse_share of all rounds."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer of a client. Its moments last for one round: clients keep no state in between."""
    average: Literal["fedavg", "nesterov", "product"] = "fedavg"
    """The clients' mean, weighted by their rows; a Nesterov step along it (DiLoCo); or, for LoRA
    factors, the mean of B A, factorised again."""
    freeze_a: bool = False
    """Train and send only the factor B (FFA-LoRA), which makes the mean exact."""
    compress: Literal["none", "bf16", "topk", "int8"] = "none"
    """Compression of uploads. topk: only the largest entries; clients keep the others for later
    (error feedback); int8: one scale per tensor, rounded at random so that the mean is unbiased."""
    topk: PositiveShare = 0.1
    """Share of the entries that `topk` sends, of the adapter and of a head alike."""
    drop_out: ProperShare = 0.0
    """Share of the sampled clients that fail in a round, at random: a rehearsal."""

    @property
    def has_client_state(self) -> bool:
        """Return whether a client keeps state on the site where it trained last."""
        return self.compress == "topk"
