"""Check what clients send: drop an invalid update, end the run if a site trains another model."""

from __future__ import annotations

import math
from collections.abc import Set

from jobs.errors import TrainingFailed
from jobs.federation.averaging.payload import BadPayload, PayloadFormat, decode
from jobs.federation.averaging.server_step import WeightedUpdate
from jobs.federation.partition import Partition
from jobs.federation.sites.messages import ClientFailure, ClientUpdate, StageInfo
from jobs.spec.sections.federation import FederationSection


def validate_update(
    reply: ClientUpdate | ClientFailure,
    info: StageInfo,
    section: FederationSection,
    partition: Partition,
    round_index: int,
    pending: Set[int],
) -> WeightedUpdate | ClientFailure:
    """Return the update of a client, or why it is dropped from the round.

    Raise TrainingFailed for a client that was not sampled, and for other masks or another layout.
    """
    if reply.client not in pending:
        problem = f"client {reply.client} sent an update that was not requested, or sent it twice"
        raise TrainingFailed(
            f"round {round_index + 1}",
            problem,
            "Check that all sites run the same version of slora.",
        )
    if isinstance(reply, ClientFailure):
        return reply
    if reply.setup_digest != info.setup_digest:
        subject = f"client {partition.names[reply.client]} in round {reply.round + 1}"
        digests = f"{reply.setup_digest[:12]}, but all others have {info.setup_digest[:12]}"
        problem = f"its masks and layout have the digest {digests}"
        raise TrainingFailed(subject, problem, "Check that its site uses the same base and seed.")
    expected_rows = len(partition.rows[reply.client])
    if reply.rows != expected_rows or reply.round != round_index:
        problem = f"{reply.rows} rows in round {reply.round + 1}"
        return ClientFailure(
            reply.client, round_index, f"it reported {problem} but it has {expected_rows}"
        )
    if not math.isfinite(reply.loss) or reply.tokens < 0:
        problem = f"a loss of {reply.loss} over {reply.tokens} tokens"
        return ClientFailure(reply.client, round_index, f"it reported {problem}")
    try:
        delta_n = decode(reply.update, PayloadFormat(info.layout, section.compress, section.topk))
    except BadPayload as error:
        return ClientFailure(reply.client, reply.round, str(error))
    return WeightedUpdate(reply.client, float(reply.rows), delta_n)
