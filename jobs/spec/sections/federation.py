"""The `federation:` section of a spec: who trains on which rows, how often, and what travels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec.schema import StrictModel


class FederationSection(StrictModel):
    """Clients that train alone for some steps, and a server that averages what they learnt.

    Beside it, `train` is what a client does: `batch_size` sequences a local step, and a rate that
    `schedule` and `warmup` change from round to round. `train.eval_every` and
    `train.checkpoint_every` count rounds. `train.steps` is not given: the rounds tell it.
    """

    clients: int | None = Field(default=None, ge=1)
    """For `iid` and `dirichlet`; with `by` and `files` the data tell."""
    clients_per_round: int = Field(default=10, ge=1)
    """Drawn anew for each round, without replacement."""
    rounds: int = Field(default=30, ge=1)
    """Over both stages."""
    local_steps: int = Field(default=4, ge=1)
    """Optimiser steps that a client takes in a round."""
    partition: Literal["iid", "dirichlet", "by", "files"] = "iid"
    """How rows become clients': at random; each label's shares drawn from a Dirichlet; by the
    values of a column; or a client for each file."""
    dirichlet_alpha: float = Field(default=1.0, gt=0)
    """Of `dirichlet`: the lower, the more the clients differ."""
    column: str | None = Field(default=None, min_length=1)
    """Of `by`: the field of a row, such as its author."""
    sparse_rounds: int | None = Field(default=None, ge=0)
    """Rounds of the sparse stage of kind slora; method.sparse_share of them where not given."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Of a client. Its moments last for a round: clients keep nothing in between."""
    average: Literal["fedavg", "nesterov", "product"] = "fedavg"
    """The clients' mean, weighted by their rows; a Nesterov step along it (DiLoCo's); or, of LoRA
    factors, the mean of B A, factorised again."""
    freeze_a: bool = False
    """Only B of the factors is trained and travels (FFA-LoRA): the mean is then exact."""
    compress: Literal["none", "bf16", "topk", "int8"] = "none"
    """What goes up. topk: only the largest entries, the others wait with their client (error
    feedback); int8: one scale a tensor, rounded at random so that the mean is unbiased."""
    topk: float = Field(default=0.1, gt=0, le=1)
    """Share of the entries that `topk` sends."""
    drop_out: float = Field(default=0.0, ge=0, lt=1)
    """Share of the drawn clients that are lost in a round, at random: a rehearsal."""

    @property
    def has_client_state(self) -> bool:
        """Whether a client has something that must wait for it where it trained last."""
        return self.compress == "topk"
