"""When a schedule fires next: cron in a time zone, with an offset of its own, as pure functions.

Summer time as Debian's cron has it, by cronsim: a moment that the clock leaps over fires right
after the leap, one that comes twice fires once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.errors import Fault, InputError

MAX_MISSED_TIMES = 1000
"""Moments that are looked at in one step; more are caught up with in the next ones."""


def check_cron(cron: str, time_zone: str) -> None:
    """Raises InputError where it names no moment."""
    faults = []
    try:
        zone = _load_zone(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "Use a name of the time zone database, as Europe/Berlin."
        faults.append(Fault("time_zone", f"{time_zone[:63]!a} is no time zone", remedy))
        zone = ZoneInfo("UTC")
    try:
        # A sixth field would be the seconds, which nobody means here; cronsim gives up after 50
        # years without a moment, as for the 31st of April.
        has_time = len(cron.split()) == 5 and next(CronSim(cron, datetime.now(zone)), None)
    except CronSimError:
        has_time = None
    if not has_time:
        remedy = "Use minute, hour, day, month and weekday, as 0 3 * * *."
        faults.append(Fault("cron", f"{cron[:100]!a} names no moment", remedy))
    if faults:
        raise InputError(faults)


def find_next_time(cron: str, time_zone: str, moment: float) -> float | None:
    """The first moment after this one, in seconds since 1970; None where there is none any more."""
    next_time = next(_iterate_times(cron, time_zone, moment), None)
    return None if next_time is None else next_time.timestamp()


def list_times_until(cron: str, time_zone: str, first: float, until: float) -> list[float]:
    """`first` and the moments after it, up to `until`; at most MOST_MISSED, the oldest."""
    times = [first]
    for moment in islice(_iterate_times(cron, time_zone, first), MAX_MISSED_TIMES - 1):
        if moment.timestamp() > until:
            break
        times.append(moment.timestamp())
    return times


def find_latest_time(cron: str, time_zone: str, first: float, until: float) -> float:
    """The last of `first` and the moments after it up to `until`, however many there are."""
    latest = first
    for moment in _iterate_times(cron, time_zone, first):
        if moment.timestamp() > until:
            break
        latest = moment.timestamp()
    return latest


def compute_jitter_offset(project: str, name: str, jitter_s: float) -> float:
    """How long after its moments a schedule fires: always the same, and different for others."""
    digest = sha256(f"{project}/{name}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 * jitter_s


def _iterate_times(cron: str, time_zone: str, moment: float) -> CronSim:
    return CronSim(cron, datetime.fromtimestamp(moment, UTC).astimezone(_load_zone(time_zone)))


def _load_zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
