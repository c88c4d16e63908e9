"""Instants as the layers write and cut them: UTC, whole hours, SQL literals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from schemas.errors import TerminalError

HOUR = timedelta(hours=1)

BEGINNING_OF_TIME = datetime(1, 1, 1, tzinfo=UTC)
"""Before every event: how far a stream is final of which nothing is."""


Hours = tuple[datetime, datetime]
"""Hours of event time, from the first to before the second."""


class EmptyRange(TerminalError):
    """A range of hours that ends before it begins."""


def floor_hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def time_of(micros: int) -> datetime:
    """The time (UTC) that Spark's `unix_micros` counts so: in microseconds since 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def utc(text: str) -> datetime:
    """An ISO 8601 time with its offset, or without one in UTC. Raises ValueError."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def whole_hours(since: datetime, until: datetime) -> Hours:
    """The hours that the times from `since` to before `until` are in. Raises `EmptyRange`."""
    first, last = floor_hour(since), floor_hour(until)
    last += HOUR if last < until else timedelta()
    if first >= last:
        raise EmptyRange(f"from {since.isoformat()} to {until.isoformat()} there is no hour: the end must be later")
    return first, last


def literal(time: datetime | None) -> str:
    """A UTC timestamp literal that means the same in Spark SQL whatever the session's time zone."""
    if time is None or time.tzinfo is None:
        raise ValueError(f"a timestamp literal needs an aware time, got {time!r}")
    return f"timestamp '{time.astimezone(UTC).isoformat(' ')}'"
