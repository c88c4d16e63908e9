"""Instants and hours of event time as all layers write them: in UTC, cut to whole hours, as SQL literals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from schemas.errors import TerminalError

HOUR = timedelta(hours=1)

BEGINNING_OF_TIME = datetime(1, 1, 1, tzinfo=UTC)
"""Before every event: how far a stream is final of which nothing is."""


END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
"""The last instant that Python and JSON can say. Event times end a day before it (`spark.transforms.decode`), so that
their windows end before it."""


Hours = tuple[datetime, datetime]
"""Hours of event time, from the first to before the second."""


class EmptyRange(TerminalError):
    """A range of hours that ends before it begins."""


def floor_hour(time: datetime) -> datetime:
    """Returns the start of the hour that holds `time`, in its own time zone."""
    return time.replace(minute=0, second=0, microsecond=0)


def before(time: datetime, by: timedelta) -> datetime:
    """Returns the instant that is `by` earlier, the beginning of time if there is none."""
    return time - by if time - BEGINNING_OF_TIME > by else BEGINNING_OF_TIME


def time_of(micros: int) -> datetime:
    """The time (UTC) that Spark's `unix_micros` counts so: in microseconds since 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def utc(text: str) -> datetime:
    """Returns the instant that an ISO 8601 text names, in UTC; a text without an offset is in UTC. Raises
    ValueError."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def whole_hours(since: datetime, until: datetime) -> Hours:
    """Returns the whole hours that hold all times from `since` to before `until`. Raises `EmptyRange` if `until` is not
    later than `since`."""
    first, last = floor_hour(since), floor_hour(until)
    last += HOUR if last < until else timedelta()
    if first >= last:
        raise EmptyRange(f"from {since.isoformat()} to {until.isoformat()} there is no hour: the end must be later")
    return first, last


def literal(time: datetime | None) -> str:
    """Returns a timestamp literal of Spark SQL that means the same whatever the session's time zone.

    Raises ValueError for None and for a time without a time zone.
    """
    if time is None or time.tzinfo is None:
        raise ValueError(f"a timestamp literal needs an aware time, got {time!r}")
    return f"timestamp '{time.astimezone(UTC).isoformat(' ')}'"
