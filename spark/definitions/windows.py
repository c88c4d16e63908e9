"""The windows of aggregates: their sizes, aligned to the UTC epoch. And durations in SQL."""

from __future__ import annotations

from datetime import timedelta

from schemas.contract.model import Window

SECONDS: dict[Window, int] = {"1m": 60, "5m": 300, "1h": 3600}


def interval(duration: timedelta) -> str:
    """A duration as a literal of Spark SQL, exact to the microsecond."""
    return f"interval '{duration // timedelta(microseconds=1) / 1_000_000:.6f}' second"
