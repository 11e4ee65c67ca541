"""Compute the due times of a schedule: cron in a time zone, with a fixed offset.

Daylight saving follows Debian's cron (cronsim): a time that the clock skips fires right after the
change, and a time that occurs twice fires once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from jobs.errors import Fault, InputError

MAX_MISSED_TIMES = 10
"""Missed due times per call; further ones follow in the next calls, after other schedules."""


def check_cron(cron: str, time_zone: str) -> None:
    """Raise InputError if the expression or time zone is invalid, or no time matches."""
    faults = []
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        remedy = "Use a name of the time zone database, such as Europe/Berlin."
        faults.append(Fault("time_zone", f"{time_zone[:63]!a} is not a time zone", remedy))
        zone = ZoneInfo("UTC")
    try:
        # A sixth field would be seconds, which are not supported. cronsim gives up after 50 years
        # without a match, as for the 31st of April.
        has_time = len(cron.split()) == 5 and next(CronSim(cron, datetime.now(zone)), None)
    except CronSimError:
        has_time = None
    if not has_time:
        remedy = "Use minute, hour, day, month and weekday, such as 0 3 * * *."
        faults.append(Fault("cron", f"{cron[:100]!a} does not match any time", remedy))
    if faults:
        raise InputError(faults)


def find_next_time(cron: str, time_zone: str, moment: float) -> float | None:
    """Find the first time after `moment`, in seconds since 1970; None if there is none."""
    next_time = next(_iterate_times(cron, time_zone, moment), None)
    return None if next_time is None else next_time.timestamp()


def list_times_until(cron: str, time_zone: str, first: float, until: float) -> list[float]:
    """List `first` and the times after it up to `until`, at most the MAX_MISSED_TIMES oldest."""
    times = [first]
    for moment in islice(_iterate_times(cron, time_zone, first), MAX_MISSED_TIMES - 1):
        if moment.timestamp() > until:
            break
        times.append(moment.timestamp())
    return times


def find_latest_time(cron: str, time_zone: str, first: float, until: float) -> float:
    """Find the last of `first` and the times after it up to `until`."""
    # Backwards: after a long outage there are many.
    latest = _iterate_times(cron, time_zone, until + 1.0, reverse=True)
    times = (moment.timestamp() for moment in latest)
    return max(first, next((time for time in times if time <= until), first))


def compute_jitter_offset(project: str, name: str, jitter_s: float) -> float:
    """Compute the delay of a schedule's firings: constant for it, and different for others."""
    digest = sha256(f"{project}/{name}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64 * jitter_s


def _iterate_times(cron: str, time_zone: str, moment: float, *, reverse: bool = False) -> CronSim:
    start = datetime.fromtimestamp(moment, UTC).astimezone(ZoneInfo(time_zone))
    return CronSim(cron, start, reverse=reverse)
