"""Sessions of a key: one definition, for streaming events and for all of them alike."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.model import Contract, Sessions
from spark import derived, measures


def sessions(events: DataFrame, contract: Contract, one: Sessions) -> DataFrame:
    """The sessions of distinct `events`, which have `event_time` and the contract's fields: the columns of
    `derived.columns` and `closes_at`. Of a stream, those that its watermark has closed."""
    gap = one.gap // timedelta(microseconds=1)
    found = events.groupBy(*one.key, F.session_window("event_time", f"{gap} microseconds").alias("_session")).agg(
        F.count("*").alias("events"),
        *(F.expr(state.make).alias(state.name) for state in measures.states(one, contract)),
    )
    types = derived.columns(contract, one)
    values = {measure.name: F.expr(measures.final(measure, contract, "spark")) for measure in one.measures}
    return found.select(
        *one.key,
        F.col("_session.start").alias("session_start"),
        F.col("_session.end").alias("session_end"),
        "events",
        *(value.cast(types[name]).alias(name) for name, value in values.items()),
        F.timestamp_micros(F.unix_micros("_session.end") + 1).alias(
            derived.CLOSES_AT
        ),  # an event at the end extends it
    )
