"""Instants as text: in Python and in pandas some are out of reach."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import TimestampType


def with_iso_times(frame: DataFrame) -> DataFrame:
    """Returns `frame` with its timestamp columns as ISO 8601 in UTC (the session's time zone), with microseconds.

    Those of pandas count nanoseconds, which reach from the year 1677 to 2262 alone, and Python makes them local."""
    times = {
        column.name: F.date_format(column.name, "yyyy-MM-dd'T'HH:mm:ss.SSSSSS'Z'")
        for column in frame.schema
        if isinstance(column.dataType, TimestampType)
    }
    return frame.withColumns(times)
