"""What a client tells, checked: what can't be is left out, what is of another world ends all."""

from __future__ import annotations

import math
from collections.abc import Set

from jobs.errors import TrainingFailed
from jobs.federation.averaging.payload import BadPayload, decode
from jobs.federation.averaging.server_step import WeightedUpdate
from jobs.federation.partition import Partition
from jobs.federation.sites.messages import ClientFailure, ClientUpdate, StageInfo
from jobs.train.request import Request


def validate_update(
    reply: ClientUpdate | ClientFailure,
    info: StageInfo,
    request: Request,
    partition: Partition,
    round_index: int,
    pending: Set[int],
) -> WeightedUpdate | ClientFailure:
    """An answer of round `number`. Raises TrainingFailed for masks or a layout that are others."""
    if reply.client not in pending:
        problem = f"client {reply.client} answered, who was not asked or has answered"
        raise TrainingFailed(f"round {round_index + 1}", problem, "Do all sites run this version?")
    if isinstance(reply, ClientFailure):
        return reply
    if reply.setup_digest != info.setup_digest:
        subject = f"client {partition.names[reply.client]} in round {reply.round + 1}"
        problem = f"its masks have the digest {reply.setup_digest[:12]}, all others {info.setup_digest[:12]}"
        raise TrainingFailed(subject, problem, "Is its base the same, and its seed?")
    expected_rows = len(partition.rows[reply.client])
    if reply.rows != expected_rows or reply.round != round_index:
        problem = f"{reply.rows} rows in round {reply.round + 1}"
        return ClientFailure(
            reply.client, round_index, f"it told of {problem}, and has {expected_rows}"
        )
    if not math.isfinite(reply.loss) or reply.tokens < 0:
        problem = f"a loss of {reply.loss} over {reply.tokens} tokens"
        return ClientFailure(reply.client, round_index, f"it told of {problem}")
    section = request.federation
    assert section is not None
    try:
        delta_n = decode(reply.update, section.compress, info.layout.sizes, section.topk)
    except BadPayload as error:
        return ClientFailure(reply.client, reply.round, str(error))
    return WeightedUpdate(reply.client, float(reply.rows), delta_n)
