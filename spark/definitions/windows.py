"""The sizes of aggregate windows, which are aligned to the UTC epoch, and durations as SQL."""

from __future__ import annotations

from datetime import timedelta

from schemas.contract.model import Window

SECONDS: dict[Window, int] = {"1m": 60, "5m": 300, "1h": 3600}
"""The length of each window in seconds."""


def interval(duration: timedelta) -> str:
    """Returns a duration as an interval literal of Spark SQL, exact to the microsecond."""
    return f"interval '{duration // timedelta(microseconds=1) / 1_000_000:.6f}' second"
