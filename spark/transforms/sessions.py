"""Sessions of a key: one definition for streaming events and for all stored events alike."""

from __future__ import annotations

from datetime import timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from schemas.contract.model import Contract, Sessions
from spark.definitions import measures, stateful_results
from spark.definitions.windows import interval


def sessions(events: DataFrame, contract: Contract, declared: Sessions) -> DataFrame:
    """Returns the sessions of `events`, as `schemas.contract.model.Sessions` defines them: the columns of
    `stateful_results.columns` and `closes_at` (UTC).

    `events` are distinct, and have `event_time` and the contract's fields. Streaming events need a watermark on it, and
    only sessions that the watermark has closed are returned for them.
    """
    gap = declared.gap // timedelta(microseconds=1)
    found = events.groupBy(*declared.key, F.session_window("event_time", f"{gap} microseconds").alias("_session")).agg(
        F.count("*").alias("events"),
        *_bounds(events, declared),
        *(F.expr(state.make["spark"]).alias(state.name) for state in measures.states(declared, contract)),
    )
    types = stateful_results.columns(contract, declared)
    values = {m.name: F.expr(measures.final_of_session(m, contract, "spark")) for m in declared.measures}
    start, end = ("_session.start", "_session.end") if events.isStreaming else ("_start", "_end")
    closes_at = F.timestamp_micros(F.unix_micros(end) + 1)  # an event at the end extends it
    return found.select(
        *declared.key,
        F.col(start).alias("session_start"),
        F.col(end).alias("session_end"),
        "events",
        *(value.cast(types[name]).alias(name) for name, value in values.items()),
        closes_at.alias(stateful_results.CLOSES_AT),
    )


def _bounds(events: DataFrame, declared: Sessions) -> list[Column]:
    """The start and the end of a session as aggregates of its events, which stored events need. The session window has
    the same bounds, but Spark takes it for a plain grouping column: it applies a condition on the window to each event
    before it forms the sessions, and so cuts them off. A streaming query has no such condition, and the columns of its
    state stay as they are."""
    if events.isStreaming:
        return []
    end = F.max("event_time") + F.expr(interval(declared.gap))
    return [F.min("event_time").alias("_start"), end.alias("_end")]
