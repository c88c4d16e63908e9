"""Sessions of a key in streaming events."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Sessions
from spark.definitions import measures, stateful_results


def sessions(events: DataFrame, contract: Contract, declared: Sessions) -> DataFrame:
    """Returns the sessions of `events`, as `schemas.contract.model.Sessions` defines them: the columns of
    `stateful_results.columns` and `closes_at` (UTC).

    `events` are streaming and distinct, and have `event_time`, with a watermark on it, and the contract's fields. Only
    sessions that the watermark has closed are returned.
    """
    gap = declared.gap // timedelta(microseconds=1)
    found = events.groupBy(*declared.key, F.session_window("event_time", f"{gap} microseconds").alias("_session")).agg(
        F.count("*").alias("events"),
        *(F.expr(state.make["spark"]).alias(state.name) for state in measures.states(declared, contract)),
    )
    types = stateful_results.columns(contract, declared)
    values = {m.name: F.expr(measures.final_of_session(m, contract, "spark")) for m in declared.measures}
    closes_at = F.timestamp_micros(F.unix_micros("_session.end") + 1)  # an event at the end extends it
    return found.select(
        *declared.key,
        F.col("_session.start").alias("session_start"),
        F.col("_session.end").alias("session_end"),
        "events",
        *(value.cast(types[name]).alias(name) for name, value in values.items()),
        closes_at.alias(stateful_results.CLOSES_AT),
    )
