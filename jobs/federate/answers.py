"""What a client tells, checked: what can't be is left out, what is of another world ends all."""

from __future__ import annotations

import math
from collections.abc import Set

from jobs.errors import TrainingFailed
from jobs.federate.average import Told
from jobs.federate.messages import Answer, Left, Opened
from jobs.federate.partition import Partition
from jobs.federate.payload import BadPayload, decode
from jobs.request import Request


def checked(
    found: Answer | Left,
    opened: Opened,
    request: Request,
    split: Partition,
    number: int,
    awaited: Set[int],
) -> Told | Left:
    """An answer of round `number`. Raises TrainingFailed for masks or a layout that are others."""
    if found.client not in awaited:
        what = f"client {found.client} answered, who was not asked or has answered"
        raise TrainingFailed(f"round {number + 1}", what, "Do all sites run this version?")
    if isinstance(found, Left):
        return found
    if found.agreed != opened.agreed:
        who = f"client {split.names[found.client]} in round {found.round + 1}"
        what = f"its masks have the digest {found.agreed[:12]}, all others {opened.agreed[:12]}"
        raise TrainingFailed(who, what, "Is its base the same, and its seed?")
    has = len(split.rows[found.client])
    if found.rows != has or found.round != number:
        what = f"{found.rows} rows in round {found.round + 1}"
        return Left(found.client, number, f"it told of {what}, and has {has}")
    if not math.isfinite(found.loss) or found.tokens < 0:
        what = f"a loss of {found.loss} over {found.tokens} tokens"
        return Left(found.client, number, f"it told of {what}")
    section = request.federation
    assert section is not None
    try:
        delta_n = decode(found.update, section.compress, opened.layout.sizes, section.topk)
    except BadPayload as bad:
        return Left(found.client, found.round, str(bad))
    return Told(found.client, float(found.rows), delta_n)
